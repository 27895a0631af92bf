//! Composer of WGSL modules: joins a prelude, constants, shared files and a kernel's file into one text.
//!
//! A shader file is WGSL with two kinds of additional lines:
//!
//! * `#import name` inserts the shared file `name` before the importing file, once per module.
//! * `@if(NAME)` ... `@else` ... `@end`, each alone on its line, keeps the lines of one branch and drops those of the
//!   other. The first branch is kept if the constant `NAME` is not zero. `@else` may be absent, and blocks may be
//!   nested. `@if(!NAME)` inverts the condition. `@if(NAME) line` is the short form for a single line.
//!
//! A condition keeps or drops whole lines, imports among them. There are no templates and no text replacement, so every
//! line of a composed module is a line of a file.

use std::fmt::Write;

/// Parts of a module, in the order in which they appear in its text.
#[derive(Clone, Copy, Debug)]
pub struct Compose<'a> {
    /// Directives, aliases and functions that the host defines. WGSL requires `enable` directives to come first in a
    /// module, so they belong here.
    pub prelude: &'a str,
    /// Named values. Each is written as `const NAME: u32 = value;`, and conditions refer to them.
    pub constants: &'a [(&'static str, u32)],
    /// Text of the kernel's file.
    pub body: &'a str,
    /// Names and texts of the shared files. A shared file may import others.
    pub common: &'a [(&'a str, &'a str)],
}

/// Mistake in a shader file that prevents its composition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: expected {expected}, found {found}")]
pub struct ComposeError {
    /// Name of the shared file, or `body` for the kernel's file.
    pub file: String,
    /// Line number in the file, counted from 1.
    pub line: usize,
    /// Description of what the line should have been.
    pub expected: String,
    /// Offending text.
    pub found: String,
}

/// Composes the text of a module. Every imported file appears once, before the first file that imports it.
///
/// # Errors
/// Returns a [`ComposeError`] if
/// * an imported file does not exist,
/// * a condition is malformed or names an unknown constant, even inside a dropped branch,
/// * an `@else` or `@end` has no `@if`, shares its line with other text, or follows another `@else` of the same block,
/// * an `@if` block has no `@end` in its file.
pub fn compose(parts: &Compose<'_>) -> Result<String, ComposeError> {
    let mut text = String::from(parts.prelude);
    for (name, value) in parts.constants {
        writeln!(text, "const {name}: u32 = {value}u;").expect("writing to a string succeeds");
    }
    insert(("body", parts.body), parts, &mut Vec::new(), &mut text)?;
    Ok(text)
}

/// Open `@if` block.
struct Block {
    /// Line number of its `@if`.
    line: usize,
    /// Whether the lines of the current branch are kept.
    kept: bool,
    /// Whether the current branch is the second one.
    in_else: bool,
}

/// Appends a file to `text`, after those of its imports that `inserted` does not list yet.
fn insert<'a>(
    (file, source): (&'a str, &'a str),
    parts: &Compose<'a>,
    inserted: &mut Vec<&'a str>,
    text: &mut String,
) -> Result<(), ComposeError> {
    let error = |line, expected, found: &str| {
        let found = format!("`{}`", found.trim());
        ComposeError { file: file.to_owned(), line, expected, found }
    };
    let mut own = String::new();
    let mut blocks = Vec::new();
    for (number, line) in (1..).zip(source.lines()) {
        let kept = apply(number, line, &mut blocks, parts.constants);
        let Some(kept) = kept.map_err(|expected| error(number, expected, line))? else { continue };
        let Some(import) = kept.trim().strip_prefix("#import ").map(str::trim) else {
            writeln!(own, "{kept}").expect("writing to a string succeeds");
            continue;
        };
        let Some(shared) = parts.common.iter().find(|(name, _)| *name == import) else {
            return Err(error(number, format!("an import of {}", one_of(parts.common)), line));
        };
        if !inserted.contains(&shared.0) {
            inserted.push(shared.0);
            insert(*shared, parts, inserted, text)?;
        }
    }
    if let Some(block) = blocks.last() {
        let opening = source.lines().nth(block.line - 1).unwrap_or_default();
        return Err(error(block.line, "an `@end` before the end of the file".to_owned(), opening));
    }
    text.push_str(&own);
    Ok(())
}

/// Applies the directive of a line, if it has one, to the open blocks. Returns the text to keep of the line, if any.
///
/// # Errors
/// Returns what was expected instead of the line.
fn apply<'a>(
    number: usize,
    line: &'a str,
    blocks: &mut Vec<Block>,
    constants: &[(&str, u32)],
) -> Result<Option<&'a str>, String> {
    let trimmed = line.trim();
    let mut kept = line;
    match directive(trimmed) {
        "if" => {
            let (condition, rest) = parse_condition(trimmed).ok_or("`@if(NAME)` or `@if(!NAME)`")?;
            let known = || format!("a condition on {}", one_of(constants));
            let holds = evaluate(condition, constants).ok_or_else(known)?;
            if rest.is_empty() {
                blocks.push(Block { line: number, kept: holds, in_else: false });
            }
            if rest.is_empty() || !holds {
                return Ok(None);
            }
            kept = rest;
        }
        name @ ("else" | "end") if trimmed.len() > name.len() + 1 => {
            return Err(format!("`@{name}` alone on its line"));
        }
        "else" => {
            let block = blocks.last_mut().ok_or("an `@if` block around `@else`")?;
            if block.in_else {
                return Err(format!("`@end`, after the `@else` of the `@if` in line {}", block.line));
            }
            *block = Block { kept: !block.kept, in_else: true, ..*block };
            return Ok(None);
        }
        "end" => {
            blocks.pop().ok_or("an `@if` block before `@end`")?;
            return Ok(None);
        }
        _ => {}
    }
    Ok(blocks.iter().all(|block| block.kept).then_some(kept))
}

/// Returns the word after the `@` that a line begins with. Words other than `if`, `else` and `end` are WGSL's own.
fn directive(line: &str) -> &str {
    let word = line.strip_prefix('@').unwrap_or_default();
    &word[..word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len())]
}

/// Splits `@if(CONDITION) rest` into the condition and the rest.
fn parse_condition(line: &str) -> Option<(&str, &str)> {
    let (condition, rest) = line.strip_prefix("@if(")?.split_once(')')?;
    Some((condition, rest.trim()))
}

/// Evaluates `NAME` or `!NAME`. Returns `None` if there is no such constant.
fn evaluate(condition: &str, constants: &[(&str, u32)]) -> Option<bool> {
    let (name, inverted) = condition.strip_prefix('!').map_or((condition, false), |name| (name, true));
    let (_, value) = constants.iter().find(|(known, _)| *known == name)?;
    Some((*value != 0) != inverted)
}

/// Lists the names that a directive may refer to.
fn one_of<T>(known: &[(&str, T)]) -> String {
    let names = known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if names.is_empty() { "nothing, as there are none".to_owned() } else { format!("one of {names}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &[(&str, &str)] =
        &[("a", "#import b\nfn a() {}\n"), ("b", "fn b() {}\n"), ("broken", "fn c() {}\n@end\n")];

    fn composed(body: &str) -> Result<String, ComposeError> {
        let constants = [("YES", 1), ("NO", 0)];
        compose(&Compose { prelude: "alias E = f32;\n", constants: &constants, body, common: COMMON })
    }

    /// Composes a body and returns what follows the prelude and the constants.
    fn kept(body: &str) -> String {
        let text = composed(body).expect("the body composes");
        let head = "alias E = f32;\nconst YES: u32 = 1u;\nconst NO: u32 = 0u;\n";
        text.strip_prefix(head).expect("prelude and constants come first").to_owned()
    }

    #[track_caller]
    fn refused(body: &str, message: &str) {
        assert_eq!(composed(body).expect_err("the body does not compose").to_string(), message);
    }

    #[test]
    fn imports_come_once_and_before_their_user() {
        assert_eq!(kept("#import a\n#import b\nfn main() {}\n"), "fn b() {}\nfn a() {}\nfn main() {}\n");
    }

    #[test]
    fn an_import_may_be_conditional() {
        assert_eq!(kept("@if(YES) #import b\n@if(NO) #import c\n@if(NO)\n#import c\n@end\n"), "fn b() {}\n");
    }

    #[test]
    fn a_conditional_line_is_kept_if_the_condition_holds() {
        assert_eq!(kept("@if(YES) var a;\n  @if(NO) var b;\n  var c;\n"), "var a;\n  var c;\n");
        assert_eq!(kept("@if(!YES) var a;\n@if(!NO) var b;\n"), "var b;\n");
    }

    #[test]
    fn a_block_keeps_one_of_its_branches() {
        assert_eq!(kept("@if(YES)\nvar a;\n@end\n@if(NO)\nvar b;\n@end\n"), "var a;\n");
        assert_eq!(kept("@if(YES)\nvar a;\n@else\nvar b;\n@end\n"), "var a;\n");
        assert_eq!(kept("@if(NO)\nvar a;\n  @else\nvar b;\n  @end\n"), "var b;\n");
        assert_eq!(kept("@if(!NO)\nvar a;\n@else\nvar b;\n@end\n"), "var a;\n");
    }

    #[test]
    fn blocks_may_be_nested() {
        let inner = "@if(YES)\nvar a;\n@else\nvar b;\n@end\n@if(NO) var c;\nvar d;\n";
        assert_eq!(kept(&format!("@if(NO)\n{inner}@end\nvar e;\n")), "var e;\n");
        assert_eq!(kept(&format!("@if(YES)\n{inner}@end\nvar e;\n")), "var a;\nvar d;\nvar e;\n");
        assert_eq!(kept(&format!("@if(YES)\n@else\n{inner}@end\nvar e;\n")), "var e;\n");
        assert_eq!(kept(&format!("@if(NO)\n@else\n{inner}@end\nvar e;\n")), "var a;\nvar d;\nvar e;\n");
    }

    #[test]
    fn attributes_of_wgsl_are_text() {
        let line = "@compute @workgroup_size(64)\n@group(0) @binding(0) var<uniform> params: Params;\n";
        assert_eq!(kept(line), line);
    }

    #[test]
    fn an_unknown_import_is_an_error() {
        refused("var a;\n#import c\n", "body:2: expected an import of one of a, b, broken, found `#import c`");
    }

    #[test]
    fn an_unknown_constant_is_an_error() {
        refused("@if(OTHER) var a;\n", "body:1: expected a condition on one of YES, NO, found `@if(OTHER) var a;`");
        refused("@if(NO)\n@if(!OTHER)\n", "body:2: expected a condition on one of YES, NO, found `@if(!OTHER)`");
        let none = compose(&Compose { prelude: "", constants: &[], body: "@if(YES)\n", common: &[] });
        let message = "body:1: expected a condition on nothing, as there are none, found `@if(YES)`";
        assert_eq!(none.expect_err("there are no constants").to_string(), message);
    }

    #[test]
    fn a_malformed_condition_is_an_error() {
        refused("@if YES\n", "body:1: expected `@if(NAME)` or `@if(!NAME)`, found `@if YES`");
        refused("@if(YES\n", "body:1: expected `@if(NAME)` or `@if(!NAME)`, found `@if(YES`");
    }

    #[test]
    fn a_block_without_end_is_an_error() {
        refused("@if(NO)\n@if(YES)\n@end\n", "body:1: expected an `@end` before the end of the file, found `@if(NO)`");
    }

    #[test]
    fn an_end_without_block_is_an_error() {
        refused("@if(YES) var a;\n@end\n", "body:2: expected an `@if` block before `@end`, found `@end`");
        refused("#import broken\n", "broken:2: expected an `@if` block before `@end`, found `@end`");
        refused("@if(YES)\n@end var a;\n", "body:2: expected `@end` alone on its line, found `@end var a;`");
    }

    #[test]
    fn a_stray_else_is_an_error() {
        refused("@else\n", "body:1: expected an `@if` block around `@else`, found `@else`");
        refused("@if(NO)\n@else var a;\n", "body:2: expected `@else` alone on its line, found `@else var a;`");
        let message = "body:3: expected `@end`, after the `@else` of the `@if` in line 1, found `@else`";
        refused("@if(NO)\n@else\n@else\n@end\n", message);
    }
}

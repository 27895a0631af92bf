//! The composer: WGSL text from a prelude, constants, imports and a body. No templates, no text replacement.

use std::fmt::Write;

/// What a module is made of, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Compose<'a> {
    /// Directives, aliases and functions the host defines; `enable` has to come first in a module.
    pub prelude: &'a str,
    /// Written as `const NAME: u32 = value;`.
    pub constants: &'a [(&'static str, u32)],
    /// The kernel's file. A line `#import name` asks for a shared file; its own text keeps its line order. A line that
    /// begins with `@if(NAME)` is taken, without that, if the constant is not zero, and else left out, an import too; alone
    /// on its line `@if(NAME)` speaks of all lines up to its `@end`.
    pub body: &'a str,
    /// The shared files by name. They may import others.
    pub common: &'a [(&'a str, &'a str)],
}

/// A body asks for a shared file that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shader imports `{name}`, expected one of: {known}")]
pub struct UnknownImport {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: String,
}

/// Writes the module. Every import is taken in once, before the text that asks for it.
///
/// # Errors
/// If an import is unknown.
pub fn compose(parts: &Compose<'_>) -> Result<String, UnknownImport> {
    let mut text = String::from(parts.prelude);
    for (name, value) in parts.constants {
        writeln!(text, "const {name}: u32 = {value}u;").expect("writing to a string succeeds");
    }
    let mut taken = Vec::new();
    take(parts.body, parts, &mut taken, &mut text)?;
    Ok(text)
}

fn take<'a>(
    source: &'a str,
    parts: &Compose<'a>,
    taken: &mut Vec<&'a str>,
    text: &mut String,
) -> Result<(), UnknownImport> {
    let mut own = String::new();
    // Whether each of the conditions holds that were begun and have not ended.
    let mut open: Vec<bool> = Vec::new();
    for line in source.lines() {
        let asked = match (condition(line, parts.constants), line.trim()) {
            (_, "@end") => {
                open.pop();
                continue;
            }
            (Some((holds, "")), _) => {
                open.push(holds);
                continue;
            }
            (Some((false, _)), _) => continue,
            (Some((true, rest)), _) => rest,
            (None, _) => line,
        };
        if open.contains(&false) {
            continue;
        }
        if let Some(name) = asked.strip_prefix("#import ").map(str::trim) {
            let Some((name, shared)) = parts.common.iter().find(|(known, _)| *known == name) else {
                let known = parts.common.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                return Err(UnknownImport { name: name.to_owned(), known });
            };
            if !taken.contains(name) {
                taken.push(name);
                take(shared, parts, taken, text)?;
            }
        } else {
            writeln!(own, "{asked}").expect("writing to a string succeeds");
        }
    }
    text.push_str(&own);
    Ok(())
}

/// Whether the condition that a line begins with holds, and what follows it. A condition on what is no constant is none,
/// so it stays in the text, and no compiler takes it.
fn condition<'a>(line: &'a str, constants: &[(&str, u32)]) -> Option<(bool, &'a str)> {
    let (name, rest) = line.trim_start().strip_prefix("@if(")?.split_once(')')?;
    let (_, value) = constants.iter().find(|(known, _)| *known == name)?;
    Some((*value != 0, rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &[(&str, &str)] = &[("a", "#import b\nfn a() {}\n"), ("b", "fn b() {}\n")];

    fn composed(body: &str) -> Result<String, UnknownImport> {
        compose(&Compose { prelude: "alias E = f32;\n", constants: &[("N", 4)], body, common: COMMON })
    }

    /// With one condition that holds and one that does not; what follows the two constants.
    fn on_conditions(body: &str) -> String {
        let constants = [("YES", 1), ("NO", 0)];
        let text = compose(&Compose { prelude: "", constants: &constants, body, common: COMMON }).expect("it composes");
        text.strip_prefix("const YES: u32 = 1u;\nconst NO: u32 = 0u;\n").expect("constants come first").to_owned()
    }

    #[test]
    fn imports_come_once_and_before_their_user() {
        let text = composed("#import a\n#import b\nfn main() {}\n");
        assert_eq!(text.as_deref(), Ok("alias E = f32;\nconst N: u32 = 4u;\nfn b() {}\nfn a() {}\nfn main() {}\n"));
    }

    #[test]
    fn an_import_may_stand_on_a_condition() {
        let body = "@if(YES) #import b\n@if(NO) #import c\n@if(NO)\n#import c\n@end\n";
        assert_eq!(on_conditions(body), "fn b() {}\n");
    }

    #[test]
    fn a_condition_may_stand_in_another() {
        let body =
            "@if(NO)\n@if(YES)\nvar a;\n@end\nvar b;\n@end\n@if(YES)\n@if(NO)\nvar c;\n@end\nvar d;\n@end\nvar e;\n";
        assert_eq!(on_conditions(body), "var d;\nvar e;\n");
    }

    #[test]
    fn an_unknown_import_is_named() {
        let error = composed("#import c\n").expect_err("there is no c");
        assert_eq!(error.to_string(), "the shader imports `c`, expected one of: a, b");
    }

    #[test]
    fn a_line_on_a_condition_comes_if_it_holds() {
        let body =
            "@if(YES) var a;\n  @if(NO) var b;\n@if(OTHER) var c;\n@if(NO)\nvar d;\n@end\n@if(YES)\nvar e;\n@end\n";
        assert_eq!(on_conditions(body), "var a;\n@if(OTHER) var c;\nvar e;\n");
    }
}

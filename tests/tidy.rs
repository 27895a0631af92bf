//! Rules of the repository that no compiler checks: dependencies between crates, file lengths, lists that must agree,
//! and the wording of doc comments.

use mobilediffusion_kernels::kernel::split;
use mobilediffusion_kernels::{FAMILIES, wgsl};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Crates, each with the crates that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("runtime", &[]),
    ("kernels", &["runtime"]),
    ("graph", &["runtime", "kernels"]),
    ("model", &["runtime", "kernels", "graph"]),
    ("cli", &["runtime", "kernels", "graph", "model"]),
    ("tests", &["runtime", "kernels", "graph", "model"]),
    ("benches", &["runtime", "kernels", "graph", "model"]),
];

/// Largest number of lines of a source file.
const MAX_LINES: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the root")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the names of the files in a folder that end in `ending`, without the ending.
fn stems(folder: &str, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("a folder's entry reads").file_name().into_string().expect("file names are UTF-8")
    };
    entries.map(name).filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
}

/// Reads every text file of the project. Returns its path from the root, with slashes, and its text.
fn texts() -> Vec<(String, String)> {
    const FOLDERS: &[&str] = &[".ci", "docs", "reference", "shaders"];
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ARROWS.iter().map(|(name, _)| *name).chain(FOLDERS.iter().copied()).map(|name| root().join(name)).collect();
    let mut take = |path: &Path| {
        // Files that are not UTF-8, like pictures and weights, are skipped.
        if let Ok(text) = fs::read_to_string(path) {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((name.replace('\\', "/"), text));
        }
    };
    for entry in fs::read_dir(root()).expect("the root reads").flatten() {
        if entry.path().is_file() && !["Cargo.lock", ".git"].map(Into::into).contains(&entry.file_name()) {
            take(&entry.path());
        }
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                let generated = name.starts_with('.') || name == "__pycache__" || name == "target" || name == "build";
                folders.extend((!generated).then_some(path));
            } else {
                take(&path);
            }
        }
    }
    found
}

fn is_source(path: &str) -> bool {
    [".rs", ".wgsl", ".py"].iter().any(|ending| path.ends_with(ending))
}

#[test]
fn dependencies_point_one_way() {
    let package = |name: &str| if name == "cli" { "mobilediffusion".into() } else { format!("mobilediffusion-{name}") };
    for (name, allowed) in ARROWS {
        let manifest = read(&format!("{name}/Cargo.toml"));
        let sections = manifest.split("\n[").filter(|s| s.lines().next().is_some_and(|l| l.contains("dependencies")));
        for line in sections.flat_map(|section| section.lines().skip(1)) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if dependency.starts_with("mobilediffusion") {
                let fits = allowed.iter().any(|allowed| package(allowed) == dependency);
                assert!(fits, "{name} must not depend on {dependency}");
            }
        }
    }
}

#[test]
fn every_kernel_has_a_source_a_shader_and_a_line_in_families() {
    let families: BTreeSet<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    assert_eq!(families.len(), FAMILIES.len(), "two kernels share a name");
    let is_kernel = |name: &String| read(&format!("kernels/src/{name}.rs")).contains("const FAMILY: Family");
    let sources: BTreeSet<String> = stems("kernels/src", ".rs").into_iter().filter(is_kernel).collect();
    assert_eq!(stems("shaders", ".wgsl"), families, "shaders/*.wgsl (left) are not the lines of FAMILIES (right)");
    assert_eq!(sources, families, "kernels in kernels/src (left) are not the lines of FAMILIES (right)");
}

#[test]
fn shared_shaders_are_listed_and_used() {
    let listed: BTreeSet<String> = wgsl::COMMON.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(stems("shaders/common", ".wgsl"), listed, "shaders/common (left) is not wgsl::COMMON (right)");
    let all = texts();
    for name in &listed {
        let import = format!("#import {name}");
        // The import may stand behind a condition, `@if(...)`.
        let imported = |line: &str| line.find("#import ").map_or("", |at| &line[at..]).trim_end().to_owned();
        let used =
            |(path, text): &&(String, String)| path.ends_with(".wgsl") && text.lines().any(|l| imported(l) == import);
        assert!(all.iter().any(|file| used(&file)), "nobody imports shaders/common/{name}.wgsl");
    }
}

#[test]
fn source_files_have_at_most_400_lines() {
    let all = texts();
    let long = |(path, text): &(String, String)| {
        let lines = text.lines().count();
        (is_source(path) && lines > MAX_LINES).then(|| format!("{path} ({lines})"))
    };
    let long: Vec<String> = all.iter().filter_map(long).collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {}", long.join(", "));
}

/// A doc comment is read on its own, in a list or a tooltip. One that begins like this leans on an item that is not
/// there, or on a document that readers do not have.
#[test]
fn doc_comments_stand_alone() {
    const CRATES: &[&str] = &["runtime", "kernels", "graph", "model", "cli"];
    const OPENINGS: &[&str] = &["The same", "Those ", "That of", "Like ", "As ", "(specification"];
    let doc = |line: &str| {
        line.trim_start().strip_prefix("///").or_else(|| line.trim_start().strip_prefix("//!")).map(str::to_owned)
    };
    let mut offenders = Vec::new();
    for (path, text) in texts() {
        let of_a_crate = CRATES.iter().any(|name| path.starts_with(&format!("{name}/")));
        if !of_a_crate || !path.ends_with(".rs") {
            continue;
        }
        let mut before = false;
        for (number, line) in (1..).zip(text.lines()) {
            let comment = doc(line);
            // Only the first line of a block begins a comment; a line within it may begin with any word.
            if let Some(comment) = comment.as_deref().filter(|_| !before)
                && OPENINGS.iter().any(|opening| comment.trim_start().starts_with(opening))
            {
                offenders.push(format!("{path}:{number}:{comment}"));
            }
            before = comment.is_some();
        }
    }
    assert!(
        offenders.is_empty(),
        "{} doc comments begin with {OPENINGS:?}:\n{}",
        offenders.len(),
        offenders.join("\n")
    );
}

#[test]
fn nothing_is_left_to_do() {
    for (path, text) in texts().iter().filter(|(path, _)| is_source(path)) {
        for word in [concat!("to", "do!"), concat!("unimple", "mented!")] {
            assert!(!text.contains(word), "{path} contains {word}");
        }
    }
}

#[test]
fn no_path_of_a_machine_is_mentioned() {
    for (path, text) in &texts() {
        for place in [concat!("/wo", "rk/"), concat!("/ro", "ot/")] {
            let line = text.lines().position(|line| line.contains(place));
            assert!(line.is_none(), "{path}:{} mentions {place}", line.unwrap_or_default() + 1);
        }
    }
}

#[test]
fn the_readme_lists_the_kernels() {
    let (begin, end) = ("<!-- kernels -->\n", "<!-- /kernels -->");
    let mut table = String::from("| kernel | what it does |\n|---|---|\n");
    for family in FAMILIES {
        table.push_str(&format!(
            "| [`{0}`](kernels/src/{0}.rs) | {1} |\n",
            family.name,
            family.summary.replace('|', "\\|")
        ));
    }
    let readme = read("README.md").replace('\r', "");
    let found = readme.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(found, _)| found);
    let found = found.unwrap_or_else(|| panic!("README.md has no lines {begin} and {end}"));
    let only_in = |one: &str, other: &str| {
        let only = one.lines().filter(|row| !other.lines().any(|line| line == *row));
        only.collect::<Vec<_>>().join("\n")
    };
    let (missing, surplus) = (only_in(&table, found), only_in(found, &table));
    assert!(found == table, "rows of README.md, in the order of FAMILIES: missing\n{missing}\nand surplus\n{surplus}");
}

#[test]
fn the_page_of_case_files_names_every_operand_and_size() {
    let page = read("docs/cases.md");
    let mut missing = BTreeSet::new();
    for family in FAMILIES {
        let title = format!("| `{}` |", family.name);
        let Some(row) = page.lines().find(|line| line.starts_with(&title)) else {
            missing.insert(format!("a row that begins with {title}"));
            continue;
        };
        for case in (family.cases)() {
            let (read, written) = split(case.kernel.as_ref());
            let outputs = if written.len() == 1 { Vec::new() } else { written };
            let params = case.kernel.params_json();
            let sizes = params.as_object().expect("sizes are an object").keys().map(String::as_str);
            let names = read.iter().chain(&outputs).map(|operand| operand.name).chain(sizes);
            let unnamed = names.filter(|name| !row.contains(&format!("`{name}`")));
            missing.extend(unnamed.map(|name| format!("`{name}` of {}", family.name)));
        }
    }
    let missing: Vec<String> = missing.into_iter().collect();
    assert!(missing.is_empty(), "docs/cases.md lacks:\n{}", missing.join("\n"));
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let example = read("model/examples/text_to_image.rs").replace('\r', "");
    let code = example.split_once("\n\n").map_or("", |(_, code)| code);
    let readme = read("README.md").replace('\r', "");
    assert!(readme.contains(&format!("```rust\n{code}```")), "README.md should show:\n\n{code}");
}

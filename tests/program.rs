//! Helpers that run the command-line program as a user does.
//!
//! They need the binary beside the test: `cargo build --release` comes before `cargo test --release` in `tests/run`.

use crate::caches;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Returns a command for the program, which lies beside the folder that this test was built into. It keeps what it
/// compiles in [`caches`] where the user's cache folder is named by `XDG_CACHE_HOME`.
///
/// # Panics
/// If the program was not built.
pub fn program() -> Command {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in deps");
    let program = folder.join(format!("mobilediffusion{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "there is no {}: run `cargo build --release` before", program.display());
    let mut command = Command::new(program);
    command.env("XDG_CACHE_HOME", caches());
    command
}

/// Runs the program to its end.
///
/// # Panics
/// If the program does not start.
pub fn run(args: &[&str]) -> Output {
    program().args(args).output().expect("the program starts")
}

/// Returns a path as an argument of the program.
///
/// # Panics
/// If it is not UTF-8.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// Runs `generate` on the CPU with `output` as its file.
///
/// # Panics
/// If the program does not start.
pub fn generate(prompt: &str, output: &Path, more: &[&str]) -> Output {
    run(&[&["generate", prompt, "-o", arg(output), "--device", "cpu"], more].concat())
}

/// Draws on the CPU with `output` as the file, and returns the messages on standard error.
///
/// # Panics
/// If the program fails.
pub fn draw(prompt: &str, output: &Path, more: &[&str]) -> String {
    let done = generate(prompt, output, more);
    assert!(done.status.success(), "{prompt}, {more:?}: {}", stderr(&done));
    stderr(&done)
}

/// Returns what a run wrote to standard error.
///
/// # Panics
/// If the text is not UTF-8.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

/// Returns the one-line error message of a run with exit code 1.
///
/// # Panics
/// If the run ended otherwise, or wrote more than one line.
pub fn failure(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "expected one line: {text}");
    text.trim_end().strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// Copies a folder and everything in it.
///
/// # Panics
/// If a file cannot be read or written.
pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder is made");
    for entry in fs::read_dir(from).expect("the folder reads") {
        let path = entry.expect("the entry reads").path();
        let target = to.join(path.file_name().expect("entries have names"));
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            fs::copy(&path, &target).expect("the file is copied");
        }
    }
}

/// Runs `devices` and returns its lines.
///
/// # Panics
/// If the program fails.
pub fn lines_of_devices() -> Vec<String> {
    let done = run(&["devices"]);
    assert!(done.status.success(), "{}", stderr(&done));
    String::from_utf8(done.stdout).expect("the list is UTF-8").lines().map(str::to_owned).collect()
}

//! Runs `benches/run` as a user does, on the CPU device with half a minute: the record, the table, what was left out.
//!
//! These tests need Python, and the binary beside the test.

use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::{arg, program, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn benches() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches")
}

/// Runs the script on the program that was built beside this test.
fn harness(arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    // Python would write compiled modules into the source folders.
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(benches().join("run")).arg("--program");
    command.arg(program().get_program()).args(arguments).output().expect("Python 3 is installed as python3")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the script speaks UTF-8")
}

/// Returns the one-line error message of a run that fails.
fn failure(arguments: &[&str]) -> String {
    let done = harness(arguments);
    let said = text(&done.stderr);
    assert!(done.status.code() == Some(2) && done.stdout.is_empty(), "{arguments:?}: {said}");
    let error = said.lines().last().and_then(|line| line.strip_prefix("error: "));
    error.unwrap_or_else(|| panic!("{arguments:?}: {said}")).to_owned()
}

#[test]
fn a_quick_run_writes_a_record_and_prints_its_table() {
    let folder = folder();
    let (out, nobody) = (arg(folder.path()), folder.path().join("no-such-peers"));
    let quick = ["--quick", "--device", "cpu", "--minutes", "0.5", "--out", out, "--peers", arg(&nobody)];
    let done = harness(&quick);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let device = fs::read_dir(folder.path()).expect("the folder reads").flatten().next().expect("a device's folder");
    let mut files: Vec<PathBuf> = fs::read_dir(device.path()).expect("it reads").flatten().map(|e| e.path()).collect();
    files.sort();
    let [json, _log, markdown] = files.as_slice() else { panic!("expected three files, found {files:?}") };

    let record: Value = serde_json::from_str(&fs::read_to_string(json).expect("the record reads")).expect("it is JSON");
    let rows = |key: &str| record[key].as_array().unwrap_or_else(|| panic!("no list {key}")).clone();
    let kernels = record["kernels"]["f32"].as_array().expect("kernels in f32");
    assert!(kernels.len() > 3, "{kernels:?}");
    for row in kernels.iter().filter(|row| row["kernel"] == "linear") {
        let [limit, flops, copy] = ["limit", "flops", "copy"].map(|peak| row[format!("part_of_{peak}")].as_f64());
        assert!(limit > Some(0.0) && limit.is_some_and(|limit| Some(limit) >= flops && Some(limit) >= copy), "{row}");
    }
    let network = &rows("networks")[0];
    assert!(network["whole_us"].as_f64().is_some_and(|us| us > 0.0), "{network}");
    assert!(network["fewest_steps"].as_u64() <= network["steps"].as_u64(), "{network}");
    let picture = &rows("pictures")[0];
    assert!(picture["weight_bytes"].as_u64().is_some_and(|bytes| bytes > 10_000_000), "{picture}");
    let start = &rows("starts")[0];
    assert!(start["cold"]["seconds"].is_f64() && start["warm"]["seconds"].is_f64(), "{start}");
    assert!(rows("peers").is_empty(), "peers that are not there were timed");
    let left_out: Vec<String> = rows("left_out").iter().map(|item| item["what"].to_string()).collect();
    for missing in ["f16", "kernels of burn", "kernels of candle", "networks of peers"] {
        assert!(left_out.iter().any(|what| what.contains(missing)), "{missing} is not named in {left_out:?}");
    }

    let table = fs::read_to_string(markdown).expect("the table reads");
    assert_eq!(text(&done.stdout), table, "what is printed is the table and nothing else");
    for words in ["% of the limit", "## Left out", "steps (at least)", "not built: `cargo build --release`"] {
        assert!(table.contains(words), "no {words} in:\n{table}");
    }

    // A second run is refused before it measures anything, and the record is not overwritten.
    let before = fs::read(json).expect("the record reads");
    assert!(failure(&quick).contains("is there already"), "a record was about to be written over");
    assert_eq!(fs::read(json).expect("the record reads"), before, "the record was written over");
}

/// A wrong result is an error of the whole run, after everything else was measured and recorded.
#[test]
#[cfg(unix)]
fn a_run_with_a_wrong_kernel_fails_and_writes_its_record() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let (script, records) = (folder.path().join("program"), folder.path().join("records"));
    let real = program().get_program().to_str().expect("the path is UTF-8").to_owned();
    let wrong = "case $* in bench\\ add\\ linear\\ *) echo 'error: wrong results: linear' >&2; exit 1;; esac";
    fs::write(&script, format!("#!/bin/sh\n'{real}' \"$@\" || exit $?\n{wrong}\n")).expect("the script is written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("the script is executable");
    let (script, out) = (arg(&script), arg(&records));
    let quick = ["--quick", "--no-peers", "--device", "cpu", "--minutes", "0.5", "--out", out, "--program", script];
    let done = harness(&quick);
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().last(), Some("error: kernels, f32: wrong results: linear"), "{said}");
    for words in
        ["part of kernels, f32: wrong results: linear", "| linear |", "one evaluation", "first picture on disk"]
    {
        assert!(text(&done.stdout).contains(words), "no {words} in:\n{}", text(&done.stdout));
    }
    let written = fs::read_dir(&records).expect("the folder reads").flatten().map(|device| device.path());
    assert_eq!(written.flat_map(fs::read_dir).flatten().count(), 3, "the record is not there: {said}");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    for (arguments, named) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["--minutes", "0"], "--minutes"),
        (&["--minutes", "soon"], "--minutes"),
        (&["--program", "no-such-program"], "no-such-program"),
        (&["--device", "no-such-adapter", "--out", "/nonexistent"], "no-such-adapter"),
    ] {
        let message = failure(arguments);
        assert!(message.contains(named), "{arguments:?}: {message}");
    }
}

#[test]
fn the_scripts_own_tests_pass() {
    let mut command = Command::new("python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(benches());
    let done = command.args(["-m", "unittest", "harness.tests"]).output().expect("Python 3 is installed as python3");
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn a_plan_moves_at_least_the_fewest_bytes() {
    let done = run(&["plan", "--preset", "mobilediffusion", "--json"]);
    let plan: Value = serde_json::from_slice(&done.stdout).expect("the plan is JSON");
    for network in plan["networks"].as_array().expect("networks") {
        let [steps, fewest] = ["steps", "fewest_steps"].map(|key| network[key].as_u64().expect("a count"));
        assert!(0 < fewest && fewest < steps, "{steps} steps, at least {fewest}");
        let memory = network["memory"].as_array().expect("storage types");
        let storages = memory.iter().map(|storage| storage["storage"].as_str().expect("a name"));
        assert_eq!(
            storages.collect::<Vec<_>>(),
            ["f32", "f32 with f16 weights", "f16", "f32 with int8 weights", "f16 with int8 weights"],
            "`benches/run` looks for these"
        );
        let bytes = |i: usize, key: &str| memory[i][key].as_f64().expect("bytes");
        for i in 0..memory.len() {
            let (moved, fewest) = (bytes(i, "bytes_moved"), bytes(i, "fewest_bytes_moved"));
            let weights = bytes(i, "weight_bytes");
            assert!(weights <= fewest && fewest < moved, "{}: {fewest} of {moved}", network["name"]);
        }
        let halved = bytes(2, "fewest_bytes_moved") / bytes(0, "fewest_bytes_moved");
        assert!((0.49..0.6).contains(&halved), "{}: f16 moves {halved} of f32", network["name"]);
    }
}

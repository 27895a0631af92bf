//! Settings that are refused, by name and before any work.

use crate::is_empty;
use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::{arg, failure, generate, program, run, stderr};

#[test]
fn a_setting_that_no_picture_has_is_named() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let wrong = [
        ("--size", "50", "size: "),
        ("--size", "0", "size: "),
        ("--width", "50", "width: "),
        ("--steps", "0", "steps"),
    ];
    for (flag, value, named) in wrong.into_iter().chain([("--guidance", "NaN", "guidance")]) {
        let message = failure(&generate("red apple", &output, &[flag, value]));
        assert!(message.contains(named), "{flag} {value}: {message}");
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn a_size_beyond_the_largest_is_refused_by_every_command() {
    let sizes: [&[&str]; 4] = [
        &["plan", "--size", "4294967296"],
        &["info", "--size", "8224"],
        &["check", "--plan", "unet", "--device", "cpu", "--size", "99999968"],
        &["bench", "--plan", "decoder", "--device", "cpu", "--size", "18446744073709551584"],
    ];
    for args in sizes {
        // Some commands print the device before the error.
        let done = run(args);
        let said = stderr(&done);
        let last = said.lines().last().unwrap_or("").to_owned();
        assert_eq!(done.status.code(), Some(1), "{args:?}: {said}");
        assert!(last.starts_with("error: size: expected at most 8192 pixels, found "), "{args:?}: {said}");
    }
}

#[test]
fn an_option_that_is_no_whole_number_says_so() {
    for (flag, value) in [("--seed", "-1"), ("--seed", "18446744073709551616"), ("--steps", "x"), ("--size", "1.5")] {
        let done = run(&["generate", "sun", "-o", "x.png", flag, value]);
        let said = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{flag} {value}: {said}");
        assert!(said.contains(flag) && said.contains("expected a whole number of 0 to 2^64 - 1"), "{said}");
    }
    let message = failure(&run(&["bench", "--picture", "--device", "cpu", "--batch", "2000"]));
    assert_eq!(message, "batch: expected at most 1000 pictures, found 2000");
    for command in [&["plan"][..], &["info"], &["bench", "--picture", "--device", "cpu"]] {
        let message = failure(&run(&[command, &["--size", "0"]].concat()));
        assert!(message.starts_with("size: expected"), "{command:?}: {message}");
    }
}

#[test]
#[cfg(unix)]
fn a_prompt_that_is_not_utf8_is_named() {
    let latin: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9");
    for (args, named) in [(&["generate"][..], "<PROMPT>"), (&["generate", "sun", "--negative"], "--negative")] {
        let said = stderr(&program().args(args).arg(latin).args(["-o", "x.png"]).output().expect("it starts"));
        assert!(said.contains(named) && said.contains("caf\u{fffd}") && said.contains("expected UTF-8"), "{said}");
    }
}

#[test]
fn an_impossible_guidance_is_refused_by_commands_that_draw_nothing() {
    for guidance in ["nan", "-5"] {
        let commands: [&[&str]; 3] = [
            &["plan"],
            &["bench", "--plan", "unet", "--quick", "--device", "cpu"],
            &["bench", "--picture", "--quick", "--device", "cpu"],
        ];
        for command in commands {
            let message = failure(&run(&[command, &["--guidance", guidance]].concat()));
            assert!(message.starts_with("guidance: expected"), "{command:?}: {message}");
        }
    }
}

#[test]
fn a_refused_request_creates_no_folder_for_previews() {
    let folder = folder();
    let output = folder.path().join("x.png");
    failure(&generate("sun", &output, &["--steps", "0", "--preview", arg(&folder.path().join("previews"))]));
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn a_folder_for_previews_in_the_place_of_a_picture_is_refused_before_the_work() {
    let folder = folder();
    let at = |name: &str| format!("{}/{name}", folder.path().display());
    let several = ["--count", "2", "--seed", "7"];
    for (output, previews, more) in [
        ("x.png", "x.png", &[][..]),
        ("x.png", "./x.png", &[]),
        ("./x.png", "x.png/", &[]),
        ("x.png", "x.png/a/b", &[]),
        ("x.png", "absent/../x.png", &[]),
        ("x.png", "x-8.png/a", &several),
    ] {
        // The model does not exist either, but the output is checked first.
        let previews = at(previews);
        let more = [&["--model", "no-such-model", "--preview", &previews], more].concat();
        let message = failure(&generate("sun", at(output).as_ref(), &more));
        assert!(message.contains("expected a folder for previews, found"), "{output}, {previews}: {message}");
    }
    // Names are those of the current folder, however they are written.
    let mut relative = program();
    relative.current_dir(folder.path()).args(["generate", "sun", "--model", "no-such-model", "-o", "x.png"]);
    relative.args(["--preview", &at("x.png")]);
    let message = failure(&relative.output().expect("it starts"));
    assert!(message.contains("expected a folder for previews, found"), "{message}");
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn values_beyond_all_bounds_are_refused_before_an_initial_picture_is_scaled_or_a_file_is_named() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let init = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/apple.png");
    let beyond = [
        ("--size", "4294967295", "at most 8192 pixels"),
        ("--height", "8193", "at most 8192 pixels"),
        ("--count", "18446744073709551615", "at most 1000 pictures"),
        ("--batch", "0", "batch: expected at least 1 picture"),
        ("--batch", "18446744073709551615", "batch: expected at most 1000 pictures"),
    ];
    for (flag, value, named) in beyond {
        for more in [&[][..], &["--init", init]] {
            let message = failure(&generate("red apple", &output, &[&[flag, value], more].concat()));
            assert!(message.contains(named), "{flag} {value} {more:?}: {message}");
        }
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn halves_on_the_cpu_are_refused_by_every_command() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let commands: [&[&str]; 6] = [
        &["generate", "red apple", "-o", arg(&output)],
        &["check"],
        &["bench", "add"],
        &["bench", "--tune"],
        &["bench", "--plan"],
        &["bench", "--picture"],
    ];
    for command in commands {
        let done = run(&[command, &["--device", "cpu", "--dtype", "f16"]].concat());
        assert_eq!(failure(&done), "dtype: expected f32 on the CPU device, found f16", "{command:?}");
        assert!(done.stdout.is_empty(), "{command:?} began before it refused");
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn numbers_of_threads_that_no_machine_has_are_refused() {
    let with = |value: &str| {
        let mut program = program();
        program.args(["completions", "bash"]).env("RAYON_NUM_THREADS", value);
        program.output().expect("the program starts")
    };
    for value in ["1000000", "1025", "-1", "two"] {
        let expected = "RAYON_NUM_THREADS: expected a number from 1 to 1024, or 0 for as many as there are processors";
        assert_eq!(failure(&with(value)), format!("{expected}, found {value}"));
    }
    assert!(["0", "3", ""].iter().all(|value| with(value).status.success()), "these are right");
}

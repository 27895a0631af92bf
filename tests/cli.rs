//! Errors of the command line: messages, exit codes, and that nothing is left behind. The program must have been built.

#[path = "cli/settings.rs"]
mod settings;

use mobilediffusion_tests::checkpoints::{bundled, spoiled};
use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::{arg, copy_all, draw, failure, generate, lines_of_devices, program, run, stderr};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("the folder reads").next().is_none()
}

#[test]
fn listing_devices_says_nothing_on_standard_error() {
    // Mesa's device-selection layer complains there where there is no desktop session, unless it is told not to.
    let mut devices = program();
    devices.arg("devices").env_remove("XDG_RUNTIME_DIR").env_remove("NODEVICE_SELECT");
    let done = devices.output().expect("the program starts");
    assert!(done.status.success() && done.stderr.is_empty(), "{}", stderr(&done));
}

#[test]
fn a_wrong_command_line_exits_with_two() {
    let wrong: &[&[&str]] = &[
        &["--no-such-flag"],
        &["generate", "red apple"],
        &["generate", "red apple", "-o", "x.png", "--no-such-flag"],
        &["generate", "red apple", "-o", "x.png", "--preset", "mini", "--weights", "random:no"],
        &["generate", "red apple", "-o", "x.png", "--mask", "mask.png"],
        &["generate", "red apple", "-o", "x.png", "--size", "64", "--width", "64"],
        &["completions", "no-such-shell"],
        &["info", "--preset", "no-such-preset"],
        &["bench", "--weights-dtype", "int4"],
        // Options that would have no effect.
        &["check", "--preset", "mini"],
        &["check", "--model", "mini", "--kernel", "add"],
        &["check", "tests/data/onnx", "--size", "64"],
        &["bench", "add", "--preset", "mini"],
        &["bench", "--model", "mini"],
        &["bench", "--resolution", "64"],
        &["bench", "--guidance", "3"],
        &["bench", "--tune", "--size", "64"],
        &["bench", "--tune", "--picture"],
        &["plan", "--list", "--json"],
        &["plan", "--json", "--device", "gpu"],
        // Negative numbers are values, and are named as such.
        &["generate", "red apple", "-o", "x.png", "--size", "-32"],
        &["generate", "red apple", "-o", "x.png", "--seed", "-1"],
        &["info", "--weights-dtype", "int8", "--size", "64"],
    ];
    for args in wrong {
        let done = run(args);
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", stderr(&done));
        assert!(done.stdout.is_empty(), "{args:?}: something was done before the error");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_work() {
    let folder = folder();
    let plain = folder.path().join("plain");
    fs::write(&plain, "a file").expect("the file is written");
    let mut targets = vec![folder.path().join("missing/x.png"), folder.path().to_owned(), plain.join("x.png")];
    targets.extend(["x.jpg", "x", "y/", "plain/"].map(|name| folder.path().join(name)));
    // Not even the superuser makes files there.
    targets.extend(cfg!(target_os = "linux").then(|| PathBuf::from("/proc/x.png")));
    for target in targets {
        // The model does not exist either, but the output is checked first.
        let message = failure(&generate("red apple", &target, &["--model", "no-such-model"]));
        assert!(message.starts_with("cannot write ") && message.contains(arg(&target)), "{message}");
    }
    // Numbers may be written over, and to devices that are no files.
    for target in [folder.path().to_owned(), folder.path().join("missing/x.json"), plain.join("x.json")] {
        let target = arg(&target);
        let done = run(&["bench", "add", "--device", "no-such-adapter", "--json", target]);
        let message = failure(&done);
        assert!(message.starts_with("cannot write ") && message.contains(target), "{message}");
        assert!(done.stdout.is_empty(), "{target}: a device was opened before it was refused");
    }
    let several = |output: &str| {
        let args = ["generate", "sun", "--count", "2", "--model", "no-such-model", "-o", output];
        failure(&run(&args))
    };
    for (name, reason) in [
        ("x.png/", "expected the name of a file, found a folder"),
        (".", "expected the name of a file, found a folder"),
        ("plain/x.png", "plain is not a folder"),
        ("plain/y/x.png", "plain is not a folder"),
        ("missing/x.png", "missing does not exist"),
    ] {
        let output = if name == "." { name.to_owned() } else { format!("{}/{name}", folder.path().display()) };
        let message = several(&output);
        assert!(message.starts_with("cannot write ") && message.ends_with(reason), "{name}: {message}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder reads").count(), 1, "something was left behind");
}

#[test]
#[cfg(target_os = "linux")]
fn file_names_may_be_as_long_as_the_system_takes() {
    let folder = folder();
    for (length, fits) in [(255, true), (256, false)] {
        let output = folder.path().join(format!("{}.png", "x".repeat(length - 4)));
        // The output is checked before the model, which does not exist.
        let message = failure(&generate("sun", &output, &["--model", "no-such-model"]));
        assert_eq!(message.contains("no-such-model"), fits, "{length} bytes: {message}");
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
#[cfg(unix)]
fn what_another_run_left_behind_is_in_nobodys_way() {
    let folder = folder();
    // The program in place of the shell has its number, as every program of a container may have the number 1.
    let script = r#"touch "$0/.$$.probe"; exec "$@""#;
    let output = folder.path().join("x.png");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).arg(folder.path()).arg(program().get_program());
    shell.args(["generate", "sun", "-o", arg(&output), "--model", "no-such-model"]);
    // The output is checked before the model, which does not exist.
    let message = failure(&shell.output().expect("there is a shell"));
    assert!(message.contains("no-such-model"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder reads").count(), 1, "something was left behind");
}

#[test]
fn a_picture_without_texts_is_refused() {
    let folder = folder();
    let file = folder.path().join("plain.png");
    image::RgbaImage::new(4, 4).save(&file).expect("the picture is written");
    for more in [&[][..], &["--json"]] {
        let done = run(&[&["show", arg(&file)], more].concat());
        let message = failure(&done);
        assert!(message.contains("found a picture without texts") && done.stdout.is_empty(), "{more:?}: {message}");
    }
}

#[test]
#[cfg(unix)]
fn pipes_and_links_are_not_overwritten() {
    let folder = folder();
    let [file, pipe, link, lost] =
        ["file.png", "pipe.png", "link.png", "lost.png"].map(|name| folder.path().join(name));
    fs::write(&file, "precious").expect("the file is written");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("there is mkfifo");
    assert!(made.success(), "no pipe was made");
    std::os::unix::fs::symlink(&file, &link).expect("the link is made");
    std::os::unix::fs::symlink(folder.path().join("nowhere"), &lost).expect("the link is made");
    for output in [&pipe, &link, &lost] {
        let message = failure(&generate("sun", output, &["--force"]));
        assert!(message.contains(arg(output)) && message.contains("expected a file or nothing"), "{message}");
    }
    assert_eq!(fs::read(&link).expect("it reads"), b"precious");
    // A pipe in place of a weights file is refused as well, instead of waiting for data.
    let model = folder.path().join("model");
    copy_all(&bundled(), &model);
    let weights = model.join("unet/model.safetensors");
    fs::remove_file(&weights).and_then(|()| fs::rename(&pipe, &weights)).expect("the folder can be written to");
    let message = failure(&generate("sun", &folder.path().join("x.png"), &["--model", arg(&model)]));
    assert!(message.contains("unet") && message.contains("expected a file, found"), "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn file_names_need_not_be_utf8_and_errors_escape_control_characters() {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder();
    let output = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff.png"));
    let mut odd = program();
    odd.args(["generate", "sun", "--device", "cpu", "--json", "-o"]).arg(&output);
    let done = odd.output().expect("it starts");
    assert!(done.status.success() && output.is_file(), "{}", stderr(&done));
    let message = failure(&run(&["info", "--model", "no\u{1b}[31msuch"]));
    assert!(message.contains("no\\u001b[31msuch"), "{message}");
}

#[test]
fn texts_of_files_do_not_act_on_the_terminal() {
    let folder = folder();
    let model = folder.path().join("model");
    copy_all(&bundled(), &model);
    let file = model.join("model.json");
    let text = fs::read_to_string(&file).expect("it reads");
    let odd = r#""name": "a\u001b[31mb\u202ec\nd\u009be", "x": "#;
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let name: serde_json::Value = serde_json::from_str(&format!("{{{odd} 0}}")).expect("it is JSON");
    value["name"] = name["name"].clone();
    fs::write(&file, value.to_string()).expect("it is written");
    let (model, output) = (model.to_str().expect("UTF-8"), folder.path().join("x\u{202e}.png"));
    let output = output.to_str().expect("UTF-8");
    let shown = "a\\u001b[31mb\\u202ec\\u000ad\\u009be";
    let drawn = run(&["generate", "sun", "--device", "cpu", "--size", "32", "--model", model, "-o", output, "--json"]);
    let said = stderr(&drawn);
    assert!(said.contains(shown) && said.contains("x\\u202e.png"), "{said}");
    let told: serde_json::Value = serde_json::from_slice(&drawn.stdout).expect("it is JSON still");
    assert_eq!(told["settings"]["model"], value["name"], "JSON holds the name itself");
    let info = run(&["info", "--model", model]);
    assert!(String::from_utf8_lossy(&info.stdout).starts_with(shown), "the name is shown otherwise");
    let listed = run(&["plan", "--model", model]);
    for done in [drawn, info, listed, run(&["show", output])] {
        let all = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).expect("it is UTF-8")).concat();
        let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!all.is_empty() && !all.contains(acts), "{all:?}");
    }
}

#[test]
#[cfg(unix)]
fn what_is_read_must_be_a_file() {
    let folder = folder();
    let [model, pipe] = ["model", "pipe"].map(|name| folder.path().join(name));
    copy_all(&bundled(), &model);
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("there is mkfifo");
    assert!(made.success(), "no pipe was made");
    let config = model.join("scheduler/config.json");
    fs::remove_file(&config).expect("it can be removed");
    std::os::unix::fs::symlink("/dev/zero", &config).expect("it can be made");
    let (model, output) = (model.to_str().expect("UTF-8"), folder.path().join("x.png"));
    let (pipe, output) = (pipe.to_str().expect("UTF-8"), output.to_str().expect("UTF-8"));
    let draw = ["generate", "sun", "--device", "cpu", "-o", output];
    let apple = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/apple.png");
    let commands: [&[&str]; 4] = [
        &["info", "--model", model],
        &["show", pipe],
        &[&draw[..], &["--init", pipe]].concat(),
        &[&draw[..], &["--init", apple, "--mask", pipe]].concat(),
    ];
    for command in commands {
        let message = failure(&run(command));
        assert!(message.ends_with("expected a file, found a folder, pipe or device"), "{command:?}: {message}");
    }
    let long = folder.path().join("long");
    fs::File::create(&long).and_then(|file| file.set_len(1 << 31)).expect("the file has holes");
    let done = run(&["check", "--device", "cpu", "/dev/zero", arg(&long)]);
    let rows = String::from_utf8(done.stdout).expect("it is UTF-8");
    assert!(rows.contains("ERROR  /dev/zero: expected a file, found"), "{rows}");
    assert!(rows.contains("long: expected at most 1073741824 bytes, found 2147483648"), "{rows}");
}

#[test]
fn a_missing_model_is_named() {
    let folder = folder();
    let message = failure(&generate("red apple", &folder.path().join("x.png"), &["--model", "no-such-model"]));
    assert!(message.contains("no-such-model"), "{message}");
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn a_file_of_a_model_is_its_model_json() {
    let folder = folder();
    let other = folder.path().join("other.json");
    fs::copy(bundled().join("model.json"), &other).expect("it is copied");
    let message = failure(&run(&["info", "--model", arg(&other)]));
    assert!(message.contains("other.json: --model: expected a folder or a file called model.json"), "{message}");
    #[cfg(unix)]
    {
        let message = failure(&run(&["info", "--model", "/dev/null"]));
        assert!(message.contains("/dev/null: --model: expected a folder or a file called model.json"), "{message}");
    }
    let own = bundled().join("model.json");
    assert!(run(&["info", "--model", arg(&own)]).status.success(), "its own file is the model");
    draw("sun", &folder.path().join("x.png"), &["--size", "32", "--model", arg(&own)]);
    let named = generate("sun", &folder.path().join("y.png"), &["--model", "mobilediffusion"]);
    assert!(failure(&named).contains("`--preset` selects a built-in architecture"), "{}", stderr(&named));
}

#[test]
fn a_request_that_needs_the_missing_base_is_refused_in_its_words() {
    let folder = folder();
    let model = folder.path().join("model");
    copy_all(&bundled(), &model);
    fs::remove_dir_all(model.join("unet_base")).expect("it can be removed");
    let output = folder.path().join("x.png");
    let draw =
        |more: &[&str]| generate("red apple", &output, &[&["--model", arg(&model), "--size", "32"], more].concat());
    for more in [["--steps", "20"], ["--guidance", "2"], ["--negative", "blue"], ["--eta", "0.5"]] {
        let message = failure(&draw(&more));
        let expected = "guidance, a negative prompt, an eta and more steps than one-step sampling takes need";
        assert!(message.contains(expected) && message.contains("unet_base"), "{more:?}: {message}");
    }
    assert!(draw(&[]).status.success(), "one step does not need it");
}

#[test]
fn weights_that_are_not_numbers_or_too_large_are_named() {
    let folder = folder();
    let name = "decoder.conv_in.weight";
    spoiled(folder.path(), ("decoder", name), f32::INFINITY);
    let output = folder.path().join("x.png");
    let draw = &["generate", "sun", "--device", "cpu", "-o", arg(&output)][..];
    for command in [draw, &["bench", "--device", "cpu", "--plan", "decoder"], &["info", "--weights-dtype", "int8"]] {
        let done = run(&[command, &["--model", arg(folder.path())]].concat());
        let said = stderr(&done);
        assert!(
            done.status.code() == Some(1) && said.contains(&format!("{name} holds a NaN or an infinity")),
            "{said}"
        );
    }
    assert!(!output.exists(), "a picture of infinities");
    spoiled(folder.path(), ("decoder", name), 70_000.0);
    let message = failure(&run(&["info", "--weights-dtype", "f16", "--model", arg(folder.path())]));
    let expected = format!("{name}: expected values from -65504 to 65504, which f16 holds, found 70000 among them");
    assert!(message.contains("decoder: ") && message.contains(&expected), "{message}");
}

#[test]
fn cut_weights_are_named() {
    let folder = folder();
    let model = folder.path().join("model");
    copy_all(&bundled(), &model);
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("the folder is made");
    for part in ["unet", "decoder", "text_encoder"] {
        let weights = model.join(part).join("model.safetensors");
        let whole = fs::read(&weights).expect("the weights read");
        for length in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&weights, &whole[..length]).expect("the weights are cut");
            let message = failure(&generate("red apple", &out.join("x.png"), &["--model", arg(&model)]));
            assert!(message.contains(part), "cut to {length} bytes: {message}");
        }
        fs::write(&weights, &whole).expect("the weights are whole again");
    }
    assert!(is_empty(&out), "something was left behind");
}

#[test]
#[cfg(not(any(target_os = "macos", target_os = "windows")))]
fn a_missing_gpu_is_an_error_only_if_asked_for() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let with = |device: &str| {
        let hidden = [("VK_ICD_FILENAMES", "/nonexistent"), ("VK_DRIVER_FILES", "/nonexistent")];
        let mut program = program();
        program.envs(hidden).args(["generate", "red apple", "--device", device, "-o"]).arg(&output);
        program.output().expect("the program starts")
    };
    for device in ["gpu", "no-such-adapter", "7"] {
        let message = failure(&with(device));
        assert!(message.contains("found none"), "{message}");
        assert!(is_empty(folder.path()), "something was left behind");
    }
    let done = with("auto");
    assert!(done.status.success() && stderr(&done).contains("device: CPU"), "{}", stderr(&done));
}

#[test]
fn listing_variants_needs_a_gpu() {
    let message = failure(&run(&["plan", "--list", "--device", "cpu"]));
    assert!(message.contains("expected a GPU, found the CPU"), "{message}");
    let message = failure(&run(&["plan", "--list", "--device", "no-such-adapter"]));
    assert!(message.contains("no-such-adapter"), "{message}");
    let message = failure(&run(&["check", "--kernel", "add", "--every-variant", "--device", "cpu"]));
    assert!(message.starts_with("--every-variant: expected a GPU, found the CPU"), "{message}");
}

#[test]
fn nobody_is_told_of_a_pipe_that_was_closed() {
    let mut plan = program();
    plan.args(["plan", "--preset", "mobilediffusion", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = plan.spawn().expect("the program starts");
    let mut line = String::new();
    let output = running.stdout.take().expect("it is piped");
    // More than a pipe holds, so that the program still writes when the reader is gone.
    BufReader::with_capacity(16, output).read_line(&mut line).expect("a line arrives");
    let done = running.wait_with_output().expect("it ends");
    assert!(done.status.success() && done.stderr.is_empty(), "after {line}: {}", stderr(&done));
}

#[test]
fn devices_end_with_the_cpu_and_the_one_that_auto_takes() {
    let list = lines_of_devices();
    assert!(list.iter().any(|line| line.starts_with("[cpu] ")), "{list:?}");
    assert!(list.last().is_some_and(|line| line.starts_with("auto takes [")), "{list:?}");
}

#[test]
fn commands_that_only_tell_succeed_and_print_something() {
    for args in [
        &["info", "--preset", "mobilediffusion"][..],
        &["plan", "--list"],
        &["--help"],
        &["generate", "--help"],
        &["golden", "--help"],
        &["completions", "bash"],
    ] {
        let done = run(args);
        assert!(done.status.success() && !done.stdout.is_empty(), "{args:?}: {}", stderr(&done));
    }
}

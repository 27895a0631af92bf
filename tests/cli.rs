//! The program as a person runs it: exit codes, messages and files.
//!
//! Needs the binary beside this one: `cargo build --release` comes before `cargo test --release` in `tests/run`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program, beside the folder this test was built into.
fn program() -> Command {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in deps");
    let program = folder.join(format!("mobilediffusion{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "there is no {}: run `cargo build --release` before", program.display());
    Command::new(program)
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().expect("the program starts")
}

/// Draws into `output` and returns what was said.
fn draw(prompt: &str, output: &Path, more: &[&str]) -> String {
    let output = output.to_str().expect("the path is UTF-8");
    let mut args = vec!["generate", prompt, "-o", output];
    args.extend(more);
    let done = run(&args);
    assert!(done.status.success(), "{args:?}: {}", stderr(&done));
    stderr(&done)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

/// The one line of a failure with exit code 1.
fn failure(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "expected one line: {text}");
    text.trim_end().strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("the folder reads").next().is_none()
}

fn pixels(path: &Path) -> image::RgbaImage {
    image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgba8()
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/checkpoints/tiny")
}

fn copy_all(from: &Path, to: &Path) {
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

#[test]
fn listing_devices_says_nothing_on_standard_error() {
    // Mesa's device-selection layer complains there where there is no desktop session, unless it is told not to.
    let done = program().arg("devices").env_remove("XDG_RUNTIME_DIR").output().expect("the program starts");
    assert!(done.status.success() && done.stderr.is_empty(), "{}", stderr(&done));
}

#[test]
fn a_one_step_model_samples_by_ddim_when_more_steps_are_asked_for() {
    let folder = folder();
    let path = folder.path().join("ddim.png");
    let said = draw("sun", &path, &["--device", "cpu", "--steps", "8"]);
    assert!(said.contains("8 steps, guidance 3"), "{said}");
    assert!(path.is_file(), "the picture is there");
}

#[test]
fn a_wrong_command_line_exits_with_two() {
    let wrong: [&[&str]; 5] = [
        &["--no-such-flag"],
        &["generate", "red apple"],
        &["generate", "red apple", "-o", "x.png", "--no-such-flag"],
        &["generate", "red apple", "-o", "x.png", "--preset", "tiny", "--weights", "zeros"],
        &["info", "--preset", "no-such-preset"],
    ];
    for args in wrong {
        let done = run(args);
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", stderr(&done));
    }
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_work() {
    let folder = folder();
    let plain = folder.path().join("plain");
    fs::write(&plain, "a file").expect("the file is written");
    let mut targets = vec![folder.path().join("missing/x.png"), folder.path().to_owned(), plain.join("x.png")];
    // Not even the superuser makes files there.
    targets.extend(cfg!(target_os = "linux").then(|| PathBuf::from("/proc/x.png")));
    for target in targets {
        let target = target.to_str().expect("the path is UTF-8");
        // The model does not exist: the output is looked at first.
        let message = failure(&run(&["generate", "red apple", "-o", target, "--model", "no-such-model"]));
        assert!(message.starts_with("cannot write ") && message.contains(target), "{message}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder reads").count(), 1, "something was left behind");
}

#[test]
fn a_missing_model_is_named() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let output = output.to_str().expect("the path is UTF-8");
    let message = failure(&run(&["generate", "red apple", "-o", output, "--model", "no-such-model"]));
    assert!(message.contains("no-such-model"), "{message}");
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn cut_weights_are_named() {
    let folder = folder();
    let model = folder.path().join("model");
    copy_all(&checkpoint(), &model);
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("the folder is made");
    for part in ["unet", "decoder", "text_encoder"] {
        let weights = model.join(part).join("model.safetensors");
        let whole = fs::read(&weights).expect("the weights read");
        for length in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&weights, &whole[..length]).expect("the weights are cut");
            let (model, output) = (model.to_str().expect("UTF-8"), out.join("x.png"));
            let output = output.to_str().expect("UTF-8");
            let done = run(&["generate", "red apple", "-o", output, "--model", model, "--device", "cpu"]);
            let message = failure(&done);
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
        assert!(message.contains("found: none"), "{message}");
        assert!(is_empty(folder.path()), "something was left behind");
    }
    let done = with("auto");
    assert!(done.status.success() && stderr(&done).contains("device: CPU"), "{}", stderr(&done));
}

#[test]
fn an_impossible_setting_is_named() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let output = output.to_str().expect("the path is UTF-8");
    let wrong =
        [("--size", "50", "50"), ("--size", "0", "0"), ("--steps", "0", "steps"), ("--guidance", "NaN", "guidance")];
    for (flag, value, named) in wrong {
        let message = failure(&run(&["generate", "red apple", "--device", "cpu", "-o", output, flag, value]));
        assert!(message.contains(named), "{flag} {value}: {message}");
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn any_prompt_draws() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let said = draw("\u{1f34e} \u{202e}elppa\u{7}", &output, &["--device", "cpu"]);
    assert!(!said.contains("warning"), "{said}");
    assert!(said.contains("device: CPU") && said.contains("seed 0") && said.contains("denoise"), "{said}");
    let size = pixels(&output).dimensions();
    assert_eq!(size, (64, 64), "the size of the model's own pictures");

    let said = draw(&"apple ".repeat(10_000), &output, &["--device", "cpu", "--seed", "3"]);
    let warning = said.lines().find(|line| line.starts_with("warning: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(warning.len() < 200, "{warning}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder reads").count(), 1, "something was left behind");
}

#[test]
fn an_empty_prompt_is_refused() {
    let folder = folder();
    let output = folder.path().join("x.png");
    for prompt in ["", "   "] {
        let output = output.to_str().expect("the path is UTF-8");
        let message = failure(&run(&["generate", prompt, "-o", output, "--device", "cpu"]));
        assert!(message.starts_with("the prompt is empty"), "{message}");
    }
    assert!(is_empty(folder.path()), "something was left behind");
}

#[test]
fn a_seed_is_a_picture() {
    let folder = folder();
    let [first, again, other] = ["first.png", "again.png", "other.png"].map(|name| folder.path().join(name));
    draw("red apple", &first, &["--device", "cpu", "--seed", "7"]);
    draw("red apple", &again, &["--device", "cpu", "--seed", "7"]);
    draw("red apple", &other, &["--device", "cpu", "--seed", "8"]);
    assert!(fs::read(&first).ok() == fs::read(&again).ok(), "the same seed gave another file");
    assert!(pixels(&first) != pixels(&other), "another seed gave the same picture");
}

#[test]
fn synthetic_weights_are_said_to_be_synthetic() {
    let folder = folder();
    let more = ["--device", "cpu", "--preset", "tiny", "--weights", "random:1", "--size", "32"];
    let said = draw("red apple", &folder.path().join("x.png"), &more);
    assert!(said.contains("weights are synthetic"), "{said}");
}

/// The list of devices, one line each.
fn devices() -> Vec<String> {
    let done = run(&["devices"]);
    assert!(done.status.success(), "{}", stderr(&done));
    String::from_utf8(done.stdout).expect("the list is UTF-8").lines().map(str::to_owned).collect()
}

#[test]
fn every_command_answers() {
    let list = devices();
    assert!(list.iter().any(|line| line.starts_with("[cpu] ")), "{list:?}");
    assert!(list.last().is_some_and(|line| line.starts_with("auto takes [")), "{list:?}");
    for args in
        [&["info", "--preset", "mobilediffusion"][..], &["plan", "--list"], &["--help"], &["generate", "--help"]]
    {
        let done = run(args);
        assert!(done.status.success() && !done.stdout.is_empty(), "{args:?}: {}", stderr(&done));
    }
}

#[expect(clippy::print_stderr, reason = "a figure for the README, or that a test did nothing")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[test]
fn gpu_and_cpu_draw_the_same() {
    if !devices().iter().any(|line| line.starts_with("[0] ")) {
        return say("skipped: there is no GPU adapter");
    }
    let folder = folder();
    // The prompts of the contact sheet, at its seed.
    let prompts =
        "red apple,sun,cat face,pizza,airplane,green frog,umbrella,rocket,rainbow,soccer ball,red heart,snowman";
    let mut worst = f64::INFINITY;
    for prompt in prompts.split(',') {
        let [cpu, gpu] = ["cpu", "gpu"].map(|device| {
            let path = folder.path().join(device).with_extension("png");
            draw(prompt, &path, &["--device", device]);
            pixels(&path)
        });
        let squares = cpu.iter().zip(gpu.iter()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let mean = squares.sum::<f64>() / (cpu.len() as f64);
        let psnr = 10.0 * (255.0 * 255.0 / mean.max(1e-12)).log10();
        assert!(psnr >= 35.0, "{prompt}: the pictures differ: PSNR {psnr:.1} dB");
        worst = worst.min(psnr);
    }
    say(&format!("CPU against GPU, the worst of twelve prompts: PSNR {worst:.1} dB"));
}

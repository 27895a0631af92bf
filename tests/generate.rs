//! `generate` and `show`: pictures, files and messages. The program must have been built.

#[path = "generate/facts.rs"]
mod facts;
#[path = "generate/initial.rs"]
mod initial;

use facts::shown;
use mobilediffusion_tests::checkpoints::bundled;
use mobilediffusion_tests::program::{arg, draw, failure, generate, lines_of_devices, program, run, stderr};
use mobilediffusion_tests::{folder, psnr};
use std::fs;
use std::path::Path;

fn pixels(path: &Path) -> image::RgbaImage {
    image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgba8()
}

#[test]
fn a_one_step_model_samples_by_ddim_when_more_steps_are_asked_for() {
    let folder = folder();
    let path = folder.path().join("ddim.png");
    let said = draw("sun", &path, &["--steps", "8"]);
    assert!(said.contains("8 steps, guidance 3"), "{said}");
    assert!(path.is_file(), "the picture is there");
}

#[test]
fn a_prompt_that_is_too_long_is_reported_in_a_short_line() {
    let folder = folder();
    let output = folder.path().join("x.png");
    let said = draw("\u{1f34e} \u{202e}elppa\u{7}", &output, &[]);
    assert!(!said.contains("warning"), "{said}");
    assert!(said.contains("device: CPU") && said.contains("seed 0") && said.contains("denoise"), "{said}");
    assert_eq!(pixels(&output).dimensions(), (64, 64), "the size of the model's own pictures");
    let said = draw(&"apple ".repeat(10_000), &output, &["--seed", "3", "--force"]);
    let warning = said.lines().find(|line| line.starts_with("warning: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(warning.len() < 200 && warning.contains("read up to `apple apple"), "{warning}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder reads").count(), 1, "something was left behind");
}

#[test]
fn auto_takes_the_device_that_the_list_of_devices_says() {
    let list = lines_of_devices();
    let taken = list.last().and_then(|line| line.strip_prefix("auto takes [")).expect("the last line says it");
    let (index, name) = taken.split_once("] ").unwrap_or(("cpu", ""));
    let folder = folder();
    let output = folder.path().join("x.png");
    let done = run(&["generate", "sun", "-o", arg(&output), "--device", "auto", "--size", "32"]);
    let said = stderr(&done);
    assert!(done.status.success(), "{said}");
    let device = said.lines().find_map(|line| line.strip_prefix("device: ")).unwrap_or_else(|| panic!("{said}"));
    let (begin, end) = match index {
        "cpu" => ("CPU, ".to_owned(), " (there is no hardware GPU)"),
        _ => (format!("{name} ("), " (the best GPU)"),
    };
    assert!(device.starts_with(&begin) && device.ends_with(end), "{taken}: {device}");
}

#[test]
fn a_seed_is_a_picture() {
    let folder = folder();
    let [first, again, other] = ["first.png", "again.png", "other.png"].map(|name| folder.path().join(name));
    draw("red apple", &first, &["--seed", "7"]);
    draw("red apple", &again, &["--seed", "7"]);
    draw("red apple", &other, &["--seed", "8"]);
    assert!(fs::read(&first).ok() == fs::read(&again).ok(), "the same seed gave another file");
    assert!(pixels(&first) != pixels(&other), "another seed gave the same picture");
}

#[test]
fn files_are_overwritten_only_by_force() {
    let folder = folder();
    let path = folder.path().join("x.png");
    fs::write(&path, "precious").expect("the file is written");
    let message = failure(&generate("sun", &path, &[]));
    assert!(message.contains("x.png") && message.contains("--force"), "{message}");
    assert_eq!(fs::read(&path).expect("it reads"), b"precious");
    draw("sun", &path, &["--force"]);
    assert_eq!(pixels(&path).dimensions(), (64, 64));
}

#[test]
fn several_pictures_are_files_or_a_sheet() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let said = draw("sun", &path("sun.png"), &["--count", "3", "--seed", "7"]);
    assert!(said.contains("3 files"), "{said}");
    draw("sun", &path("one.png"), &["--seed", "9"]);
    assert!(pixels(&path("sun-9.png")) == pixels(&path("one.png")), "a seed's picture does not depend on the others");
    draw("sun", &path("sheet.png"), &["--count", "3", "--grid", "--seed", "7"]);
    let sheet = pixels(&path("sheet.png"));
    assert_eq!(sheet.dimensions(), (128, 128));
    let third = image::imageops::crop_imm(&sheet, 0, 64, 64, 64).to_image();
    assert!(third == pixels(&path("one.png")), "the sheet's third picture");
    draw("sun", &path("sun.png"), &["--count", "3", "--batch", "2", "--seed", "7", "--force"]);
    assert!(pixels(&path("sun-9.png")) == pixels(&path("one.png")), "a batch of one");
    draw("sun", &path("one.png"), &["--seed", "8", "--force"]);
    let at_once = psnr(pixels(&path("sun-8.png")).as_raw(), pixels(&path("one.png")).as_raw());
    assert!(at_once > 60.0, "drawn with another at once: {at_once:.1} dB");
    let facts = shown(&path("sun-9.png"));
    assert!(!facts.contains_key("Batch"), "the last of three is drawn alone: {facts:?}");
    assert_eq!(shown(&path("sun-8.png"))["Batch"], "2");
    let mut names: Vec<String> = fs::read_dir(folder.path())
        .expect("the folder reads")
        .map(|entry| entry.expect("the entry reads").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["one.png", "sheet.png", "sun-7.png", "sun-8.png", "sun-9.png"]);
}

#[test]
fn a_negative_prompt_that_is_too_long_is_reported() {
    let folder = folder();
    let (path, long) = (folder.path().join("x.png"), "red ".repeat(200));
    let done = generate("sun", &path, &["--size", "32", "--steps", "5", "--json", "--negative", &long]);
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).expect("standard output is JSON");
    assert!(stderr(&done).contains("the negative prompt is too long"), "{}", stderr(&done));
    assert!(!stderr(&done).contains("the prompt is too long"), "{}", stderr(&done));
    let left_out = |key: &str| said[key].as_str().map(str::len);
    assert!(left_out("left_out").is_none() && left_out("left_out_of_negative").is_some_and(|len| len > 400), "{said}");
}

#[test]
fn a_picture_of_too_few_steps_has_no_folder_of_previews() {
    let folder = folder();
    let previews = folder.path().join("previews");
    let said = draw("sun", &folder.path().join("x.png"), &["--size", "32", "--preview", arg(&previews)]);
    assert!(said.contains("note: there are too few steps for a preview") && !previews.exists(), "{said}");
    // A tenth of ten steps is one.
    let init = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/apple.png");
    let more = ["--steps", "10", "--preview", arg(&previews), "--init", init];
    let said = draw("sun", &folder.path().join("y.png"), &[&more[..], &["--strength", "0.1"]].concat());
    assert!(said.contains("note: there are too few steps for a preview") && !previews.exists(), "{said}");
    draw("sun", &folder.path().join("z.png"), &[&more[..], &["--strength", "0.2"]].concat());
    assert_eq!(fs::read_dir(&previews).expect("the folder reads").count(), 1, "one preview before the second step");
}

#[test]
fn previews_are_files() {
    let folder = folder();
    let previews = folder.path().join("on/the/way");
    let more = ["--size", "32", "--steps", "7", "--preview", arg(&previews), "--preview-every", "3"];
    draw("sun", &folder.path().join("x.png"), &more);
    for name in ["0-003.png", "0-006.png"] {
        assert_eq!(pixels(&previews.join(name)).dimensions(), (32, 32));
    }
    assert_eq!(fs::read_dir(&previews).expect("the folder reads").count(), 2);

    // A preview of the second picture exists already: nothing is drawn.
    let more = [&more[..], &["--count", "2", "--seed", "7"]].concat();
    fs::write(previews.join("8-003.png"), "precious").expect("it is written");
    let output = folder.path().join("y.png");
    let done = generate("sun", &output, &more);
    assert!(!done.status.success() && stderr(&done).contains("8-003.png: it is there already"), "{}", stderr(&done));
    let exists = |name: &str| folder.path().join(name).exists() || previews.join(name).exists();
    assert!(!["y-7.png", "y-8.png", "7-003.png"].into_iter().any(exists), "something was drawn");

    let done = generate("sun", &output, &[&more[..], &["--json", "--force"]].concat());
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).expect("it is JSON");
    assert_eq!((said["previews"].as_array().map(Vec::len), said["count"].as_u64()), (Some(4), Some(2)), "{said}");
}

#[test]
fn a_preview_is_not_overwritten_by_a_picture() {
    let folder = folder();
    let previews = folder.path().join("previews");
    fs::create_dir(&previews).expect("the folder is made");
    let output = previews.join("0-003.png");
    let more = ["--size", "32", "--steps", "7", "--preview", arg(&previews), "--preview-every", "3"];
    for force in [&[][..], &["--force"]] {
        let message = failure(&generate("sun", &output, &[&more[..], force].concat()));
        assert!(message.contains("0-003.png: expected different files for a preview and a picture"), "{message}");
    }
    assert_eq!(fs::read_dir(&previews).expect("the folder reads").count(), 0, "something was drawn");
    // The seventh step is the picture itself, which has no preview.
    draw("sun", &previews.join("0-007.png"), &more);
    assert_eq!(fs::read_dir(&previews).expect("the folder reads").count(), 3);
}

#[test]
fn a_file_that_appears_while_a_picture_is_drawn_is_kept() {
    let folder = folder();
    let [output, previews] = ["x.png", "previews"].map(|name| folder.path().join(name));
    let mut drawing = program();
    drawing.args(["generate", "sun", "--device", "cpu", "--size", "32", "--steps", "400", "-o", arg(&output)]);
    drawing.args(["--preview", arg(&previews)]).stderr(std::process::Stdio::piped());
    let mut drawing = drawing.spawn().expect("the program starts");
    while drawing.try_wait().expect("it is ours").is_none() && !previews.join("0-001.png").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    fs::write(&output, "precious").expect("it is written");
    let done = drawing.wait_with_output().expect("it ends");
    let refused = !done.status.success() && stderr(&done).contains("x.png: it is there already");
    assert!(refused, "{}", stderr(&done));
    assert_eq!(fs::read(&output).expect("it reads"), b"precious");
}

#[test]
fn other_weights_fit_an_architecture() {
    let folder = folder();
    let [plain, preset] = ["plain.png", "preset.png"].map(|name| folder.path().join(name));
    draw("sun", &plain, &[]);
    draw("sun", &preset, &["--preset", "mini", "--weights", arg(&bundled())]);
    assert!(pixels(&plain) == pixels(&preset), "the same weights gave another picture");
}

#[test]
fn synthetic_weights_are_said_to_be_synthetic() {
    let folder = folder();
    let more = ["--preset", "mini", "--weights", "random:1", "--size", "32"];
    let path = folder.path().join("x.png");
    let said = draw("red apple", &path, &more);
    assert!(said.contains("weights are synthetic"), "{said}");
    assert_eq!(shown(&path)["Model"], "mini, synthetic weights of seed 1");
}

#[test]
fn the_seed_determines_the_noise_between_steps_of_ddim() {
    let folder = folder();
    let draw_with = |name: &str, eta: &str| {
        let path = folder.path().join(name);
        draw("sun", &path, &["--steps", "5", "--eta", eta]);
        pixels(&path)
    };
    let (none, full, again) = (draw_with("none.png", "0"), draw_with("full.png", "1"), draw_with("again.png", "1"));
    assert!(full == again, "the same seed gave other noise");
    assert!(none != full, "eta changed nothing");
    let path = folder.path().join("x.png");
    let message = failure(&generate("sun", &path, &["--steps", "5", "--eta", "2"]));
    assert!(message.contains("eta") && message.contains('2'), "{message}");
}

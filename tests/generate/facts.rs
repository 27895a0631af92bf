//! What the files of pictures say of how they were made.

use mobilediffusion_tests::checkpoints::bundled;
use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::{arg, draw, failure, generate, run, stderr};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the texts that `show --json` prints for a file.
pub(crate) fn shown(path: &Path) -> BTreeMap<String, Value> {
    let done = run(&["show", "--json", arg(path)]);
    assert!(done.status.success(), "{}", stderr(&done));
    serde_json::from_slice(&done.stdout).expect("standard output is JSON")
}

/// Texts in every file.
const ALWAYS: [&str; 11] =
    ["Description", "Device", "Floats", "Guidance", "Model", "Sampler", "Seed", "Size", "Software", "Steps", "Weights"];

/// Asserts that a file has the texts that every file has, and `more`, and no others.
fn assert_texts(path: &Path, more: &[&str]) {
    let mut expected = [&ALWAYS, more].concat();
    expected.sort_unstable();
    let found = shown(path);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected, "{}", path.display());
}

#[test]
fn a_file_has_the_texts_that_its_picture_can_be_drawn_from_and_no_others() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let small = ["--size", "32"];
    draw("sun", &path("plain.png"), &small);
    assert_texts(&path("plain.png"), &[]);
    draw("sun", &path("other.png"), &[&small[..], &["--weights", arg(&bundled())]].concat());
    assert_eq!(shown(&path("other.png"))["Model"], "mini, weights of mini");

    let (init, mask) = (path("init.png"), path("mask.png"));
    image::RgbImage::from_pixel(32, 32, image::Rgb([200, 30, 30])).save(&init).expect("it is written");
    image::GrayImage::from_pixel(32, 32, image::Luma([255])).save(&mask).expect("it is written");
    let masked = [&small[..], &["--init", arg(&init), "--mask", arg(&mask)]].concat();
    draw("sun", &path("masked.png"), &masked);
    assert_texts(&path("masked.png"), &["Init", "Mask", "Strength"]);
    let found = shown(&path("masked.png"));
    assert_eq!((&found["Init"], &found["Mask"]), (&"init.png".into(), &"mask.png".into()), "names without folders");

    draw("sun", &path("sheet.png"), &[&small[..], &["--grid", "--count", "3", "--batch", "2"]].concat());
    assert_texts(&path("sheet.png"), &["Batch", "Count"]);
    let found = shown(&path("sheet.png"));
    assert_eq!((&found["Batch"], &found["Count"]), (&"2".into(), &"3".into()), "three pictures, two at once");

    let previews = path("previews");
    let preview = ["--steps", "2", "--preview-every", "1", "--preview", arg(&previews)];
    draw("sun", &path("x.png"), &[&small[..], &preview].concat());
    assert_texts(&path("x.png"), &[]);
    assert_texts(&previews.join("0-001.png"), &["Preview"]);
    assert_eq!(shown(&previews.join("0-001.png"))["Preview"], "1 of 2", "the step");
}

#[test]
fn a_file_says_what_it_was_made_of() {
    let folder = folder();
    let path = folder.path().join("x.png");
    let negative = ["--negative", "blue", "--eta", "0.5"];
    let more = ["--seed", "5", "--steps", "6", "--width", "32", "--json"];
    let done = generate("\u{1f34e} a\u{1b}[1mb", &path, &[&more[..], &negative].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let said: Value = serde_json::from_slice(&done.stdout).expect("standard output is JSON");
    let numbers = ["steps", "guidance", "eta", "seed", "width", "height"]
        .map(|key| said["settings"][key].as_f64().unwrap_or(-1.0));
    assert_eq!((&said["files"][0]["seed"], numbers), (&5.into(), [6.0, 3.0, 0.5, 5.0, 32.0, 64.0]), "{said}");
    let settings = &said["settings"];
    assert_eq!((&settings["sampler"], &settings["size"]), (&"DDIM".into(), &Value::Null), "{said}");
    assert!(said["seconds"]["denoise"].as_f64().is_some_and(|seconds| seconds > 0.0), "{said}");
    let shown = run(&["show", arg(&path)]);
    let text = String::from_utf8(shown.stdout).expect("texts are UTF-8");
    for line in [
        "Description: \u{1f34e} a\\u001b[1mb",
        "Negative: blue",
        "Model: mini",
        "Size: 32x64",
        "Sampler: DDIM",
        "Steps: 6",
        "Guidance: 3",
        "Eta: 0.5",
        "Seed: 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    let message = failure(&run(&["show", arg(&bundled().join("model.json"))]));
    assert!(message.contains("model.json"), "{message}");
}

#[test]
fn a_key_that_a_file_has_twice_is_a_list_of_texts() {
    let folder = folder();
    let file = folder.path().join("foreign.png");
    let texts = [("Comment", "one"), ("Title", "a"), ("Comment", "two"), ("Comment", "three")];
    let texts = texts.map(|(key, value)| (key, value.to_owned()));
    let picture = mobilediffusion_model::Picture { width: 1, height: 1, rgba: vec![255; 4] };
    picture.save_png(&file, &texts).expect("the picture is written");
    let done = run(&["show", "--json", arg(&file)]);
    let shown: Value = serde_json::from_slice(&done.stdout).expect("standard output is JSON");
    assert_eq!(shown, serde_json::json!({"Comment": ["one", "two", "three"], "Title": "a"}));
}

//! Pictures that are drawn from others, with and without a mask.

use crate::facts::shown;
use crate::pixels;
use mobilediffusion_tests::checkpoints::bundled;
use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::{arg, copy_all, draw, failure, generate, stderr};
use std::fs;
use std::path::Path;
use std::process::Output;

#[test]
fn a_mask_draws_white_parts_anew_and_keeps_the_bytes_of_black_ones() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let begin = image::RgbaImage::from_fn(64, 64, |x, y| image::Rgba([4 * x as u8, 4 * y as u8, 90, 255]));
    begin.save(path("init.png")).expect("it is written");
    let is_white = |x: u32| x >= 32;
    let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if is_white(x) { 255 } else { 0 }]));
    mask.save(path("mask.png")).expect("it is written");
    let (init, mask) = (path("init.png"), path("mask.png"));

    draw("red apple", &path("masked.png"), &["--init", arg(&init), "--mask", arg(&mask)]);
    assert_eq!(shown(&path("masked.png"))["Strength"], "1", "nothing is left of what the mask covers");
    let masked = pixels(&path("masked.png"));
    let same = |x: u32, y: u32| masked.get_pixel(x, y) == begin.get_pixel(x, y);
    assert!((0..32 * 64).all(|at| same(at % 32, at / 32)), "a black part changed");
    let changed = (0..32 * 64).filter(|at| !same(32 + at % 32, at / 32)).count();
    assert!(changed > 30 * 64, "only {changed} pixels of the white part changed");

    draw("red apple", &path("whole.png"), &["--init", arg(&init)]);
    assert_eq!(shown(&path("whole.png"))["Strength"], "0.6", "the layout stays");
}

/// Draws from the initial picture `init` at strength 0, into `out.png`.
fn draw_from(folder: &Path, init: &Path, more: &[&str]) -> Output {
    let model = folder.join("model");
    let args = ["--model", arg(&model), "--weights", "random:1", "--force", "--init", arg(init), "--strength", "0"];
    generate("sun", &folder.join("out.png"), &[&args[..], more].concat())
}

/// Writes the bundled architecture with a small VAE to the folder `model`.
fn model_with_encoder(folder: &Path) {
    let model = folder.join("model");
    copy_all(&bundled(), &model);
    fs::create_dir_all(model.join("vae")).expect("the folder is made");
    let decoder = fs::read_to_string(model.join("decoder/config.json")).expect("it reads");
    let decoder: serde_json::Value = serde_json::from_str(&decoder).expect("it parses");
    let config = serde_json::json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": decoder["scaling_factor"]
    });
    fs::write(model.join("vae/config.json"), config.to_string()).expect("the file is written");
}

#[test]
fn pictures_of_any_kind_are_drawn_from_or_refused_with_the_reason() {
    let folder = folder();
    model_with_encoder(folder.path());
    let path = |name: &str| folder.path().join(name);
    image::RgbImage::from_pixel(1, 1, image::Rgb([200, 30, 30])).save(path("dot.png")).expect("it is written");
    image::GrayImage::from_fn(100, 30, |x, _| image::Luma([2 * x as u8]))
        .save(path("wide.jpg"))
        .expect("it is written");
    // Few enough colours for a GIF's palette, so that none is changed.
    let frame = |grey: u8| {
        image::RgbaImage::from_fn(64, 64, |x, y| image::Rgba([grey, 15 * (x / 8) as u8, 60 * (y / 16) as u8, 255]))
    };
    let frames = [10, 240].map(|grey| image::Frame::new(frame(grey)));
    let mut gif = Vec::new();
    image::codecs::gif::GifEncoder::new(&mut gif).encode_frames(frames).expect("it encodes");
    fs::write(path("moving.gif"), &gif).expect("it is written");
    // A GIF's width and height are two 16-bit words behind its six letters.
    gif[6..10].copy_from_slice(&[0x20, 0x4e, 0x20, 0x4e]);
    fs::write(path("huge.gif"), &gif).expect("it is written");
    let whole = fs::read(path("wide.jpg")).expect("it reads");
    fs::write(path("cut.jpg"), &whole[..200]).expect("it is written");
    fs::write(path("text.png"), "no picture").expect("it is written");

    let cmyk = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pictures/cmyk.jpg");
    for (init, found) in [(path("dot.png"), "1x1"), (path("wide.jpg"), "100x30"), (cmyk, "48x32")] {
        let done = draw_from(folder.path(), &init, &[]);
        let said = stderr(&done);
        assert!(done.status.success(), "{said}");
        assert!(said.contains(&format!("scaled and cropped from {found} to 64x64")), "{said}");
    }
    // Of an animation the first frame is used.
    let first = frame(10);
    first.save(path("first.png")).expect("it is written");
    let drawn = ["moving.gif", "first.png"].map(|name| {
        let done = draw_from(folder.path(), &path(name), &[]);
        assert!(done.status.success(), "{}", stderr(&done));
        pixels(&path("out.png"))
    });
    assert!(drawn[0] == drawn[1], "another frame than the first");

    for (name, reason) in [("huge.gif", "20000x20000"), ("cut.jpg", "cut.jpg"), ("text.png", "expected a PNG")] {
        let message = failure(&draw_from(folder.path(), &path(name), &[]));
        assert!(message.contains(name) && message.contains(reason), "{message}");
    }
    let message = failure(&draw_from(folder.path(), &path("dot.png"), &["--mask", arg(&path("first.png"))]));
    assert!(message.contains("expected 1x1") && message.contains("found 64x64"), "{message}");
    let done = generate("sun", Path::new("x.png"), &["--init", "no-such-file.png"]);
    assert!(failure(&done).contains("no-such-file.png"));
}

#[test]
fn a_cmyk_jpeg_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pictures/cmyk.jpg");
    let picture = mobilediffusion_model::Picture::open(&path).expect("it reads");
    let pixel = |x: usize, y: usize| -> [u8; 3] { picture.rgba[4 * (y * 48 + x)..][..3].try_into().expect("three") };
    let near = |found: [u8; 3], want: [u8; 3]| found.iter().zip(want).all(|(f, w)| f.abs_diff(w) < 30);
    for (at, want) in [((8, 8), [255, 0, 0]), ((40, 8), [0, 255, 255]), ((20, 30), [0, 0, 0])] {
        assert!(near(pixel(at.0, at.1), want), "{at:?}: {:?}, expected about {want:?}", pixel(at.0, at.1));
    }
}

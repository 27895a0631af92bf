//! The bundled checkpoint's pictures against the PyTorch twin's, from the same seeds: the whole way from a prompt to
//! pixels, in f32 and with floats stored in f16.
//!
//! `python reference/sample.py` drew the twin's pictures (its command is in `reference/README.md`).

use mobilediffusion_model::{Floats, Flow, Options, Pipeline, Request, Source};
use mobilediffusion_tests::{devices, say};
use std::path::Path;

/// Folder of the twin's pictures, prompt, evaluations where they are not the model's own.
const DRAWN: [(&str, &str, Option<usize>); 4] = [
    ("one-step", "red apple", None),
    ("one-step", "soccer ball", None),
    ("one-step", "house with garden", None),
    ("ddim-10", "red apple", Some(10)),
];

/// The twin's picture of seed 0, RGBA.
fn twins(folder: &str, prompt: &str) -> Vec<u8> {
    let name = format!("data/golden/mini/{folder}/{}-0.png", prompt.replace(' ', "-"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgba8().into_raw()
}

/// Peak signal-to-noise ratio of two RGBA pictures in dB, over their colours.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "bytes of a picture");
    let colours = |bytes: &[u8]| bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect::<Vec<_>>();
    let (a, b) = (colours(a), colours(b));
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares.max(1e-9)).log10()
}

/// Draws everything on every device that can store floats so, and holds the pictures to the twin's.
fn check(floats: Floats, least: f64) {
    let mut drawn = 0;
    for device in devices() {
        let options = Options { device: device.clone(), floats, ..Options::default() };
        let source = Source::bundled().expect("the checkpoint comes with the sources");
        // The CPU device computes in f32 only.
        let Ok(mut pipeline) = Pipeline::load(source, options) else { continue };
        for (folder, prompt, steps) in DRAWN {
            let request = Request { steps, guidance: steps.map(|_| 3.0), ..Request::new(prompt) };
            let pictures = pipeline.generate(&request, &mut |_| Flow::Continue).expect("it draws");
            let found = psnr(&pictures[0].rgba, &twins(folder, prompt));
            say(&format!("{device:?}, {floats:?}, {folder}, {prompt}: {found:.1} dB"));
            assert!(
                found >= least,
                "{device:?}, {floats:?}, {folder}, {prompt}: {found:.1} dB, at least {least} expected"
            );
            drawn += 1;
        }
    }
    assert!(drawn > 0 || floats == Floats::F16, "the CPU device is always there");
}

#[test]
fn pictures_are_the_twins() {
    check(Floats::F32, 40.0);
}

#[test]
fn pictures_of_halves_are_close_to_the_twins() {
    check(Floats::F16, 30.0);
}

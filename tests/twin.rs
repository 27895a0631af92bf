//! Compares pictures of the bundled checkpoint with the PyTorch twin's from the same seeds: the whole way from a prompt
//! to pixels, with floats stored in f32 and in f16.
//!
//! `reference/sample.py` drew the twin's pictures; `reference/README.md` has the command. A test runs on each device.
//! Without a GPU the test in f16 is reported as ignored, because the CPU device computes in f32 only.

use libtest_mimic::{Arguments, Trial};
use mobilediffusion_model::{DeviceChoice, Floats, Flow, Options, Pipeline, Request, Source};
use mobilediffusion_tests::{drawing_devices, on, psnr, say};
use std::path::Path;

/// Pictures to compare: folder of the twin's picture, prompt, and number of evaluations if it is not the model's own.
const DRAWN: [(&str, &str, Option<usize>); 4] = [
    ("one-step", "red apple", None),
    ("one-step", "soccer ball", None),
    ("one-step", "house with garden", None),
    ("ddim-10", "red apple", Some(10)),
];

/// Reads the twin's picture of seed 0 as RGBA bytes.
fn twins(folder: &str, prompt: &str) -> Vec<u8> {
    let name = format!("data/golden/mini/{folder}/{}-0.png", prompt.replace(' ', "-"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgba8().into_raw()
}

/// Draws the pictures on a device, and asserts that each agrees with the twin's: PSNR of at least `least` dB.
fn check(device: &DeviceChoice, floats: Floats, least: f64) {
    let options = Options { floats, ..on(device.clone()) };
    let source = Source::bundled().expect("the checkpoint comes with the sources");
    let mut pipeline = Pipeline::load(source, options).expect("it loads");
    for (folder, prompt, steps) in DRAWN {
        let request = Request { steps, guidance: steps.map(|_| 3.0), ..Request::new(prompt) };
        let pictures = pipeline.generate(&request, &mut |_| Flow::Continue).expect("it draws");
        let found = psnr(&pictures[0].rgba, &twins(folder, prompt));
        let what = format!("{device:?}, {floats:?}, {folder}, {prompt}: {found:.1} dB");
        say(&what);
        assert!(found >= least, "{what}, at least {least} expected");
    }
}

fn main() {
    let trial = |name: &str, device: DeviceChoice, floats, least| {
        let place =
            if let DeviceChoice::Named(index) = &device { format!("adapter {index}") } else { "the CPU".to_owned() };
        Trial::test(format!("{name} on {place}"), move || {
            check(&device, floats, least);
            Ok(())
        })
    };
    let in_f32 = |device| trial("pictures_are_the_twins", device, Floats::F32, 40.0);
    let in_f16 = |device| trial("pictures_of_halves_are_close_to_the_twins", device, Floats::F16, 30.0);
    let all = drawing_devices();
    let gpus: Vec<_> = all.iter().filter(|device| **device != DeviceChoice::Cpu).cloned().collect();
    let mut trials: Vec<Trial> = all.into_iter().map(in_f32).collect();
    if gpus.is_empty() {
        trials.push(Trial::test("pictures_of_halves_are_close_to_the_twins", || Ok(())).with_ignored_flag(true));
    }
    trials.extend(gpus.into_iter().map(in_f16));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

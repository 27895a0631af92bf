//! Checkpoints in f16: devices keep their matrices in 16 bits, and draw what they draw from the same values in f32.

use crate::{draw, on, small, source};
use half::f16;
use mobilediffusion_kernels::{Storage, WeightType};
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::{Pipeline, Source, WeightsFrom};
use mobilediffusion_tests::checkpoints::rewrite;
use mobilediffusion_tests::{drawing_devices, folder};
use safetensors::Dtype;
use std::fs;
use std::path::Path;

/// Copies a checkpoint in f16 as one in f32, with the same values.
fn widen(from: &Path, to: &Path) {
    rewrite(from, to, |name, view| {
        assert_eq!(view.dtype(), Dtype::F16, "{name}");
        let values = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
        Some((Dtype::F32, values.flat_map(f32::to_le_bytes).collect()))
    });
}

/// Returns the bundled model with copies of some networks in f32, in a folder that links to the others.
fn widened(networks: &[&str]) -> (tempfile::TempDir, Source) {
    let bundled = source();
    let WeightsFrom::Directory(from) = &bundled.weights else { panic!("the bundled checkpoint is a folder") };
    let folder = folder();
    for network in ["text_encoder", "unet", "decoder"] {
        fs::create_dir(folder.path().join(network)).expect("the folder is new");
        let [from, to] = [from.as_path(), folder.path()].map(|root| root.join(network).join("model.safetensors"));
        match networks.contains(&network) {
            true => widen(&from, &to),
            false => drop(fs::copy(from, to).expect("the temporary folder is writable")),
        }
    }
    let weights = WeightsFrom::Directory(folder.path().to_owned());
    (folder, Source { weights, ..bundled })
}

#[test]
fn weights_in_16_bits_draw_the_same_in_less_memory() {
    let (_all, wide) = widened(&["text_encoder", "unet", "decoder"]);
    let (_one, mixed) = widened(&["unet"]);
    for device in drawing_devices() {
        let drawn = |source: &Source| {
            let mut pipeline = Pipeline::load(source.clone(), on(device.clone())).expect("it loads");
            let pictures = draw(&mut pipeline, &small("sun"));
            (
                pictures,
                pipeline.counters().weight_bytes,
                pipeline.model().storage(Sampler::OneStep).expect("it is loaded"),
            )
        };
        let (pictures, bytes, storage) = drawn(&source());
        assert_eq!(storage, Storage::F32.with_weights(WeightType::F16), "{device:?}");
        let (wide_pictures, wide_bytes, wide_storage) = drawn(&wide);
        assert!(pictures == wide_pictures, "{device:?}: other pictures from the same values");
        assert_eq!(wide_storage, Storage::F32, "{device:?}");
        // Every network has its own type.
        let (mixed_pictures, mixed_bytes, mixed_storage) = drawn(&mixed);
        assert!(pictures == mixed_pictures, "{device:?}: other pictures from the same values");
        assert_eq!(mixed_storage, Storage::F32, "{device:?}");
        let all = [bytes, mixed_bytes, wide_bytes];
        assert!(all.is_sorted() && bytes < mixed_bytes && mixed_bytes < wide_bytes, "{device:?}: {all:?}");
    }
}

/// What `bench --tune` measures has to be found by the sessions of the same network.
#[cfg(target_os = "linux")]
#[test]
fn a_network_is_tuned_as_its_weights_are_stored() {
    use mobilediffusion_model::DeviceChoice;
    use mobilediffusion_tests::program::{failure, program, stderr};
    for device in drawing_devices() {
        let DeviceChoice::Named(device) = device else { continue };
        let cache = folder();
        let tune =
            ["bench", "--tune", "--plan", "text", "--quick", "--within", "5", "--dtype", "f32", "--device", &device];
        let done = program().args(tune).env("XDG_CACHE_HOME", cache.path()).output().expect("the program starts");
        assert!(done.status.success(), "{}", stderr(&done));
        let folder = cache.path().join("mobilediffusion");
        let table = fs::read_to_string(folder.join("variants.json")).expect("the table is in the user's cache folder");
        let problems: Vec<&str> = table.lines().filter(|line| line.contains("linear ")).collect();
        let as_stored = |line: &&str| line.contains("linear F32 with f16 weights ");
        assert!(!problems.is_empty() && problems.iter().all(as_stored), "{table}");
        // A cache folder below a file: nothing could be saved, so nothing is measured.
        let nowhere = folder.join("variants.json");
        let done = program().args(tune).env("XDG_CACHE_HOME", &nowhere).output().expect("the program starts");
        let message = failure(&done);
        let why = "--tune: expected a cache folder to save the fastest variants in, found none: cannot write `";
        assert!(message.starts_with(&format!("{why}{}", nowhere.display())), "{message}");
    }
}

//! Memory that loading weights takes beyond what the device keeps: no part of a file may stay in memory twice.

#![cfg(target_os = "linux")]

use half::f16;
use mobilediffusion_graph::{Device, Flow, Graph, Recording, Session, Weights};
use mobilediffusion_kernels::{Storage, WeightType};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Shape, denoise_graph, text_graph};
use mobilediffusion_model::weights::{Checkpoint, Synthetic, synthetic};
use mobilediffusion_runtime::{Gpu, Select};
use mobilediffusion_tests::{adapters, say};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Returns the bytes that only this process uses, clean pages of mapped files included.
fn private_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux says what a process holds");
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kibibytes = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    1024 * kibibytes.sum::<usize>()
}

/// Writes synthetic weights for a graph to a file, in f16.
fn write(graph: &Graph, path: &Path) {
    let stored = |(name, shape): &(String, Vec<usize>)| -> (String, Vec<usize>, Vec<u8>) {
        let values = synthetic(name, shape, 1);
        (name.clone(), shape.clone(), values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
    };
    let tensors: Vec<_> = graph.weights().iter().map(stored).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), bytes).expect("two bytes a value"))
    });
    serialize_to_file(views, None, path).expect("the file is written");
}

/// Builds a text encoder with CLIP's width and vocabulary but two layers. One tensor is most of the file: the worst
/// case.
fn graph() -> Graph {
    graph_of(49_408)
}

fn graph_of(words: usize) -> Graph {
    let mut config = ModelConfig::preset("mobilediffusion").expect("the preset is built in");
    (config.text_encoder.intermediate_size, config.text_encoder.num_hidden_layers) = (768, 2);
    config.text_encoder.vocab_size = words;
    text_graph(&config).expect("the text encoder builds")
}

/// Returns the peak of the bytes held beyond the weights while they are loaded and, if `compiled` is set, of the bytes
/// held beyond weights and plan while the steps are compiled.
fn beside(device: Device, graph: Graph, path: &Path, compiled: bool) -> (usize, Option<usize>) {
    let before = private_bytes();
    let checkpoint = Checkpoint::open(path).expect("the file opens");
    checkpoint.verify(&graph.weights()).expect("the file holds the graph's weights");
    let verified = private_bytes().saturating_sub(before);
    assert!(verified < 16 << 20, "verifying keeps {} MiB", verified >> 20);

    let mut most = 0;
    let mut sample = |_, _| {
        most = private_bytes().max(most);
        Flow::Continue
    };
    let weights = Weights::new(device, Box::new(checkpoint));
    let recording = Recording::new(graph);
    let need = recording.need(weights.device());
    let (weight_bytes, plan_bytes) = (need.weights as usize, need.plan as usize);
    weights.load(&recording, &mut sample).expect("the weights load");
    sample(0, 0);
    let loaded = most.saturating_sub(before + weight_bytes);
    let ready = compiled.then(|| {
        let mut sample = |_, _| {
            most = private_bytes().max(most);
            Flow::Continue
        };
        let session = Session::new_with(recording, &weights, &mut sample).expect("it has room");
        let most = most.max(private_bytes());
        drop(session);
        most.saturating_sub(before + weight_bytes + plan_bytes)
    });
    (loaded, ready)
}

/// Compiles the kernels for a small vocabulary first, so that memory kept by a driver's compiler is not counted.
fn compile(device: Device) {
    let weights = Weights::new(device, Box::new(Synthetic { seed: 0 }));
    Session::new(Recording::new(graph_of(64)), &weights).expect("a small one fits");
}

/// Builds the full-size UNet, whose weights take 774 MB in f16.
fn unet() -> Graph {
    let config = ModelConfig::preset("mobilediffusion").expect("the preset is built in");
    let shape = Shape::of(&config, 64, 64, Sampler::OneStep).expect("both are multiples of 32");
    denoise_graph(&config, &shape).expect("the UNet builds")
}

/// Returns the names of every device in each of its storage types, as [`opened`] reads them. The CPU comes first.
fn names_of_devices_and_storages() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned(), "cpu int8".to_owned()];
    for adapter in adapters() {
        devices.extend(["f32", "half"].map(|storage| format!("{} {storage}", adapter.index)));
    }
    devices
}

/// Opens the device of a name.
fn opened(name: &str) -> Device {
    let Some((index, storage)) = name.split_once(' ') else { return Device::CPU };
    if index == "cpu" {
        return Device::Cpu(WeightType::Int8);
    }
    let gpu =
        Arc::new(pollster::block_on(Gpu::open(&Select::Named(index.to_owned()))).expect("a listed adapter opens"));
    let half = if gpu.caps().shader_f16 { Storage::F16 } else { Storage::F16_PACKED };
    Device::Gpu(gpu, if storage == "f32" { Storage::F32 } else { half })
}

/// Environment variable that names the device of a child process.
const DEVICE: &str = "WHAT_LOADING_KEEPS_ON";
/// Environment variable that says what a child process measures: `unet`, `text` or `steps`.
const WHAT: &str = "WHAT_IS_LOADED";
/// Environment variable that names the folder of the models.
const MODELS: &str = "WHAT_LOADING_READS";

/// Allocators keep freed memory for later, which would hide what is loaded next. So every measurement runs in a process
/// of its own, this program again.
#[test]
fn loading_keeps_little_more_than_the_device_does() {
    if let [Ok(device), Ok(what), Ok(models)] = [DEVICE, WHAT, MODELS].map(std::env::var) {
        return measure(&device, &what, Path::new(&models));
    }
    // The folder for temporary files may itself be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("there is room for two models");
    for (model, graph) in [("text", graph()), ("unet", unet())] {
        std::fs::create_dir(dir.path().join(model)).expect("the folder is made");
        write(&graph, &dir.path().join(model).join("model.safetensors"));
    }
    let all = names_of_devices_and_storages()
        .into_iter()
        .flat_map(|device| ["unet", "text", "steps"].map(|what| (device.clone(), what)));
    all.collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(|(device, what)| {
        let program = std::env::current_exe().expect("a test has a path");
        let mut run = Command::new(program);
        run.env(DEVICE, &device).env(WHAT, what).env(MODELS, dir.path()).arg("--nocapture");
        let run = run.output().expect("it starts");
        let said = [run.stdout, run.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(run.status.success(), "{device}, {what}: {said}");
        say(said.lines().find(|line| line.contains("bytes beside")).unwrap_or(""));
    });
}

/// Measures the loading of the UNet's weights, of the text encoder's, or of the text encoder's weights and steps.
fn measure(name: &str, what: &str, models: &Path) {
    let device = opened(name);
    let small = if matches!(device, Device::Cpu(_)) { 48 << 20 } else { 112 << 20 };
    let (held, most) = match what {
        "unet" => (beside(device, unet(), &models.join("unet"), false).0, 200_000_000),
        "text" => (beside(device, graph(), &models.join("text"), false).0, small),
        _ => {
            compile(device.clone());
            (beside(device, graph(), &models.join("text"), true).1.expect("it was asked for"), small)
        }
    };
    let kept = format!("{name}, {what}: {held} bytes beside what the device keeps");
    say(&kept);
    assert!(held < most, "{kept}, {most} allowed");
}

//! Measures the memory planner and the host's time for a replay: `cargo bench -p mobilediffusion-benches --bench plan`.

#![allow(clippy::print_stdout, reason = "the tables are what this is for")]

use mobilediffusion_benches::only_once;
use mobilediffusion_graph::plan::{Lifetime, pack};
use mobilediffusion_graph::{Device, Graph, Recording, Session, Weights};
use mobilediffusion_kernels::{Activation, DType, Storage};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, encode_graph, text_graph};
use mobilediffusion_model::weights::Synthetic;
use mobilediffusion_runtime::{Gpu, Select};
use std::sync::Arc;
use std::time::Instant;

/// Bytes into which each of the published instances fits.
const CAPACITY: f64 = 1_048_576.0;

fn main() {
    published();
    plans();
    overhead();
}

/// Plans the allocation instances that were published with MiniMalloc.
fn published() {
    println!("instance  tensors  total / capacity  seconds");
    // As a test, one instance is enough.
    for name in if only_once() { 'B'..='B' } else { 'A'..='K' } {
        let path = format!("{}/../tests/data/minimalloc/{name}.1048576.csv", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("the instance is in the repository");
        let line = |line: &str| {
            let numbers: Vec<usize> = line.split(',').map(|n| n.trim().parse().expect("a whole number")).collect();
            Lifetime { first: numbers[1], last: numbers[2] - 1, bytes: numbers[3] }
        };
        let lifetimes: Vec<Lifetime> = text.lines().skip(1).map(line).collect();
        let start = Instant::now();
        let ratio = pack(&lifetimes).total as f64 / CAPACITY;
        println!("{name:8}  {:7}  {ratio:16.4}  {:7.2}", lifetimes.len(), start.elapsed().as_secs_f64());
    }
}

/// Plans the networks of the presets at their default sizes, in f32.
fn plans() {
    println!("\nplan  steps  tensors  lower bound  arenas  ratio  ratio in one arena  ms to plan");
    for preset in ModelConfig::PRESETS {
        let config = ModelConfig::preset(preset).expect("a preset is there");
        let size = config.defaults.image_size;
        let shape = Shape::of(&config, size, size, Sampler::OneStep).expect("the default size fits");
        let graphs = [
            ("text encoder", text_graph(&config, 1).ok()),
            ("unet", denoise_graph(&config, &shape).ok()),
            ("decoder", decode_graph(&config, shape.latent, Decoder::Light).ok()),
            ("vae decoder", decode_graph(&config, shape.latent, Decoder::Full).ok()),
            ("vae encoder", encode_graph(&config, shape.latent).ok()),
        ];
        for (name, graph) in graphs {
            let Some(recording) = graph.map(Recording::new) else { continue };
            let start = Instant::now();
            let plan = recording.summary(Storage::F32);
            let (bound, ms) = (plan.lower_bound_bytes as f64, start.elapsed().as_secs_f64() * 1e3);
            println!(
                "{preset} {name}  {}  {}  {}  {}  {:.4}  {:.4}  {ms:.1}",
                plan.steps,
                plan.tensors,
                plan.lower_bound_bytes,
                plan.buffers,
                plan.activation_bytes as f64 / bound,
                plan.arena_bytes as f64 / bound
            );
        }
    }
}

/// Measures the host's time for encoding and submitting 300 dispatches, without the device's time.
fn overhead() {
    let Ok(gpu) = pollster::block_on(Gpu::open(&Select::Best)) else {
        return println!("\nthere is no GPU adapter to submit 300 steps to");
    };
    let gpu = Arc::new(gpu);
    let mut graph = Graph::new();
    let mut x = graph.input("x", [1, 4], DType::Elem);
    for _ in 0..300 {
        x = graph.activate(&x, Activation::Silu, 1.0).expect("it fits");
    }
    graph.output("y", &x);
    let weights = Weights::new(Device::Gpu(Arc::clone(&gpu), Storage::F32), Box::new(Synthetic { seed: 1 }));
    let mut session = Session::new(Recording::new(graph), &weights, &mut |_, _| true).expect("it is made");
    session.write("x", &[1.0; 4]).expect("it fits");
    session.run(&mut |_, _| true).expect("it runs");
    let mut once = || session.overhead().expect("the device answers").expect("a GPU is submitted to");
    let mut seconds: Vec<f64> = (0..if only_once() { 1 } else { 101 }).map(|_| once()).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("\n{}: host time for 300 steps: {:.1} us (median of {})", gpu.adapter(), median * 1e6, seconds.len());
}

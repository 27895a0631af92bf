//! What loading weights costs beside what the device keeps: nothing of a file stays in memory twice.

#![cfg(target_os = "linux")]

use half::f16;
use mobilediffusion_graph::{Device, Recording, Session, Weights};
use mobilediffusion_kernels::Storage;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::networks::text_graph;
use mobilediffusion_model::weights::{Checkpoint, WeightSource, synthetic};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// Bytes that are this process's alone, clean pages of its maps included.
fn private_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux says what a process holds");
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kibibytes = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    1024 * kibibytes.sum::<usize>()
}

#[test]
fn loading_keeps_little_more_than_the_device_does() {
    // A quarter of CLIP's width, but all of its vocabulary: one tensor is most of the file, the worst case.
    let mut config = ModelConfig::preset("mobilediffusion").expect("the preset is built in");
    let text = &mut config.text_encoder;
    (text.hidden_size, text.intermediate_size, text.num_attention_heads) = (768, 768, 12);
    text.num_hidden_layers = 2;
    let graph = text_graph(&config, 1).expect("the text encoder builds");
    let dir = tempfile::tempdir().expect("there is room for temporary files");
    let stored = |(name, shape): &(String, Vec<usize>)| -> (String, Vec<usize>, Vec<u8>) {
        let values = synthetic(name, shape, 1);
        (name.clone(), shape.clone(), values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
    };
    let tensors: Vec<_> = graph.weights().iter().map(stored).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), bytes).expect("two bytes a value"))
    });
    serialize_to_file(views, None, &dir.path().join("model.safetensors")).expect("the file is written");
    drop(tensors);

    let before = private_bytes();
    let checkpoint = Checkpoint::open(dir.path()).expect("the file opens");
    checkpoint.verify(&graph.weights()).expect("the file holds the graph's weights");
    let kept: usize = graph.weights().iter().map(|(_, shape)| 4 * elements(shape)).sum();
    let verified = private_bytes().saturating_sub(before);
    assert!(verified < 16 << 20, "verifying keeps {} MiB", verified >> 20);

    let mut most = 0;
    let mut sample = |_, _| most = private_bytes().max(most);
    let mut weights = Weights::new(Device::Cpu, Box::new(Box::new(checkpoint) as Box<dyn WeightSource>));
    let recording = Recording::new(graph);
    let arena = recording.summary(Storage::F32).arena_bytes;
    let session = Session::new(recording, &mut weights, &mut sample).expect("the weights load");
    let beside = most.max(private_bytes()).saturating_sub(before + kept);
    assert!(kept > 150 << 20, "a file worth testing");
    assert!(beside < (48 << 20) + arena, "{} MiB beside {} MiB of weights", beside >> 20, kept >> 20);
    drop(session);
}

//! Times the three networks of the model `mini` on the CPU, which a picture consists of.

// criterion's macros define public items without documentation.
#![allow(missing_docs, reason = "criterion's macros write no docs")]

use criterion::{Criterion, criterion_group, criterion_main};
use mobilediffusion_graph::{Device, Graph, Recording, Session, Weights};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, text_graph};
use mobilediffusion_model::noise::Noise;
use mobilediffusion_model::weights::Synthetic;
use std::time::Duration;

fn mini() -> (ModelConfig, Shape) {
    let config = ModelConfig::preset("mini").expect("the preset is built in");
    let size = config.defaults.image_size;
    let shape = Shape::of(&config, size, size, Sampler::OneStep).expect("the preset's own size fits");
    (config, shape)
}

/// Prepares a graph on the CPU with synthetic weights.
fn session(graph: Graph) -> Session {
    let weights = Weights::new(Device::CPU, Box::new(Synthetic { seed: 1 }));
    Session::new(Recording::new(graph), &weights).expect("made-up weights fit")
}

/// Writes all inputs, so that every step runs again, and runs the session.
fn evaluate(session: &mut Session, inputs: &[(&str, Vec<f32>)]) {
    for (name, values) in inputs {
        session.write(name, values).expect("the input is of that length");
    }
    session.run().expect("nobody stops the run");
}

fn networks(criterion: &mut Criterion) {
    let (config, shape) = mini();
    let noise = |len: usize| Noise::new(1).latent(len);
    let pixels = shape.latent.height * shape.latent.width;
    let tokens = config.text_encoder.max_position_embeddings;
    let mut group = criterion.benchmark_group("mini");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));

    group.bench_function("text encoder", |bencher| {
        let mut text = session(text_graph(&config).expect("the preset fits"));
        let inputs = [("ids", (1..).map(f32::from_bits).take(tokens).collect())];
        bencher.iter(|| evaluate(&mut text, &inputs));
    });
    group.bench_function("unet", |bencher| {
        let mut unet = session(denoise_graph(&config, &shape).expect("the preset fits"));
        let inputs = [
            ("latent", noise(pixels * config.unet.in_channels())),
            ("timestep", vec![999.0]),
            ("context", noise(tokens * config.unet.cross_attention_dim())),
            ("coefficients", vec![0.5; 8]),
        ];
        bencher.iter(|| evaluate(&mut unet, &inputs));
    });
    group.bench_function("decoder", |bencher| {
        let graph = decode_graph(&config, shape.latent, Decoder::of(&config), 1);
        let mut decoder = session(graph.expect("the preset fits"));
        let inputs = [("latent", noise(pixels * config.unet.in_channels()))];
        bencher.iter(|| evaluate(&mut decoder, &inputs));
    });
    group.finish();
}

criterion_group!(benches, networks);
criterion_main!(benches);

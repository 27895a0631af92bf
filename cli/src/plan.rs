//! `plan`: what will run, in which memory, and what was folded into the steps.

use crate::Failure;
use crate::args::Plan;
use crate::terminal::result;
use mobilediffusion_graph::plan::Sharing;
use mobilediffusion_graph::{PlanSummary, Recording, TensorInfo};
use mobilediffusion_kernels::Storage;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, text_graph};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const STORAGES: [(&str, Storage); 2] = [("f32", Storage::F32), ("f16", Storage::F16)];

pub(crate) fn run(args: &Plan) -> Result<(), Failure> {
    let config = args.networks.config()?;
    let defaults = &config.defaults;
    let size = args.networks.size.unwrap_or(defaults.image_size);
    let guided = args.guidance.unwrap_or(defaults.guidance) != 1.0;
    let shape = Shape::of(size, size, defaults.sampler, defaults.steps, guided)?;
    let networks = [
        ("text encoder", Recording::new(text_graph(&config, shape.batch())?)),
        ("unet", Recording::new(denoise_graph(&config, &shape)?)),
        ("decoder", Recording::new(decode_graph(&config, &shape, Decoder::of(&config))?)),
    ];
    if args.json {
        let all: Vec<Value> = networks.iter().map(|(name, recording)| as_json(name, recording)).collect();
        let whole = json!({"model": defaults.name, "size": size, "guided": guided, "networks": all});
        return Ok(result(&serde_json::to_string_pretty(&whole)?)?);
    }
    let guidance = if guided { "with guidance" } else { "without guidance" };
    result(&format!("{}, {size}x{size} pixels, {guidance}", defaults.name))?;
    for (name, recording) in &networks {
        for (label, storage) in STORAGES {
            let summary = recording.summary(storage);
            result(&format!("{name}, {label}: {summary}; in one arena: ratio {:.3}", arena_ratio(&summary)))?;
        }
        let counts: Vec<String> = folded(recording).iter().map(|(what, count)| format!("{count} {what}")).collect();
        result(&format!("{name}, folded into steps: {}", counts.join(", ")))?;
        if args.list {
            result(&format!("{recording}"))?;
            result(&tensors(recording))?;
        }
    }
    Ok(())
}

fn arena_ratio(summary: &PlanSummary) -> f64 {
    summary.arena_bytes as f64 / summary.lower_bound_bytes.max(1) as f64
}

/// How often each thing was folded into a step.
fn folded(recording: &Recording) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for what in (0..recording.nodes.len()).flat_map(|step| recording.folded(step)) {
        *counts.entry(what).or_default() += 1;
    }
    counts
}

/// A tensor that is placed.
struct Placed<'a> {
    info: &'a TensorInfo,
    steps: (usize, usize),
    bytes: usize,
    buffer: usize,
    offset: usize,
}

/// Where every tensor lies when floats are stored in 32 bits: in the arenas of a GPU.
fn placed(recording: &Recording) -> Vec<Placed<'_>> {
    let bytes_of = |t: &TensorInfo| Storage::F32.tensor_bytes(t.dtype, &t.shape);
    let plan = recording.arenas(Storage::F32, Sharing::Planned, usize::MAX / 8).unwrap_or_default();
    let place = |(tensor, life): (usize, mobilediffusion_graph::plan::Lifetime)| {
        let (buffer, offset) = plan.places[tensor]?;
        let info = &recording.tensors[tensor];
        Some(Placed { info, steps: (life.first, life.last), bytes: life.bytes, buffer, offset })
    };
    recording.lifetimes(bytes_of).into_iter().filter_map(place).collect()
}

fn tensors(recording: &Recording) -> String {
    let mut text = format!("{:>11} {:>11} {:>7} {:>11}  tensor\n", "steps", "bytes", "buffer", "offset");
    for Placed { info, steps: (first, last), bytes, buffer, offset } in placed(recording) {
        let steps = format!("{first}..={last}");
        text += &format!("{steps:>11} {bytes:>11} {buffer:>7} {offset:>11}  {} {:?}\n", info.name, info.shape);
    }
    text
}

fn as_json(name: &str, recording: &Recording) -> Value {
    let summaries = STORAGES.map(|(label, storage)| {
        let summary = recording.summary(storage);
        json!({
            "storage": label,
            "weight_bytes": summary.weight_bytes,
            "buffers": summary.buffers,
            "buffer_bytes": summary.activation_bytes,
            "arena_bytes": summary.arena_bytes,
            "lower_bound_bytes": summary.lower_bound_bytes,
        })
    });
    let tensor = |p: &Placed<'_>| {
        let (first, last) = p.steps;
        json!({"name": p.info.name, "shape": p.info.shape, "first": first, "last": last, "bytes": p.bytes,
            "buffer": p.buffer, "offset": p.offset})
    };
    let tensors: Vec<Value> = placed(recording).iter().map(tensor).collect();
    let steps = recording.nodes.len();
    json!({"name": name, "steps": steps, "memory": summaries, "folded": folded(recording), "tensors": tensors})
}

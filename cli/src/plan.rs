//! `plan`: the steps of each network, the placement of its tensors in memory, and what was fused into the steps.

use crate::Failure;
use crate::args::Plan;
use crate::device::open;
use crate::graphs::{record, shape};
use crate::terminal::{printable, result};
use mobilediffusion_graph::plan::{Lifetime, NO_LIMIT, Place};
use mobilediffusion_graph::{PlanSummary, Recording, TensorInfo, Traffic};
use mobilediffusion_kernels::variant::Machine;
use mobilediffusion_kernels::{GpuDevice, Storage, WeightType};
use mobilediffusion_model::networks::{Network, Shape};
use mobilediffusion_model::{ModelError, Source};
use mobilediffusion_runtime::Gpu;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;

/// Storage types whose sizes are shown, with their labels.
const STORAGES: [(&str, Storage); 5] = [
    ("f32", Storage::F32),
    ("f32 with f16 weights", Storage::F32.with_weights(WeightType::F16)),
    ("f16", Storage::F16),
    ("f32 with int8 weights", Storage::F32.with_weights(WeightType::Int8)),
    ("f16 with int8 weights", Storage::F16.with_weights(WeightType::Int8)),
];

pub(crate) fn run(args: &Plan) -> Result<(), Failure> {
    let source = args.networks.source()?;
    let config = &source.config;
    let shape = Shape { pictures: args.batch, ..shape(config, args.networks.size, args.guidance)? };
    let chosen = match args.only.as_slice() {
        [] => Network::of(config, shape.sampler),
        names => names.iter().map(|name| name.network(shape.sampler)).collect(),
    };
    let recorded = |network: &Network| {
        let name = network.title();
        Ok((name, record(*network, config, &shape).map_err(|error| of(name, error))?))
    };
    let networks = chosen.iter().map(recorded).collect::<Result<Vec<_>, Failure>>()?;
    let storage = args.dtype.planned();
    if args.json {
        let one = |(name, recording): &(&str, Recording)| as_json(name, recording, storage);
        let all = networks.iter().map(one).collect::<Result<Vec<Value>, Failure>>()?;
        let whole = json!({"model": config.defaults.name, "size": shape.latent.pixels().0,
            "sampler": shape.sampler.to_string(), "guided": shape.guided, "batch": shape.pictures, "networks": all});
        return Ok(result(&serde_json::to_string_pretty(&whole)?)?);
    }
    let gpu = gpu(args)?;
    for (network, (name, recording)) in chosen.iter().zip(&networks) {
        if args.list {
            let variants = recording.variants(&machine((args, &source), gpu.as_ref(), *network)?);
            result(&format!("{name}, steps\n{}", recording.listing(Some(&variants))))?;
        }
        result(&format!("{name}, tensors in {}\n{}", args.dtype.name(), table(&placed(name, recording, storage)?)))?;
    }
    let (width, height) = shape.latent.pixels();
    let guidance = if shape.guided { "with guidance" } else { "without guidance" };
    let at_once = if shape.pictures > 1 { format!(", {} pictures at once", shape.pictures) } else { String::new() };
    result(&format!(
        "{}, {width}x{height} pixels{at_once}, {}, {guidance}",
        printable(&config.defaults.name),
        shape.sampler
    ))?;
    for (name, recording) in &networks {
        for (label, storage) in STORAGES {
            let summary = recording.summary(storage).map_err(|error| of(name, error))?;
            result(&format!("{name}, {label}: {summary}; in one arena: ratio {:.3}", arena_ratio(&summary)))?;
            let Traffic { fewest_steps, bytes, fewest_bytes } = recording.traffic(storage);
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            let (bytes, fewest_bytes) = (mib(bytes), mib(fewest_bytes));
            result(&format!(
                "{name}, {label}: {} steps (at least {fewest_steps}) move {bytes:.1} MiB (at least {fewest_bytes:.1})",
                summary.steps
            ))?;
        }
        let counts: Vec<String> = folded(recording).iter().map(|(what, count)| format!("{count} {what}")).collect();
        result(&format!("{name}, folded into steps: {}", counts.join(", ")))?;
    }
    Ok(())
}

/// Adds the name of its network to an error.
fn of(name: &str, error: impl Display) -> Failure {
    format!("{name}: {error}").into()
}

/// Opens the GPU that variants are chosen for, if there is one.
fn gpu(args: &Plan) -> Result<Option<Gpu>, Failure> {
    let Some(choice) = &args.device else { return Ok(None) };
    match open(choice)? {
        Some(gpu) => Ok(Some(gpu)),
        None => Err("--device: expected a GPU, found the CPU, on which kernels have no variants".into()),
    }
}

/// Describes the GPU that a network's variants are chosen for, or a portable one, with its weights as they are stored.
fn machine((args, source): (&Plan, &Source), gpu: Option<&Gpu>, network: Network) -> Result<Machine, ModelError> {
    let Some(gpu) = gpu else { return Ok(Machine::PORTABLE) };
    let f16 = match source.open(network) {
        Ok(weights) => weights.is_f16(),
        // A model that comes without this network has a plan for it all the same.
        Err(ModelError::NoPart { .. }) => false,
        Err(error) => return Err(error),
    };
    let weights = if f16 { WeightType::F16 } else { WeightType::Floats };
    let storage = args.dtype.storage(gpu).with_weights(weights);
    Ok(Machine::of(GpuDevice { gpu, storage }))
}

/// Returns the size of a single arena in proportion to its lower bound.
fn arena_ratio(summary: &PlanSummary) -> f64 {
    summary.arena_bytes as f64 / summary.lower_bound_bytes.max(1) as f64
}

/// Counts how often each kind of operation was fused into a step.
fn folded(recording: &Recording) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for what in (0..recording.nodes().len()).flat_map(|step| recording.folded(step)) {
        *counts.entry(what).or_default() += 1;
    }
    counts
}

/// Tensor with its lifetime and its place in an arena.
struct Placed<'a> {
    info: &'a TensorInfo,
    steps: (usize, usize),
    bytes: usize,
    arena: usize,
    offset: usize,
}

/// Returns the place of every tensor of the network `name` in the arenas of a GPU.
fn placed<'a>(name: &str, recording: &'a Recording, storage: Storage) -> Result<Vec<Placed<'a>>, Failure> {
    let bytes_of = |tensor: &TensorInfo| tensor.bytes(storage);
    let plan = recording.arenas(storage, NO_LIMIT).map_err(|error| of(name, error))?;
    let place = |(tensor, life): (usize, Lifetime)| {
        let Place { arena, offset } = plan.places[tensor]?;
        let info = &recording.tensors()[tensor];
        Some(Placed { info, steps: (life.first, life.last), bytes: life.bytes, arena, offset })
    };
    let (tensors, lifetimes) = recording.lifetimes(bytes_of);
    Ok(tensors.into_iter().zip(lifetimes).filter_map(place).collect())
}

fn table(placed: &[Placed<'_>]) -> String {
    let mut text = format!("{:>11} {:>11} {:>5} {:>11}  tensor\n", "steps", "bytes", "arena", "offset");
    for Placed { info, steps: (first, last), bytes, arena, offset } in placed {
        let steps = format!("{first}..={last}");
        text += &format!("{steps:>11} {bytes:>11} {arena:>5} {offset:>11}  {} {:?}\n", info.name, info.shape);
    }
    text
}

fn as_json(name: &str, recording: &Recording, storage: Storage) -> Result<Value, Failure> {
    let summary = |(label, storage): (&str, Storage)| {
        let summary = recording.summary(storage).map_err(|error| of(name, error))?;
        let traffic = recording.traffic(storage);
        Ok(json!({
            "storage": label,
            "bytes_moved": traffic.bytes,
            "fewest_bytes_moved": traffic.fewest_bytes,
            "weight_bytes": summary.weight_bytes,
            "activation_bytes": summary.activation_bytes,
            "arenas": summary.buffers,
            "one_arena_bytes": summary.arena_bytes,
            "lower_bound_bytes": summary.lower_bound_bytes,
            "lower_bound_in_place_bytes": summary.lower_bound_in_place_bytes,
            "ratio": summary.activation_bytes as f64 / summary.lower_bound_bytes.max(1) as f64,
        }))
    };
    let summaries = STORAGES.into_iter().map(summary).collect::<Result<Vec<Value>, Failure>>()?;
    let tensor = |p: &Placed<'_>| {
        let (first, last) = p.steps;
        json!({"name": p.info.name, "shape": p.info.shape, "first": first, "last": last, "bytes": p.bytes,
            "arena": p.arena, "offset": p.offset})
    };
    let tensors: Vec<Value> = placed(name, recording, storage)?.iter().map(tensor).collect();
    let (steps, fewest_steps) = (recording.nodes().len(), recording.traffic(storage).fewest_steps);
    Ok(
        json!({"name": name, "steps": steps, "fewest_steps": fewest_steps, "memory": summaries, "folded": folded(recording), "tensors": tensors}),
    )
}

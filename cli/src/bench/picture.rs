//! `bench --picture`: times whole pictures, from prompt to pixels, and measures the memory they take.

use super::Args;
use crate::Failure;
use crate::args::of_size;
use crate::device::Floats;
use crate::generate::described;
use crate::graphs::note_kept;
use crate::terminal::{Clock, printable, result};
use mobilediffusion_model::{Flow, Options, Pipeline, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Largest number of pictures after the first.
const MORE: usize = 7;

/// Prompts of the pictures, in turns: a pipeline does not encode the prompt again that it drew last.
const PROMPTS: [&str; 2] = ["red apple", "blue whale"];

/// Pipeline that has drawn nothing yet.
pub(super) struct Begun {
    pub(super) pipeline: Pipeline,
    requests: [Request; 2],
    /// Seconds that loading the pipeline took.
    load: f64,
}

/// Checks the requests and loads the pipeline.
pub(super) fn begin(args: &Args) -> Result<Begun, Failure> {
    let source = args.networks.source()?;
    let (floats, stored) = (Floats::or_auto(args.dtype), args.weights_dtype);
    let options = Options { device: args.device.clone(), floats, weights: stored, ..Options::default() };
    let (width, height) = (args.networks.size, args.networks.size);
    let (batch, guidance) = (args.batch, args.guidance);
    let requests =
        PROMPTS.map(|prompt| Request { width, height, guidance, count: batch, batch, ..Request::new(prompt) });
    requests[0].check(&source.config).map_err(of_size)?;
    let begin = Instant::now();
    let pipeline = Pipeline::load(source, options)?;
    Ok(Begun { pipeline, requests, load: begin.elapsed().as_secs_f64() })
}

/// Draws one picture that includes all preparation, then further ones that reuse it, and returns the numbers for a
/// file.
pub(super) fn run(args: &Args, begun: Begun, time_left: &dyn Fn() -> bool) -> Result<Value, Failure> {
    let Begun { mut pipeline, requests, load } = begun;
    let begin = Instant::now();
    let (name, batch) = (printable(&pipeline.model().config().defaults.name), args.batch);
    let settings = pipeline.settings(&requests[0])?;
    let storage = pipeline.model().storage(settings.sampler)?;
    note_kept(storage, pipeline.model().device().storage());
    result(&format!("pictures of {name}, {} (sampler: {})", described(&settings), settings.sampler))?;
    let (first, phases) = draw(&mut pipeline, &requests[0])?;
    let ready = load + begin.elapsed().as_secs_f64();
    result(&line("the first, loading and compiling included", ready, &phases))?;
    let mut drawn = [Some(first), None];
    let mut runs = Vec::new();
    // The first prompt is drawn twice at least, to be compared.
    while runs.len() < 2 || (!args.quick && runs.len() < MORE && time_left()) {
        let start = Instant::now();
        let turn = (runs.len() + 1) % 2;
        let (picture, phases) = draw(&mut pipeline, &requests[turn])?;
        runs.push((start.elapsed().as_secs_f64(), phases));
        if drawn[turn].get_or_insert_with(|| picture.clone()) != &picture {
            return Err("the same request gave two different pictures".into());
        }
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = runs.len();
    let (median, again) = runs.swap_remove(count / 2);
    result(&line(&format!("again (median of {count})"), median, &again))?;
    if batch > 1 {
        result(&format!("each of {batch} pictures at once: {:.4} s", median / batch as f64))?;
    }
    let counters = pipeline.counters();
    let peak = peak_bytes();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let process = peak.map_or(String::new(), |peak| format!(", process {:.1} MiB at its peak", mib(peak)));
    let (weights, plans) = (counters.weight_bytes, counters.plan_bytes);
    result(&format!("memory: weights {:.1} MiB, plans {:.1} MiB{process}", mib(weights), mib(plans)))?;
    let storage = storage.to_string().to_lowercase();
    Ok(json!({"batch": batch, "storage": storage, "runs": count, "first_seconds": ready, "first_phases": phases,
        "again_seconds": median, "again_phases": again, "weight_bytes": weights, "plan_bytes": plans,
        "process_peak_bytes": peak}))
}

/// Seconds spent in each phase, by name.
type Phases = BTreeMap<String, f64>;

/// Draws pictures, and returns their pixels and the seconds of every phase.
fn draw(pipeline: &mut Pipeline, request: &Request) -> Result<(Vec<u8>, Phases), Failure> {
    let mut clock = Clock::start();
    let pictures = pipeline.generate(request, &mut |progress| {
        clock.tick(progress);
        Flow::Continue
    });
    clock.stop();
    Ok((pictures?.into_iter().flat_map(|picture| picture.rgba).collect(), clock.seconds()))
}

/// Formats a line of the result.
fn line(what: &str, seconds: f64, phases: &Phases) -> String {
    let parts: Vec<String> = phases.iter().map(|(name, seconds)| format!("{name} {seconds:.3} s")).collect();
    format!("{what}: {seconds:.3} s ({})", parts.join(", "))
}

/// Reads this process's peak memory in bytes from `/proc/self/status`, where there is one.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

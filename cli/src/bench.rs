//! `bench`: times each kernel at the model's shapes and compares it with the device's measured peaks; or times a
//! network's plan step by step; or whole pictures.
//!
//! The f64 references are too slow at these sizes. A GPU's result is checked against the CPU form instead, and the CPU
//! form against the reference on the small built-in cases of its family.

mod copies;
mod kernels;
mod launch;
mod machine;
mod measure;
mod peaks;
mod picture;
mod plan;
mod row;
mod tune;

use crate::Failure;
use crate::args::{time_left, until};
use crate::compile::save;
use crate::device::{Floats, device, device_choice, open, weights_dtype, weights_name};
use crate::graphs::{NetworkName, recorded, weights};
use crate::output::check_numbers;
use crate::terminal::{note, result};
use clap::ArgGroup;
use mobilediffusion_kernels::tuning::Tuning;
use mobilediffusion_kernels::{Case, Device, FAMILIES, Family, GpuDevice, WeightType, family};
use mobilediffusion_model::DeviceChoice;
use mobilediffusion_runtime::{AdapterKind, Timer};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `bench`. Only plans and pictures have a model, a size and a scale of guidance.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = COLUMNS)]
#[command(group(ArgGroup::new("whole").args(["plan", "picture"])))]
#[command(group(
    ArgGroup::new("of_whole")
        .args(["model", "preset", "size", "guidance"])
        .multiple(true)
        .requires("whole")
        // clap waives a requirement that conflicts with another argument.
        .conflicts_with("kernels")
))]
pub(crate) struct Args {
    /// Kernels to time, at shapes of the full-size model [default: all]
    #[arg(value_name = "KERNEL", value_parser = clap::builder::PossibleValuesParser::new(FAMILIES.iter().map(|f| f.name)))]
    kernels: Vec<String>,
    /// Time the plan of a network step by step instead, and print totals for each kernel
    #[arg(long, value_enum, value_name = "NETWORK", conflicts_with = "kernels", num_args = 0..=1, default_missing_value = "unet")]
    plan: Option<NetworkName>,
    /// Time whole pictures instead, from prompt to pixels: the first one, later ones, and the memory they take. A
    /// built-in architecture draws with random weights
    #[arg(long, conflicts_with_all = ["kernels", "plan"])]
    picture: bool,
    /// Time every variant of each kernel that has several, and save the fastest in the user's cache folder, where later
    /// runs on this adapter find it. Uses the model's shapes or, with --plan, those of a network and its weights as its
    /// files have them
    #[arg(long, conflicts_with = "picture")]
    tune: bool,
    /// With --picture: number of pictures to draw at once
    #[arg(long, value_name = "N", value_parser = crate::args::whole::<usize>, default_value_t = 1, requires = "picture")]
    batch: usize,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    device: DeviceChoice,
    /// How a GPU stores floating-point tensors [default: f16 on hardware GPUs, else f32]
    #[arg(long, value_enum)]
    dtype: Option<Floats>,
    /// How weight matrices are stored; does not affect kernels without weights
    #[arg(long, default_value = "floats", value_parser = weights_dtype())]
    weights_dtype: WeightType,
    /// Also write the numbers to this JSON file, replacing it if it exists
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Time each shape with at most 10 runs or 0.1 s instead of 200 runs or 1 s, and leave out the largest shapes
    #[arg(long)]
    quick: bool,
    /// Finish within about this many seconds: each shape gets an equal share of the time left, shapes are left out once
    /// it is over, and plans and pictures are timed fewer times
    #[arg(long, value_name = "SECONDS", value_parser = crate::args::seconds)]
    within: Option<Duration>,
    #[command(flatten, next_help_heading = "With --plan or --picture")]
    networks: crate::args::Networks,
    /// Scale of classifier-free guidance; any value but 1 doubles the UNet's batch, and makes a one-step model draw a
    /// picture by DDIM, in more steps [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    guidance: Option<f32>,
}

const COLUMNS: &str = "\
Columns of kernels: times of one run; what the kernel computes and moves in a second of the median; %flops and %copy are
its shares of the measured peaks, and bound is the nearer one; %equal is the time of a copy of equally many bytes, as a
share of the median. benches/README.md explains them and the keys of --json.";

/// Limits on the time that measuring may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Time for the runs of one shape.
    per_shape: Duration,
    /// Largest number of runs of one shape.
    runs: usize,
    /// Time for which a hardware GPU runs a shape before it is timed.
    warm_up: Duration,
    /// Largest number of floating-point operations of a shape; larger shapes are left out.
    most_flops: u64,
    /// Whether the peak of copies is measured on a smaller buffer.
    quick: bool,
    /// Whether the adapter is a software driver, on which all peaks are measured on smaller problems.
    software: bool,
}

impl Effort {
    fn new(quick: bool, software: bool) -> Self {
        let per_shape = Duration::from_millis(if quick || software { 100 } else { 1000 });
        // A software adapter reaches a few GFLOP/s.
        let most_flops = match (quick, software) {
            (_, true) => 1_000_000_000,
            (true, false) => 10_000_000_000,
            (false, false) => u64::MAX,
        };
        let (runs, warm_up) = (if quick { 10 } else { 200 }, Duration::from_millis(100));
        Self { per_shape, runs, warm_up, most_flops, quick, software }
    }

    /// Limits the runs of a shape to half of its share of the time. The other half goes to operands, the check and the
    /// first run.
    fn within(self, share: Option<Duration>) -> Self {
        let per_shape = share.map_or(self.per_shape, |share| self.per_shape.min(share / 2));
        Self { per_shape, ..self }
    }
}

/// Numbers for a file, and a description of what went wrong beside them.
type Measured = (Value, Option<String>);

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    args.json.as_deref().map_or(Ok(()), check_numbers)?;
    let until = until(args.within);
    if args.picture {
        let begun = picture::begin(args)?;
        let device = begun.pipeline.model().device();
        let machine = header(&device, None)?;
        let measured = json!({ "picture": picture::run(args, begun, &time_left(until))? });
        return write_json(args, &device, machine, measured);
    }
    let gpu = open(&args.device)?.map(Arc::new);
    let device = device(gpu.as_ref(), args.dtype, args.weights_dtype)?;
    let timer = gpu.as_ref().map(|gpu| Timer::new(gpu)).transpose()?;
    let machine = header(&device, timer.as_ref())?;
    let software = gpu.as_ref().is_some_and(|gpu| gpu.adapter().kind == AdapterKind::Software);
    let effort = Effort::new(args.quick, software);
    if software && args.plan.is_none() {
        note("note: this is a software adapter: it computes on the CPU, so large shapes are left out");
    }
    let (measured, failure) = match args.plan {
        _ if args.tune => tune(args, (&device, timer.as_ref()), effort, until)?,
        Some(name) => {
            let runs = if args.quick { (1, 1) } else { (20, 200) };
            let subject = plan::Subject { name, networks: &args.networks, guidance: args.guidance, runs };
            (json!({ "plan": plan::run(subject, &device, &time_left(until))? }), None)
        }
        None => {
            let subject = kernels::Subject { device: &device, timer: timer.as_ref(), effort, until };
            kernels::run(subject, &chosen(args))?
        }
    };
    gpu.iter().for_each(|gpu| save(gpu));
    write_json(args, &device, machine, measured)?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Prints what is measured on, and returns it.
fn header(device: &Device, timer: Option<&Timer<'_>>) -> Result<Vec<(&'static str, String)>, Failure> {
    let machine = machine::describe(device, timer);
    machine.iter().try_for_each(|(name, text)| result(&format!("{name}: {text}")))?;
    Ok(machine)
}

/// Times the variants of kernels and saves the fastest.
fn tune(
    args: &Args,
    (device, timer): (&Device, Option<&Timer<'_>>),
    effort: Effort,
    until: Option<Instant>,
) -> Result<Measured, Failure> {
    let (Some(GpuDevice { gpu, storage }), Some(timer)) = (device.gpu(), timer) else {
        return Err("--tune: expected a GPU, found the CPU, on which kernels have no variants".into());
    };
    let why = |error| format!("--tune: expected a cache folder to save the fastest variants in, found none: {error}");
    Tuning::check_write(gpu).map_err(why)?;
    let (problems, weights) = problems(args, device)?;
    let subject = measure::Subject { device: GpuDevice { gpu, storage: storage.with_weights(weights) }, timer, effort };
    let (measured, failure) = tune::run(subject, &problems, until)?;
    Ok((json!({ "tuned": measured }), failure))
}

/// Returns the kernels named on the command line, or all.
fn chosen(args: &Args) -> Vec<&'static Family> {
    match args.kernels.as_slice() {
        [] => FAMILIES.iter().collect(),
        names => names.iter().filter_map(|name| family(name)).collect(),
    }
}

/// Returns the problems to tune: those of a network's plan, or the model's shapes of the chosen kernels. Also returns how
/// weights are stored, which the files of a network may decide.
fn problems(args: &Args, device: &Device) -> Result<(Vec<Case>, WeightType), Failure> {
    let Some(name) = args.plan else { return Ok((tune::of_families(&chosen(args)), device.storage().weights)) };
    let source = args.networks.source()?;
    let (network, recording, _) = recorded(name, &source.config, args.networks.size, args.guidance)?;
    let weights = weights(network, &source, device)?;
    Ok((tune::of_plan(&recording)?, weights.device().storage().weights))
}

fn as_map(machine: Vec<(&'static str, String)>) -> serde_json::Map<String, Value> {
    machine.into_iter().map(|(name, text)| (name.to_owned(), Value::String(text))).collect()
}

/// Writes the numbers, the machine and the storage types to the file of `--json`, if there is one.
fn write_json(
    args: &Args,
    device: &Device,
    machine: Vec<(&'static str, String)>,
    mut all: Value,
) -> Result<(), Failure> {
    let Some(path) = &args.json else { return Ok(()) };
    all["machine"] = Value::Object(as_map(machine));
    all["dtype"] = Floats::of(device.storage()).name().into();
    all["quick"] = args.quick.into();
    all["weights_dtype"] = weights_name(args.weights_dtype).into();
    let text = serde_json::to_string_pretty(&all)? + "\n";
    let written = mobilediffusion_runtime::write_whole(path, text.as_bytes());
    Ok(written.map_err(|error| format!("cannot write {}: {error}", path.display()))?)
}

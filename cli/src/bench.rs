//! `bench`: times each kernel at the model's shapes and compares it with the device's measured peaks; or times a
//! network's plan step by step; or whole pictures.
//!
//! The f64 references are too slow at these sizes. A GPU's result is checked against the CPU form instead, and the CPU
//! form against the reference on the small built-in cases of its family.

mod machine;
mod measure;
mod peaks;
mod picture;
mod plan;
mod row;
mod tune;

use crate::Failure;
use crate::args::{half, time_left, until};
use crate::compile::compile;
use crate::device::{Floats, WeightsDtype, device, device_choice, open};
use crate::graphs::{NetworkName, recorded, weights};
use crate::output::check_numbers;
use crate::terminal::{note, result};
use clap::ArgGroup;
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::runner::check_case;
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Case, FAMILIES, Family, WeightType, family, sample};
use mobilediffusion_model::DeviceChoice;
use mobilediffusion_runtime::{AdapterKind, Timer};
use peaks::Peaks;
use row::{Row, heading};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `bench`. Only plans and pictures have a model, a size and a scale of guidance.
#[derive(Clone, Debug, clap::Args)]
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
    /// Kernels to time [default: all]
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
    #[command(flatten)]
    networks: crate::args::Networks,
    /// With --plan or --picture: scale of classifier-free guidance; any value but 1 doubles the UNet's batch, and makes
    /// a one-step model draw a picture by DDIM, in more steps [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// With --picture: number of pictures to draw at once
    #[arg(long, value_name = "N", default_value_t = 1, requires = "picture")]
    batch: usize,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    device: DeviceChoice,
    /// How a GPU stores floating-point tensors [default: f16 on hardware GPUs, else f32]
    #[arg(long, value_enum)]
    dtype: Option<Floats>,
    /// How weight matrices are stored; does not affect kernels without weights
    #[arg(long, value_enum, default_value_t)]
    weights_dtype: WeightsDtype,
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
}

/// Limits on the time that measuring may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Time for the runs of one shape.
    per_shape: Duration,
    /// Largest number of runs of one shape.
    runs: usize,
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
        Self { per_shape, runs: if quick { 10 } else { 200 }, most_flops, quick, software }
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
        None => kernels(args, (&device, timer.as_ref()), effort, until)?,
    };
    write_json(args, &device, machine, measured)?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Prints what is measured on, and returns it.
fn header(device: &Device, timer: Option<&Timer>) -> Result<Vec<(&'static str, String)>, Failure> {
    let machine = machine::describe(device, timer);
    machine.iter().try_for_each(|(name, text)| result(&format!("{name}: {text}")))?;
    Ok(machine)
}

/// Times the variants of kernels and saves the fastest.
fn tune(
    args: &Args,
    (device, timer): (&Device, Option<&Timer>),
    effort: Effort,
    until: Option<Instant>,
) -> Result<Measured, Failure> {
    let (&Device::Gpu(ref gpu, storage), Some(timer)) = (device, timer) else {
        return Err("--tune: expected a GPU, found the CPU, on which kernels have no variants".into());
    };
    let (problems, weights) = problems(args, device)?;
    let subject = tune::Subject { gpu, storage: storage.with_weights(weights), timer, effort };
    let measured = tune::run(subject, &problems, until)?;
    let failed = measured["failed"].as_array().map_or(0, Vec::len);
    let failure = (failed > 0).then(|| format!("{failed} variants failed, see the notes above"));
    Ok((json!({ "tuned": measured }), failure))
}

/// Measurements of the kernels at the model's shapes, and the number of shapes left out for each reason.
struct Kernels {
    peaks: Peaks,
    rows: Vec<Value>,
    /// Shapes that the device has no memory for.
    no_room: usize,
    /// Shapes of too many floating-point operations.
    too_long: usize,
    /// Shapes not reached within the time limit.
    too_late: usize,
    /// Shapes not reached before the device was lost.
    lost: usize,
}

impl Kernels {
    /// Returns the numbers, beside `wrong` results.
    fn measured(self, wrong: &[String]) -> Measured {
        let Self { peaks, rows, no_room, too_long, too_late, lost } = self;
        let left_out = json!({ "no_room": no_room, "too_long": too_long, "too_late": too_late, "lost": lost });
        let numbers = json!({ "peaks": peaks.json(), "shapes": rows, "left_out": left_out });
        (numbers, (!wrong.is_empty()).then(|| format!("wrong results: {}", wrong.join("; "))))
    }
}

/// Checks and times the kernels, until the device is lost. Shapes with wrong results have no row, so that their times are
/// compared with nothing; they are what went wrong.
fn kernels(
    args: &Args,
    (device, timer): (&Device, Option<&Timer>),
    effort: Effort,
    until: Option<Instant>,
) -> Result<Measured, Failure> {
    let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
    let peaks = Peaks::measure(device, timer, effort)?;
    result(&peaks.to_string())?;
    result(&heading())?;
    let (mut all, mut wrong) =
        (Kernels { peaks, rows: Vec::new(), no_room: 0, too_long: 0, too_late: 0, lost: 0 }, Vec::new());
    let mut families: Vec<_> = chosen(args).into_iter().map(|family| (family, (family.model_shapes)())).collect();
    if until.is_some() {
        // What the time does not suffice for are then the kernels that matter least.
        let flops = |case: &Case| case.kernel.cost().flops;
        families.sort_by_key(|(_, cases)| Reverse(cases.iter().map(flops).sum::<u64>()));
    }
    if let (Device::Gpu(gpu, storage), false) = (device, effort.software) {
        let kernels = families.iter().flat_map(|(_, cases)| cases).map(|case| case.kernel.as_ref());
        let machine = Machine::of(gpu, *storage);
        let chosen = kernels.map(|kernel| (kernel, vec![choose(kernel, &machine)]));
        compile("compiling", &[gpu], *storage, chosen, time_left(half(until)));
    }
    let mut shapes_left = families.iter().map(|(_, cases)| cases.len()).sum::<usize>();
    for (family, cases) in families {
        if left().is_none_or(|left| !left.is_zero())
            && let Some(why) = check_cpu_form(family, device.storage().weights)
        {
            // The CPU form is what is timed here, or what the GPU is compared with.
            note(&format!("left out: {}: its CPU form is wrong: {why}", family.name));
            wrong.push(format!("{} on the CPU: {why}", family.name));
            shapes_left -= cases.len();
            continue;
        }
        for case in cases {
            let share = left().map(|left| left.div_f64(shapes_left as f64));
            shapes_left -= 1;
            if share.is_some_and(|share| share.is_zero()) {
                all.too_late += 1;
                continue;
            }
            if case.kernel.cost().flops > effort.most_flops {
                all.too_long += 1;
                continue;
            }
            let measured = match measure::shape(device, timer, &case, effort.within(share)) {
                Ok(measured) => measured,
                // Other shapes may still fit into the device's memory.
                Err(error) if measure::is_too_large(error.as_ref()) => {
                    all.no_room += 1;
                    note(&format!("left out: {} {}: {error}", family.name, sample::text(case.kernel.as_ref())));
                    continue;
                }
                Err(error) => {
                    wrong.push(format!("{} {}: {error}", family.name, sample::text(case.kernel.as_ref())));
                    // A lost device ends the run; any other error concerns this shape alone.
                    if matches!(device, Device::Gpu(gpu, _) if gpu.wait().is_err()) {
                        all.lost = shapes_left;
                        return Ok(all.measured(&wrong));
                    }
                    continue;
                }
            };
            if let Some(why) = measured.wrong {
                note(&format!("left out: {} {}: {why}", family.name, sample::text(case.kernel.as_ref())));
                wrong.push(why);
                continue;
            }
            let row = Row::new(&case, &measured, &all.peaks, device);
            result(&row.line())?;
            all.rows.push(row.json());
        }
    }
    if all.too_long > 0 {
        note(&format!("{} shapes of more than {} MFLOP were left out", all.too_long, effort.most_flops / 1_000_000));
    }
    if all.too_late > 0 {
        note(&format!("{} shapes were left out because the time was up", all.too_late));
    }
    Ok(all.measured(&wrong))
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
    let (network, recording, _) = recorded(name, &args.networks, args.guidance)?;
    let weights = weights(network, &args.networks, device)?;
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
    all["weights_dtype"] = args.weights_dtype.name().into();
    let text = serde_json::to_string_pretty(&all)? + "\n";
    let written = mobilediffusion_runtime::write_whole(path, text.as_bytes());
    Ok(written.map_err(|error| format!("cannot write {}: {error}", path.display()))?)
}

/// Checks the CPU form against its reference on the family's built-in cases. Returns the first failure.
fn check_cpu_form(family: &Family, weights: WeightType) -> Option<String> {
    let verdict = |(seed, case): (u64, Case)| match check_case(&Device::Cpu(weights), &case, seed) {
        Ok(verdict) => verdict.failure.map(|failure| format!("{:?} {failure}", case.kernel)),
        Err(error) => Some(error.to_string()),
    };
    (1..).zip((family.cases)()).find_map(verdict)
}

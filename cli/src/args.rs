//! Command-line arguments of every command.
//!
//! Settings of a model have no default here: an option that is left out stands for the model's own value.

mod generate;

pub(crate) use generate::Generate;

use crate::device::{Floats, device_choice, weights_dtype};
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};
use mobilediffusion_kernels::FAMILIES;
use mobilediffusion_model::{DeviceChoice, MOST_PICTURES, ModelConfig, ModelError, Source, WeightType, WeightsFrom};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Text to image with MobileDiffusion, on any GPU that wgpu reaches, or on the CPU.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw a picture of what a prompt describes
    Generate(Box<Generate>),
    /// Show the prompt, seed, model and settings that are stored in a picture's file
    Show(Show),
    /// List the GPUs of this machine and the CPU, and say which of them `--device auto` takes
    Devices,
    /// Count the parameters and multiply-accumulates of a model, block by block
    Info(Info),
    /// Show what a run will execute, without running it: steps, buffers and bytes
    Plan(Plan),
    /// Check the results of kernels against their references, or against case files (docs/cases.md)
    Check(Check),
    /// Compare a network with golden files, another implementation's outputs, block by block (reference/README.md)
    Golden(Golden),
    /// Time kernels at the model's shapes and compare them with the device's measured peaks
    Bench(crate::bench::Args),
    /// Print a completion script for a shell: `source <(mobilediffusion completions bash)`
    Completions(Completions),
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A PNG file that `generate` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print the texts as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell that will read the script
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Options that select a model's configuration and size; shared by `info`, `plan`, `check` and `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Networks {
    /// Folder or `model.json` of a model, or the name of a built-in architecture [default: the bundled model]
    #[arg(long, value_name = "DIR|FILE|NAME", conflicts_with = "preset")]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture instead of a model
    #[arg(long, value_name = "NAME", value_parser = presets())]
    pub(crate) preset: Option<String>,
    /// Width and height in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = whole::<usize>, allow_negative_numbers = true, visible_alias = "resolution")]
    pub(crate) size: Option<usize>,
}

/// Returns the built-in architecture that a path names. An existing path of that name takes precedence.
fn architecture(path: &Path) -> Option<&str> {
    path.to_str().filter(|name| ModelConfig::PRESETS.contains(name) && !path.exists())
}

/// Returns the folder of the model that a path names: the folder itself or the `model.json` in it.
fn model_folder(path: &Path) -> Result<PathBuf, ModelError> {
    let refused = |expected: &str, found: &str| ModelError::Config {
        path: path.to_owned(),
        key: "--model".to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    if path.exists() && !path.is_dir() {
        return match (path.file_name(), path.parent()) {
            (Some(name), Some(folder)) if name == "model.json" => Ok(folder.to_owned()),
            _ => Err(refused("a folder or a file called model.json", "a file of another name")),
        };
    }
    if architecture(path).is_some() {
        let expected = "the folder of a model (`--preset` selects a built-in architecture, and needs `--weights`)";
        return Err(refused(expected, "the name of an architecture"));
    }
    Ok(path.to_owned())
}

/// Seed of the weights that stand in for a built-in architecture's, which has none, unless `--weights` names another.
const SEED: u64 = 0;

/// Returns a built-in architecture, the model that a path names, or without either the bundled model.
fn source(preset: Option<&str>, model: Option<&Path>) -> Result<Source, ModelError> {
    match (preset, model) {
        (Some(preset), _) => Source::synthetic(preset, SEED),
        (None, Some(path)) => Source::directory(&model_folder(path)?),
        (None, None) => Source::bundled(),
    }
}

impl Networks {
    /// Returns the configuration that `--model` or `--preset` selects, and its weights: synthetic ones for a built-in
    /// architecture.
    pub(crate) fn source(&self) -> Result<Source, ModelError> {
        let model = self.model.as_deref();
        source(self.preset.as_deref().or(model.and_then(architecture)), model)
    }
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// Show instead how far each weight is rounded when weight matrices are stored in this type, and the bytes it takes
    #[arg(long, value_parser = weights_dtype(), conflicts_with = "size")]
    pub(crate) weights_dtype: Option<WeightType>,
    /// With --weights-dtype: how all other floating-point weights are stored
    #[arg(long, value_enum, default_value_t, requires = "weights_dtype")]
    pub(crate) dtype: Floats,
    /// With --weights-dtype: print the result as JSON
    #[arg(long, requires = "weights_dtype")]
    pub(crate) json: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Networks to show [default: all of the model]
    #[arg(value_enum, value_name = "NETWORK")]
    pub(crate) only: Vec<crate::graphs::NetworkName>,
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// Number of pictures that are drawn at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_PICTURES as u64))]
    pub(crate) batch: usize,
    /// Scale of classifier-free guidance; any value but 1 doubles the UNet's batch, and makes a one-step model draw by
    /// DDIM, with its base UNet [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// How floating-point tensors are stored, in the table of tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
    /// Also list every step with its operands and the variant of its kernel
    #[arg(long, conflicts_with = "json")]
    pub(crate) list: bool,
    /// With --list: show the variants that this GPU runs: `gpu`, or an adapter's index or part of its name [default:
    /// the variants that every GPU can run]
    #[arg(long, value_parser = device_choice, requires = "list")]
    pub(crate) device: Option<DeviceChoice>,
    /// Print the plan as JSON
    #[arg(long, conflicts_with = "device")]
    pub(crate) json: bool,
}

/// Arguments of `check`. Only a plan has a model and a size.
#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("of_plan")
        .args(["model", "preset", "size"])
        .multiple(true)
        .requires("plan")
        // clap waives a requirement that conflicts with another argument.
        .conflicts_with_all(["paths", "kernels", "every_variant"])
))]
pub(crate) struct Check {
    /// Case files, or folders that hold case files [default: the kernels' built-in cases, which --kernel, --every-variant
    /// and --within are for]
    #[arg(value_name = "FILE|DIR", conflicts_with = "plan")]
    pub(crate) paths: Vec<PathBuf>,
    /// Run only the built-in cases of this kernel; can be given several times
    #[arg(long = "kernel", value_name = "NAME", conflicts_with_all = ["paths", "plan"])]
    #[arg(value_parser = PossibleValuesParser::new(FAMILIES.iter().map(|family| family.name)))]
    pub(crate) kernels: Vec<String>,
    /// Run each case with every variant that the GPU can run, instead of only the one it would choose. Compiles for
    /// minutes, on all threads
    #[arg(long, conflicts_with_all = ["paths", "plan"])]
    pub(crate) every_variant: bool,
    /// Leave out the built-in cases that are not reached within this many seconds and, on a software driver, those that
    /// take a minute, and say how many they are. A case that runs is not interrupted
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with_all = ["paths", "plan"])]
    pub(crate) within: Option<Duration>,
    /// Run the plan of a network step by step instead, and find the first step whose result differs from the CPU
    /// device's. With --device cpu: from the kernels' f64 references, which is slow
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub(crate) plan: Option<crate::graphs::NetworkName>,
    /// With --plan: compare with the kernels' f64 references on any device
    #[arg(long, requires = "plan")]
    pub(crate) references: bool,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floating-point tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
    /// How weight matrices are stored
    #[arg(long, default_value = "floats", value_parser = weights_dtype())]
    pub(crate) weights_dtype: WeightType,
    #[command(flatten, next_help_heading = "With --plan")]
    pub(crate) networks: Networks,
}

/// Arguments of `golden`.
#[derive(Debug, Args)]
pub(crate) struct Golden {
    /// Folder with config.json, the weights and the case
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// File of the case, in the folder, with or without `.safetensors`
    #[arg(value_name = "CASE", default_value = "golden.safetensors")]
    pub(crate) case: String,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floating-point tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
    /// Largest relative L2 error of a block; a larger one is an error [default: 1e-4, or 1e-2 where floats are stored in
    /// f16]
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = tolerance)]
    pub(crate) tolerance: Option<f64>,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let tolerance = text.parse().ok().filter(|tolerance| *tolerance >= 0.0);
    tolerance.ok_or_else(|| "expected a number that is not negative".to_owned())
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a number of seconds".to_owned())
}

/// Returns the end of the time that there is from now on.
pub(crate) fn until(within: Option<Duration>) -> Option<Instant> {
    within.and_then(|within| Instant::now().checked_add(within))
}

/// Returns the time halfway to the end.
pub(crate) fn half(until: Option<Instant>) -> Option<Instant> {
    until.map(|until| Instant::now() + until.saturating_duration_since(Instant::now()) / 2)
}

/// Returns a function that tells whether there is time left.
pub(crate) fn time_left(until: Option<Instant>) -> impl Fn() -> bool + Copy + Sync {
    move || until.is_none_or(|until| Instant::now() < until)
}

/// Parses a whole number.
pub(crate) fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number of 0 to 2^64 - 1".to_owned())
}

/// Parses a text for people. Without it, clap does not say which of the arguments is not UTF-8.
pub(crate) fn text(text: OsString) -> Result<String, String> {
    text.into_string().map_err(|_| "expected UTF-8".to_owned())
}

/// Names the option `size` in an error for the width or the height that it gave.
pub(crate) fn of_size(error: ModelError) -> ModelError {
    match error {
        ModelError::Request { key: "width" | "height", expected, found } => {
            ModelError::Request { key: "size", expected, found }
        }
        other => other,
    }
}

fn presets() -> PossibleValuesParser {
    PossibleValuesParser::new(ModelConfig::PRESETS)
}

fn weights(text: &str) -> Result<WeightsFrom, String> {
    match text.strip_prefix("random:").map(str::parse) {
        Some(Ok(seed)) => Ok(WeightsFrom::Synthetic(seed)),
        Some(Err(_)) => Err("expected `random:` and a whole number, as in random:0".into()),
        None if text.is_empty() => Err("expected a folder, or `random:` and a whole number".into()),
        None => Ok(WeightsFrom::Directory(text.into())),
    }
}

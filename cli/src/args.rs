//! Command-line arguments of every command.
//!
//! Settings of a model have no default here: an option that is left out stands for the model's own value.

use crate::device::{Floats, device_choice, weights_dtype};
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};
use mobilediffusion_kernels::FAMILIES;
use mobilediffusion_model::pipeline::MOST_PICTURES;
use mobilediffusion_model::{DeviceChoice, ModelConfig, ModelError, Source, WeightType, WeightsFrom};
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
    /// Show what a run will execute, without running it: dispatches, buffers and bytes
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

#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(crate) struct Generate {
    /// What to draw, in a few words; text after the 75th token is ignored, with a warning
    pub(crate) prompt: String,
    /// The PNG file to write, in a folder that exists. With --count, each file's name gets its seed: apple-7.png
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// What the picture should not show. A one-step model samples by DDIM with guidance for it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) negative: String,

    /// Seed of the noise: an equal seed, prompt, settings and device give an equal picture
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true, default_value_t = 0, help_heading = "Settings")]
    pub(crate) seed: u64,
    /// Number of evaluations of the UNet. A one-step model takes 1 to 4, and samples by DDIM with more [default: the
    /// model's]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) steps: Option<usize>,
    /// Scale of classifier-free guidance; 1 turns it off [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) guidance: Option<f32>,
    /// Eta of DDIM, the share of fresh noise in every step, from 0 to 1 [default: 0]
    #[arg(long, value_name = "E", allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) eta: Option<f64>,
    /// Width in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) width: Option<usize>,
    /// Height in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
    #[arg(long, value_name = "PIXELS", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) height: Option<usize>,
    /// Width and height in pixels, for a square picture
    #[arg(long, value_name = "PIXELS", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Settings")]
    #[arg(conflicts_with_all = ["width", "height"])]
    pub(crate) size: Option<usize>,
    /// Number of pictures; each has the seed of the one before plus 1
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, default_value_t = 1, help_heading = "Settings")]
    pub(crate) count: usize,
    /// Number of the pictures of --count to draw at once. Small pictures take less time then, all take more memory, and
    /// rounding may change a picture a little
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, default_value_t = 1, help_heading = "Settings")]
    pub(crate) batch: usize,

    /// Begin from this picture (PNG, JPEG, GIF or WebP; of an animation the first frame). It is scaled and cropped to
    /// the size of the result
    #[arg(long, value_name = "FILE", help_heading = "Begin from a picture")]
    pub(crate) init: Option<PathBuf>,
    /// How much of the initial picture is redrawn, from 0 (nothing) to 1 (everything) [default: 0.6, or 1 with --mask]
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        requires = "init",
        help_heading = "Begin from a picture"
    )]
    pub(crate) strength: Option<f32>,
    /// Redraw only where this picture is white, and keep the pixels where it is black. Its size must be that of --init
    #[arg(long, value_name = "FILE", requires = "init", help_heading = "Begin from a picture")]
    pub(crate) mask: Option<PathBuf>,

    /// Write all pictures of --count on one sheet, into one file
    #[arg(long, help_heading = "Output")]
    pub(crate) grid: bool,
    /// Write previews of the unfinished picture into this folder, as SEED-STEP.png
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) preview: Option<PathBuf>,
    /// Write a preview after every N steps
    #[arg(
        long,
        value_name = "N",
        value_parser = whole::<usize>,
        allow_negative_numbers = true,
        default_value_t = 1,
        requires = "preview",
        help_heading = "Output"
    )]
    pub(crate) preview_every: usize,
    /// Overwrite existing files
    #[arg(long, help_heading = "Output")]
    pub(crate) force: bool,
    /// Print the files, settings and times as JSON on standard output
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice, help_heading = "Device and model")]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floating-point tensors; f16 takes half the memory of f32 [default: f16 on hardware GPUs, else
    /// f32]
    #[arg(long, value_enum, help_heading = "Device and model")]
    pub(crate) dtype: Option<Floats>,
    /// How weight matrices are stored. int8 takes half the memory of f16, and changes the picture a little
    #[arg(long, default_value = "floats", value_parser = weights_dtype(), help_heading = "Device and model")]
    pub(crate) weights_dtype: WeightType,
    /// Folder or `model.json` of a model [default: the bundled model]
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "preset", help_heading = "Device and model")]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture instead of a model; requires --weights, because it has none
    #[arg(long, value_name = "NAME", requires = "weights", value_parser = presets(), help_heading = "Device and model")]
    pub(crate) preset: Option<String>,
    /// Folder of the weights to load instead of the model's own; `random:SEED` generates random weights, for
    /// measurements
    #[arg(long, value_name = "DIR|random:SEED", value_parser = weights, help_heading = "Device and model")]
    pub(crate) weights: Option<WeightsFrom>,
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  mobilediffusion generate \"red apple\" -o apple.png
  mobilediffusion generate \"red apple\" -o apples.png --count 9 --grid
  mobilediffusion generate \"green apple\" -o other.png --init apple.png --strength 0.5
  mobilediffusion show apple.png";

impl Generate {
    /// Returns the configuration and weights that `--model`, `--preset` and `--weights` select.
    pub(crate) fn source(&self) -> Result<Source, ModelError> {
        let source = source(self.preset.as_deref(), self.model.as_deref())?;
        Ok(Source { weights: self.weights.clone().unwrap_or(source.weights), ..source })
    }
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
    /// Case files, or folders that hold case files [default: the kernels' built-in cases]
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
    /// Leave out the built-in cases that are not reached within this many seconds, and say how many they are
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with_all = ["paths", "plan"])]
    pub(crate) within: Option<Duration>,
    /// Run the plan of a network step by step instead, and find the first step whose result differs from the CPU
    /// device's. With --device cpu: from the kernels' f64 references, which is slow
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub(crate) plan: Option<crate::graphs::NetworkName>,
    /// With --plan: compare with the kernels' f64 references on any device
    #[arg(long, requires = "plan")]
    pub(crate) references: bool,
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floating-point tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
    /// How weight matrices are stored
    #[arg(long, default_value = "floats", value_parser = weights_dtype())]
    pub(crate) weights_dtype: WeightType,
}

/// Arguments of `golden`.
#[derive(Debug, Args)]
pub(crate) struct Golden {
    /// Folder with config.json, the weights and the case
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// File of the case, in the folder
    #[arg(value_name = "CASE", default_value = "golden.safetensors")]
    pub(crate) case: String,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floating-point tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
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

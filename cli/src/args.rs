//! What can be said on the command line. Without an option, the model's own value holds: no number stands here.

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mobilediffusion_model::{DeviceChoice, ModelConfig, ModelError, Source};
use std::path::PathBuf;

/// Text to image with MobileDiffusion, on any GPU that wgpu reaches, or on the CPU.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw a picture of a prompt
    Generate(Generate),
    /// List the devices of this machine, and which one `auto` takes
    Devices,
    /// Count the parameters and multiply-accumulates of a model, block by block
    Info(Networks),
    /// Show what will run: dispatches, buffers and bytes
    Plan(Plan),
    /// Compare kernels with their references, or with case files (docs/cases.md)
    Check(Check),
    /// Time kernels at the model's shapes, next to what the device can do at best
    Bench(crate::bench::Args),
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What to draw, in a few words
    pub(crate) prompt: String,
    /// The PNG file to write; its folder has to exist
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The same seed, prompt and device give the same picture
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Evaluations of the UNet [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Strength of guidance, 1 for none [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// Width and height in pixels, a multiple of 32 [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) size: Option<usize>,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device)]
    pub(crate) device: DeviceChoice,
    /// Folder of a model [default: the one that comes with the project]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "weights"])]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture; it has no weights, so `--weights` has to make them up
    #[arg(long, value_name = "NAME", requires = "weights", value_parser = presets())]
    pub(crate) preset: Option<String>,
    /// Weights made up from a seed: for measuring, not for looking at
    #[arg(long, value_name = "random:SEED", requires = "preset", value_parser = random)]
    pub(crate) weights: Option<u64>,
}

impl Generate {
    /// The model that is meant.
    pub(crate) fn source(&self) -> Result<Source, ModelError> {
        match (&self.model, &self.preset, self.weights) {
            (Some(folder), ..) => Source::directory(folder),
            (None, Some(preset), Some(seed)) => Source::synthetic(preset, seed),
            _ => Source::bundled(),
        }
    }
}

/// Which networks, without their weights.
#[derive(Debug, Args)]
pub(crate) struct Networks {
    /// Folder or configuration file of a model, or the name of a built-in architecture [default: the model that comes
    /// with the project]
    #[arg(long, value_name = "DIR|FILE|NAME", conflicts_with = "preset")]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture
    #[arg(long, value_name = "NAME", value_parser = presets())]
    pub(crate) preset: Option<String>,
    /// Width and height in pixels, a multiple of 32 [default: the model's]
    #[arg(long, value_name = "PIXELS", visible_alias = "resolution")]
    pub(crate) size: Option<usize>,
}

impl Networks {
    /// The name of a built-in architecture, if one is meant; a folder of that name comes first.
    fn name(&self) -> Option<&str> {
        let named = self.model.as_ref().filter(|path| !path.exists()).and_then(|path| path.to_str());
        named.filter(|name| ModelConfig::PRESETS.contains(name)).or(self.preset.as_deref())
    }

    /// The folder of the model, unless only an architecture is meant.
    pub(crate) fn folder(&self) -> Result<Option<PathBuf>, ModelError> {
        match (&self.model, self.name()) {
            (_, Some(_)) => Ok(None),
            (Some(path), _) if path.is_file() => Ok(path.parent().map(PathBuf::from)),
            (Some(folder), _) => Ok(Some(folder.clone())),
            (None, _) => match Source::bundled()?.weights {
                mobilediffusion_model::WeightsFrom::Directory(folder) => Ok(Some(folder)),
                mobilediffusion_model::WeightsFrom::Synthetic(_) => Ok(None),
            },
        }
    }

    /// The configuration that is meant.
    pub(crate) fn config(&self) -> Result<ModelConfig, ModelError> {
        match (self.name(), self.folder()?) {
            (None, Some(folder)) => ModelConfig::load(&folder),
            (Some(preset), _) => ModelConfig::preset(preset),
            (None, None) => Ok(Source::bundled()?.config),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Some of the networks [default: all]
    #[arg(value_enum, value_name = "NETWORK")]
    pub(crate) only: Vec<crate::graphs::Network>,
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// Strength of guidance: anything but 1 doubles the batch [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// How floats are stored in the table of tensors
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
    /// Show every step with its operands, too
    #[arg(long)]
    pub(crate) list: bool,
    /// Say the same as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Case files, or folders of them [default: the cases that come with the kernels]
    #[arg(value_name = "FILE|DIR", conflicts_with = "plan")]
    pub(crate) paths: Vec<PathBuf>,
    /// Run the plan of a network step by step instead, and find the first step that computes something else than the CPU
    /// does (on the CPU: than the kernels' references, slowly)
    #[arg(long, value_enum, value_name = "NETWORK")]
    pub(crate) plan: Option<crate::graphs::Network>,
    /// With --plan: hold the device to the kernels' references, whatever it is
    #[arg(long, requires = "plan")]
    pub(crate) references: bool,
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device)]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floats
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Floats,
}

/// How floats are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Floats {
    #[default]
    F32,
    F16,
}

fn presets() -> PossibleValuesParser {
    PossibleValuesParser::new(ModelConfig::PRESETS)
}

pub(crate) fn device(text: &str) -> Result<DeviceChoice, String> {
    Ok(match text {
        "auto" => DeviceChoice::Auto,
        "cpu" => DeviceChoice::Cpu,
        "gpu" => DeviceChoice::Gpu,
        "" => return Err("expected auto, gpu, cpu, or an adapter".into()),
        name => DeviceChoice::Named(name.into()),
    })
}

fn random(text: &str) -> Result<u64, String> {
    let seed = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
    seed.ok_or_else(|| "expected `random:` and a whole number, as in random:0".into())
}

//! What can be said on the command line. Without an option, the model's own value holds: no number stands here.

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mobilediffusion_kernels::FAMILIES;
use mobilediffusion_model::{DeviceChoice, ModelConfig, ModelError, Source, WeightsFrom};
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
    Generate(Box<Generate>),
    /// Show what a picture was made of: prompt, seed, model and settings
    Show(Show),
    /// List the devices of this machine, and which one `auto` takes
    Devices,
    /// Count the parameters and multiply-accumulates of a model, block by block
    Info(Info),
    /// Show what will run: dispatches, buffers and bytes
    Plan(Plan),
    /// Compare kernels with their references, or with case files (docs/cases.md)
    Check(Check),
    /// Time kernels at the model's shapes, next to what the device can do at best
    Bench(crate::bench::Args),
    /// Write completions for a shell: `source <(mobilediffusion completions bash)`
    Completions(Completions),
}

#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(crate) struct Generate {
    /// What to draw, in a few words
    pub(crate) prompt: String,
    /// The PNG file to write; its folder has to exist. Several pictures get their seeds put behind the name
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// What not to draw
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) negative: String,

    /// The same seed, prompt, settings and device give the same picture
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Settings")]
    pub(crate) seed: u64,
    /// Evaluations of the UNet; 1 to 4 in one-step models, more sample by DDIM [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Settings")]
    pub(crate) steps: Option<usize>,
    /// Strength of guidance, 1 for none [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) guidance: Option<f32>,
    /// Fresh noise between DDIM's steps, from 0 to 1 [default: none]
    #[arg(long, value_name = "E", allow_negative_numbers = true, help_heading = "Settings")]
    pub(crate) eta: Option<f64>,
    /// Width in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
    #[arg(long, value_name = "PIXELS", help_heading = "Settings")]
    pub(crate) width: Option<usize>,
    /// Height in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
    #[arg(long, value_name = "PIXELS", help_heading = "Settings")]
    pub(crate) height: Option<usize>,
    /// Width and height in one
    #[arg(long, value_name = "PIXELS", conflicts_with_all = ["width", "height"], help_heading = "Settings")]
    pub(crate) size: Option<usize>,
    /// How many pictures, with seeds that count up
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Settings")]
    pub(crate) count: usize,

    /// Begin from this picture (PNG, JPEG, GIF or WebP; the first frame), scaled and cropped to the size that is drawn
    #[arg(long, value_name = "FILE", help_heading = "Begin from a picture")]
    pub(crate) init: Option<PathBuf>,
    /// How much of it is drawn anew, 0 to 1 [default: 0.6, with a mask 1]
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        requires = "init",
        help_heading = "Begin from a picture"
    )]
    pub(crate) strength: Option<f32>,
    /// Draw only where this picture is white and keep every pixel where it is black; as large as that of --init
    #[arg(long, value_name = "FILE", requires = "init", help_heading = "Begin from a picture")]
    pub(crate) mask: Option<PathBuf>,

    /// All pictures on one sheet
    #[arg(long, help_heading = "Output")]
    pub(crate) grid: bool,
    /// Write what the picture looks like on the way into this folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) preview: Option<PathBuf>,
    /// After every so many steps
    #[arg(long, value_name = "N", default_value_t = 1, requires = "preview", help_heading = "Output")]
    pub(crate) preview_every: usize,
    /// Overwrite files that exist
    #[arg(long, help_heading = "Output")]
    pub(crate) force: bool,
    /// Say on standard output what was made, as JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// `auto` (hardware GPU, else the CPU), `gpu`, `cpu`, or an adapter's index or part of its name
    #[arg(long, default_value = "auto", value_parser = device, help_heading = "Device and model")]
    pub(crate) device: DeviceChoice,
    /// How a GPU stores floats; f16 takes half the memory [default: f16 on hardware that computes with it, else f32]
    #[arg(long, value_enum, help_heading = "Device and model")]
    pub(crate) dtype: Option<Floats>,
    /// How matrices of weights are stored; int8 takes half the memory of f16 and loses a little
    #[arg(long, value_enum, default_value_t, help_heading = "Device and model")]
    pub(crate) weights_dtype: WeightsDtype,
    /// Folder of a model [default: the one that comes with the project]
    #[arg(long, value_name = "DIR", conflicts_with = "preset", help_heading = "Device and model")]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture; it has no weights, so `--weights` has to give some
    #[arg(long, value_name = "NAME", requires = "weights", value_parser = presets(), help_heading = "Device and model")]
    pub(crate) preset: Option<String>,
    /// Folder with other weights for the architecture; `random:SEED` makes some up, for measuring
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
    /// The model that is meant.
    pub(crate) fn source(&self) -> Result<Source, ModelError> {
        let config = match (&self.model, &self.preset) {
            (Some(folder), _) => ModelConfig::load(folder)?,
            (None, Some(preset)) => ModelConfig::preset(preset)?,
            (None, None) => Source::bundled()?.config,
        };
        match (&self.weights, &self.model) {
            (Some(weights), _) => Ok(Source { config, weights: weights.clone() }),
            (None, Some(folder)) => Ok(Source { config, weights: WeightsFrom::Directory(folder.clone()) }),
            (None, None) => Source::bundled(),
        }
    }
}

/// Which file.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A PNG file that `generate` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Say the same as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose completions.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Which networks, without their weights.
#[derive(Clone, Debug, Args)]
pub(crate) struct Networks {
    /// Folder or configuration file of a model, or the name of a built-in architecture [default: the model that comes
    /// with the project]
    #[arg(long, value_name = "DIR|FILE|NAME", conflicts_with = "preset")]
    pub(crate) model: Option<PathBuf>,
    /// A built-in architecture
    #[arg(long, value_name = "NAME", value_parser = presets())]
    pub(crate) preset: Option<String>,
    /// Width and height in pixels, a multiple of 32, or of 64 for sd15 [default: the model's]
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
                WeightsFrom::Directory(folder) => Ok(Some(folder)),
                WeightsFrom::Synthetic(_) => Ok(None),
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
pub(crate) struct Info {
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// Show instead what storing matrices of weights like this does to each weight, and the bytes it takes
    #[arg(long, value_enum)]
    pub(crate) weights_dtype: Option<WeightsDtype>,
    /// How floats are stored, with --weights-dtype
    #[arg(long, value_enum, default_value_t, requires = "weights_dtype")]
    pub(crate) dtype: Floats,
    /// Say the same as JSON, with --weights-dtype
    #[arg(long, requires = "weights_dtype")]
    pub(crate) json: bool,
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
    /// Show every step with its operands, too, and the variant of its kernel
    #[arg(long)]
    pub(crate) list: bool,
    /// With --list: variants that this GPU would run, `gpu` or an adapter's index or part of its name [default: those of any]
    #[arg(long, value_parser = device, requires = "list")]
    pub(crate) device: Option<DeviceChoice>,
    /// Say the same as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Case files, or folders of them [default: the cases that come with the kernels]
    #[arg(value_name = "FILE|DIR", conflicts_with = "plan")]
    pub(crate) paths: Vec<PathBuf>,
    /// Of the cases that come with the kernels those of this one; can be given several times
    #[arg(long = "kernel", value_name = "NAME", conflicts_with_all = ["paths", "plan"])]
    #[arg(value_parser = PossibleValuesParser::new(FAMILIES.iter().map(|family| family.name)))]
    pub(crate) kernels: Vec<String>,
    /// Run each case by every variant that the GPU can run, not only by the one it would take
    #[arg(long, conflicts_with_all = ["paths", "plan"])]
    pub(crate) every_variant: bool,
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
    /// How matrices of weights are stored
    #[arg(long, value_enum, default_value_t)]
    pub(crate) weights_dtype: WeightsDtype,
}

/// How floats are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Floats {
    #[default]
    F32,
    F16,
}

/// How matrices of weights are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsDtype {
    /// As all floats
    #[default]
    Floats,
    /// In 8 bits, with a scale for each output channel
    Int8,
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

fn weights(text: &str) -> Result<WeightsFrom, String> {
    match text.strip_prefix("random:").map(str::parse) {
        Some(Ok(seed)) => Ok(WeightsFrom::Synthetic(seed)),
        Some(Err(_)) => Err("expected `random:` and a whole number, as in random:0".into()),
        None if text.is_empty() => Err("expected a folder, or `random:` and a whole number".into()),
        None => Ok(WeightsFrom::Directory(text.into())),
    }
}

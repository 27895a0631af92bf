//! Command-line arguments of `generate`.

use super::{presets, source, text, weights, whole};
use crate::device::{Floats, device_choice, weights_dtype};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use mobilediffusion_model::{DeviceChoice, ModelError, Source, WeightType, WeightsFrom};
use std::path::PathBuf;

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Generate {
    /// What to draw, in a few words; text after the 75th token is ignored, with a warning
    #[arg(value_parser = OsStringValueParser::new().try_map(text))]
    pub(crate) prompt: String,
    /// The PNG file to write, in a folder that exists. With --count, each file's name gets its seed: apple-7.png
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// What the picture should not show. A one-step model samples by DDIM with guidance for it
    #[arg(long, value_name = "TEXT", value_parser = OsStringValueParser::new().try_map(text), default_value = "", hide_default_value = true)]
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
    ///
    /// Keys: files (path, seed), previews (paths), count, batch, settings (the texts of the files, with the first seed,
    /// width and height, and numbers as numbers), left_out and left_out_of_negative (what a long prompt was cut by, or null),
    /// seconds (by phase) and weight_bytes.
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

const EXAMPLES: &str = "\
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

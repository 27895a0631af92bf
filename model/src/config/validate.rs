//! What the networks can be built from: every impossible or unsupported value is refused by name.

use super::{
    DecoderConfig, Defaults, MOST_PIXELS, ModelConfig, PIXELS_PER_LATENT, Sampler, SchedulerConfig, TextEncoderConfig,
    UnetConfig, file,
};
use crate::error::ModelError;
use crate::tokenizer::VOCABULARY;
use mobilediffusion_kernels::Activation;
use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Widths and factors: far above any network, far below where their products would overflow.
pub(super) const WIDTH: RangeInclusive<usize> = 1..=65_536;
/// Numbers of layers: twice those of any network.
pub(super) const LAYERS: RangeInclusive<usize> = 1..=64;
/// Widest attention head the kernels hold.
const WIDEST_HEAD: usize = 512;

impl ModelConfig {
    /// Refuses values that no network can be built from, that the kernels do not support or that disagree between
    /// parts.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the file, the key, what would be accepted and what stands there.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.validate_in(Path::new(""))
    }

    pub(super) fn validate_in(&self, dir: &Path) -> Result<(), ModelError> {
        let [decoder, vae, text_encoder] = [file::DECODER, file::VAE, file::TEXT_ENCODER].map(|file| dir.join(file));
        let base = self.unet_base.as_ref().map(|base| (base, dir.join(file::UNET_BASE)));
        let unets: Vec<_> = std::iter::once((&self.unet, dir.join(file::UNET))).chain(base).collect();
        unets.iter().try_for_each(|(unet, path)| unet.validate(path))?;
        self.decoder.iter().try_for_each(|config| config.validate(&decoder))?;
        self.vae.iter().try_for_each(|config| config.validate(&vae))?;
        self.validate_latent(&Check::new(&decoder), &Check::new(&vae))?;
        self.text_encoder.validate(&text_encoder)?;
        self.scheduler.validate(&dir.join(file::SCHEDULER))?;
        let (path, train_steps) = (dir.join(file::MODEL), self.scheduler.num_train_timesteps);
        self.defaults.validate(&path, train_steps, self.size_multiple())?;
        unets.iter().try_for_each(|(unet, path)| self.validate_unet(unet, &Check::new(path)))?;
        let vocabulary = self.text_encoder.vocab_size;
        let check = Check::new(&text_encoder);
        check.that(
            vocabulary >= VOCABULARY,
            "vocab_size",
            format!("at least {VOCABULARY}, the tokenizer's"),
            vocabulary,
        )
    }

    /// A UNet beside the other parts.
    fn validate_unet(&self, unet: &UnetConfig, check: &Check) -> Result<(), ModelError> {
        check.agree("in_channels", unet.in_channels(), self.unet.in_channels(), "the one-step UNet's")?;
        check.agree("out_channels", unet.out_channels(), unet.in_channels(), "its in_channels")?;
        let (dim, width) = (unet.cross_attention_dim(), self.text_encoder.hidden_size);
        check.agree("cross_attention_dim", dim, width, "the text encoder's hidden_size")?;
        let schedule = self.scheduler.prediction_type;
        let own = unet.prediction_type().unwrap_or(schedule);
        let expected = format!("{schedule:?} as in {}", file::SCHEDULER);
        check.that(own == schedule, "prediction_type", expected, format!("{own:?}"))
    }

    /// The parts that make and read latents are made for the same ones.
    fn validate_latent(&self, decoder: &Check, vae: &Check) -> Result<(), ModelError> {
        let channels = self.unet.in_channels();
        for (check, found) in [
            (decoder, self.decoder.as_ref().map(|config| config.latent_channels)),
            (vae, self.vae.as_ref().map(|config| config.latent_channels)),
        ] {
            found.map_or(Ok(()), |found| check.agree("latent_channels", found, channels, "the UNet's in_channels"))?;
        }
        match (&self.decoder, &self.vae) {
            (None, None) => decoder.that(false, "latent_channels", "a decoder here, or a VAE beside it", "neither"),
            (Some(light), Some(full)) => {
                let (expected, found) = (light.scaling_factor, full.scaling_factor);
                vae.that(found == expected, "scaling_factor", format!("{expected}, the decoder's"), found)
            }
            _ => Ok(()),
        }
    }
}

impl Defaults {
    /// `train_steps` are the scheduler's, `multiple` pixels the UNet's; `path` is for errors only.
    fn validate(&self, path: &Path, train_steps: usize, multiple: usize) -> Result<(), ModelError> {
        let check = Check::new(path);
        let size = self.image_size;
        let fits = (1..=MOST_PIXELS).contains(&size) && size.is_multiple_of(multiple);
        check.that(fits, "image_size", format!("a multiple of {multiple} up to {MOST_PIXELS}"), size)?;
        let most = match self.sampler {
            Sampler::Ddim => train_steps - 1,
            Sampler::OneStep => crate::schedule::MOST_ONE_STEP,
        };
        check.within("steps", self.steps, 1..=most)?;
        let guidance = self.guidance;
        check.that(guidance.is_finite() && guidance >= 0.0, "guidance", "a number of at least 0", guidance)?;
        let guided = self.sampler == Sampler::Ddim || guidance == 1.0;
        check.that(guided, "guidance", "1.0, since one_step uses none", guidance)
    }
}

impl DecoderConfig {
    /// Refuses what [`ModelConfig::validate`] would refuse in this file alone; `path` is for errors only.
    ///
    /// # Errors
    /// [`ModelError::Config`]
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.within("latent_channels", self.latent_channels, WIDTH)?;
        check.equal("out_channels", self.out_channels, 3)?;
        let blocks = PIXELS_PER_LATENT.ilog2() as usize + 1;
        check.widths(&self.block_out_channels, blocks, self.norm_num_groups)?;
        check.list("layers_per_up_block", &self.layers_per_up_block, blocks, LAYERS)?;
        check.epsilon("norm_eps", self.norm_eps)?;
        check.scaling_factor(self.scaling_factor)
    }
}

impl TextEncoderConfig {
    /// Refuses what [`ModelConfig::validate`] would refuse in this file alone; `path` is for errors only.
    ///
    /// # Errors
    /// [`ModelError::Config`]
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.within("vocab_size", self.vocab_size, 1..=1 << 20)?;
        check.within("hidden_size", self.hidden_size, WIDTH)?;
        check.within("intermediate_size", self.intermediate_size, WIDTH)?;
        check.within("num_hidden_layers", self.num_hidden_layers, LAYERS)?;
        check.within("num_attention_heads", self.num_attention_heads, WIDTH)?;
        // The begin and the end mark need a place each.
        check.within("max_position_embeddings", self.max_position_embeddings, 2..=4_096)?;
        check.multiple("hidden_size", self.hidden_size, self.num_attention_heads)?;
        check.head("hidden_size / num_attention_heads", self.hidden_size / self.num_attention_heads)?;
        let known = matches!(self.hidden_act, Activation::QuickGelu | Activation::Gelu);
        check.that(known, "hidden_act", "quick_gelu or gelu", format!("{:?}", self.hidden_act))?;
        check.epsilon("layer_norm_eps", self.layer_norm_eps)
    }
}

impl SchedulerConfig {
    /// Refuses what [`ModelConfig::validate`] would refuse in this file alone; `path` is for errors only.
    ///
    /// # Errors
    /// [`ModelError::Config`]
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.within("num_train_timesteps", self.num_train_timesteps, 2..=100_000)?;
        check.equal("beta_schedule", self.beta_schedule.as_str(), "scaled_linear")?;
        let (start, end) = (self.beta_start, self.beta_end);
        check.that(start > 0.0 && start < 1.0, "beta_start", "a number between 0 and 1", start)?;
        check.that(end >= start && end < 1.0, "beta_end", format!("a number of {start} to below 1"), end)
    }
}

/// The tests of one file.
pub(super) struct Check {
    path: PathBuf,
}

impl Check {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn that(
        &self,
        holds: bool,
        key: &str,
        expected: impl Display,
        found: impl Display,
    ) -> Result<(), ModelError> {
        if holds {
            return Ok(());
        }
        let (expected, found) = (expected.to_string(), found.to_string());
        Err(ModelError::Config { path: self.path.clone(), key: key.to_owned(), expected, found })
    }

    pub(super) fn equal<T: PartialEq + Debug>(&self, key: &str, found: T, expected: T) -> Result<(), ModelError> {
        self.that(found == expected, key, format!("{expected:?}"), format!("{found:?}"))
    }

    pub(super) fn agree(&self, key: &str, found: usize, expected: usize, whose: &str) -> Result<(), ModelError> {
        self.that(found == expected, key, format!("{expected}, {whose}"), found)
    }

    pub(super) fn within(&self, key: &str, found: usize, range: RangeInclusive<usize>) -> Result<(), ModelError> {
        self.that(range.contains(&found), key, format!("{} to {}", range.start(), range.end()), found)
    }

    pub(super) fn multiple(&self, key: &str, found: usize, of: usize) -> Result<(), ModelError> {
        self.that(found.is_multiple_of(of), key, format!("a multiple of {of}"), found)
    }

    /// A list of `len` values, each within `range`.
    pub(super) fn list(
        &self,
        key: &str,
        found: &[usize],
        len: usize,
        range: RangeInclusive<usize>,
    ) -> Result<(), ModelError> {
        let fits = found.len() == len && found.iter().all(|value| range.contains(value));
        let expected = format!("{len} values of {} to {}", range.start(), range.end());
        self.that(fits, key, expected, format!("{found:?}"))
    }

    /// The width of an attention head: whole vectors of four, and no wider than the kernels hold.
    pub(super) fn head(&self, key: &str, found: usize) -> Result<(), ModelError> {
        let fits = found > 0 && found <= WIDEST_HEAD && found.is_multiple_of(4);
        self.that(fits, key, format!("a multiple of 4 up to {WIDEST_HEAD}"), found)
    }

    pub(super) fn epsilon(&self, key: &str, found: f32) -> Result<(), ModelError> {
        self.that(found.is_finite() && found > 0.0, key, "a positive number", found)
    }
    /// The widths of a VAE's levels, each of which is normed in groups.
    pub(super) fn widths(&self, widths: &[usize], levels: usize, groups: usize) -> Result<(), ModelError> {
        self.within("norm_num_groups", groups, WIDTH)?;
        self.list("block_out_channels", widths, levels, WIDTH)?;
        widths.iter().try_for_each(|width| self.divides("norm_num_groups", groups, "normed width", *width))
    }

    /// Whether a key divides a width.
    pub(super) fn divides(&self, key: &str, found: usize, what: &str, width: usize) -> Result<(), ModelError> {
        let fits = width.is_multiple_of(found);
        self.that(fits, key, format!("a divisor of the {what} {width}"), found)
    }

    pub(super) fn scaling_factor(&self, found: f32) -> Result<(), ModelError> {
        self.that(found.is_finite() && found > 0.0, "scaling_factor", "a positive number", found)
    }
}

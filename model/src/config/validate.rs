//! Validation: refuses every value from which no network can be built, or that the kernels do not support, by file
//! and key.

use super::{
    DecoderConfig, Defaults, MOST_PIXELS, ModelConfig, PIXELS_PER_LATENT, Sampler, SchedulerConfig, TextEncoderConfig,
    UnetConfig, file,
};
use crate::error::{ModelError, shortened};
use crate::tokenizer::VOCABULARY;
use mobilediffusion_kernels::{Activation, Attention, Norm, TimestepEmbedding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Range of widths and factors: far above any network's, far below values whose products would overflow.
pub(super) const WIDTH: RangeInclusive<usize> = 1..=65_536;
/// Range of numbers of layers, up to about twice those of any network.
pub(super) const LAYERS: RangeInclusive<usize> = 1..=64;

/// Largest number of residual blocks and transformer layers of a network together, far above that of any. The lists of
/// a UNet, each within [`LAYERS`], could stand for many more.
const MOST_LAYERS: usize = 1024;

/// Contents of a network's own file, which are valid or not by themselves.
pub(crate) trait NetworkConfig: DeserializeOwned {
    /// Validates this file by itself, without the agreement of the parts that [`ModelConfig::validate`] checks too.
    /// `path` only names the file in errors.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a value is impossible or not supported.
    fn validate(&self, path: &Path) -> Result<(), ModelError>;

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ModelError::Io`] and [`ModelError::Json`] if the file cannot be read, and [`ModelError::Config`] if it is not
    /// valid.
    fn open(path: &Path) -> Result<Self, ModelError> {
        let config: Self = crate::json::read(path)?;
        config.validate(path).map(|()| config)
    }
}

impl ModelConfig {
    /// Checks that networks can be built from this configuration, that the kernels support them, and that the parts
    /// agree.
    ///
    /// # Errors
    /// [`ModelError::Config`] with the file, the key, the accepted values and the value that was found.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.validate_in(Path::new(""))
    }

    /// Implements [`validate`](Self::validate) for a model in `dir`, which only names the files in errors.
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
        // DDIM takes more steps than the one-step sampler, and fewer than there are in training.
        let least = self.defaults.ddim.map_or(2, |_| crate::schedule::MOST_ONE_STEP + 2);
        let scheduler = Check::new(&dir.join(file::SCHEDULER));
        let expected = format!("at least {least}, for the key ddim of {}", file::MODEL);
        scheduler.that(train_steps >= least, "num_train_timesteps", expected, train_steps)?;
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

    /// Checks that a UNet agrees with the other parts.
    fn validate_unet(&self, unet: &UnetConfig, check: &Check) -> Result<(), ModelError> {
        check.agree("in_channels", unet.in_channels(), self.unet.in_channels(), "as in unet/config.json")?;
        check.agree("out_channels", unet.out_channels(), unet.in_channels(), "its in_channels")?;
        let (dim, width) = (unet.cross_attention_dim(), self.text_encoder.hidden_size);
        check.agree("cross_attention_dim", dim, width, "the text encoder's hidden_size")?;
        let schedule = self.scheduler.prediction_type;
        let own = unet.prediction_type().unwrap_or(schedule);
        let expected = format!("{} as in {}", spelt(schedule), file::SCHEDULER);
        check.that(own == schedule, "prediction_type", expected, spelt(own))
    }

    /// Checks that the parts that write and read latents agree on them.
    fn validate_latent(&self, decoder: &Check, vae: &Check) -> Result<(), ModelError> {
        let channels = self.unet.in_channels();
        for (check, found) in [
            (decoder, self.decoder.as_ref().map(|config| config.latent_channels)),
            (vae, self.vae.as_ref().map(|config| config.latent_channels)),
        ] {
            found.map_or(Ok(()), |found| check.agree("latent_channels", found, channels, "the UNet's in_channels"))?;
        }
        match (&self.decoder, &self.vae) {
            (None, None) => decoder.that(
                false,
                "latent_channels",
                "a light decoder here, or a full VAE in the folder vae",
                "neither",
            ),
            (Some(light), Some(full)) => {
                let (expected, found) = (light.scaling_factor, full.scaling_factor);
                vae.that(found == expected, "scaling_factor", format!("{expected}, the decoder's"), found)
            }
            _ => Ok(()),
        }
    }
}

impl Defaults {
    /// Checks `model.json`. `train_steps` is the scheduler's number of training steps, `multiple` the number of
    /// pixels that sides are a multiple of; `path` only names the file in errors.
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
        check.that(super::GUIDANCE.contains(&guidance), "guidance", "a number from 0 to 100", guidance)?;
        let guided = self.sampler == Sampler::Ddim || guidance == 1.0;
        check.that(guided, "guidance", "1.0, since one_step uses none", guidance)?;
        let Some(ddim) = &self.ddim else { return Ok(()) };
        check.that(self.sampler == Sampler::OneStep, "ddim", "no value, since the sampler is ddim", "one")?;
        check.within("ddim.steps", ddim.steps, crate::schedule::MOST_ONE_STEP + 1..=train_steps - 1)?;
        let guidance = ddim.guidance;
        check.that(super::GUIDANCE.contains(&guidance), "ddim.guidance", "a number from 0 to 100", guidance)
    }
}

impl NetworkConfig for DecoderConfig {
    fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.equal("_class_name", self.class_name.as_str(), Self::CLASS_NAME)?;
        check.within("latent_channels", self.latent_channels, WIDTH)?;
        check.equal("out_channels", self.out_channels, 3)?;
        let blocks = PIXELS_PER_LATENT.ilog2() as usize + 1;
        check.widths(&self.block_out_channels, blocks, self.norm_num_groups)?;
        check.list("layers_per_up_block", &self.layers_per_up_block, blocks, LAYERS)?;
        check.eps("norm_eps", self.norm_eps)?;
        check.positive("scaling_factor", self.scaling_factor)
    }
}

impl NetworkConfig for TextEncoderConfig {
    fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        check.within("vocab_size", self.vocab_size, 1..=1 << 20)?;
        check.within("hidden_size", self.hidden_size, WIDTH)?;
        check.within("intermediate_size", self.intermediate_size, WIDTH)?;
        check.within("num_hidden_layers", self.num_hidden_layers, LAYERS)?;
        check.within("num_attention_heads", self.num_attention_heads, WIDTH)?;
        // The begin and end marks need a position each.
        check.within("max_position_embeddings", self.max_position_embeddings, 2..=4_096)?;
        check.multiple("hidden_size", self.hidden_size, self.num_attention_heads)?;
        check.head("hidden_size / num_attention_heads", self.hidden_size / self.num_attention_heads)?;
        let known = matches!(self.hidden_act, Activation::QuickGelu | Activation::Gelu);
        check.that(known, "hidden_act", "quick_gelu or gelu", spelt(self.hidden_act))?;
        check.eps("layer_norm_eps", self.layer_norm_eps)
    }
}

impl SchedulerConfig {
    /// Validates this file by itself, without the agreement of the parts that [`ModelConfig::validate`] checks too.
    /// `path` only names the file in errors.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a value is impossible or not supported.
    pub(crate) fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let check = Check::new(path);
        let most = TimestepEmbedding::MOST_TIMESTEPS as usize;
        check.within("num_train_timesteps", self.num_train_timesteps, 2..=most)?;
        check.equal("beta_schedule", self.beta_schedule.as_str(), "scaled_linear")?;
        let (start, end) = (self.beta_start, self.beta_end);
        check.that(start > 0.0 && start < 1.0, "beta_start", "a number between 0 and 1", start)?;
        check.that(end >= start && end < 1.0, "beta_end", format!("a number of {start} to below 1"), end)?;
        // Less noise or less of the picture than the last bit of an f32 is none, and samplers divide by both.
        let (noise, last) = (start.sqrt(), self.num_train_timesteps - 1);
        let least = f64::from(f32::EPSILON);
        check.that(noise >= least, "beta_start", "a number that adds noise at timestep 0", start)?;
        let root = |step: usize| noise + (end.sqrt() - noise) * step as f64 / last as f64;
        let signal = (0..=last).map(|step| 1.0 - root(step).powi(2)).product::<f64>().sqrt();
        let expected = format!("a number that leaves some of the picture at timestep {last}");
        check.that(signal >= least, "beta_end", expected, end)
    }
}

/// Returns a name as files spell it.
fn spelt(name: impl Serialize) -> String {
    serde_json::to_value(name).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Checks of one file's values; every failed check names the file.
pub(super) struct Check {
    path: PathBuf,
}

impl Check {
    /// Starts the checks of the file `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Requires a condition; the other checks build on this one.
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
        let (expected, found) = (expected.to_string(), shortened(&found.to_string()));
        Err(ModelError::Config { path: self.path.clone(), key: key.to_owned(), expected, found })
    }

    /// Requires a fixed value.
    pub(super) fn equal<T: PartialEq + Debug>(&self, key: &str, found: T, expected: T) -> Result<(), ModelError> {
        self.that(found == expected, key, format!("{expected:?}"), format!("{found:?}"))
    }

    /// Requires the value of another part, named by `whose`.
    pub(super) fn agree(&self, key: &str, found: usize, expected: usize, whose: &str) -> Result<(), ModelError> {
        self.that(found == expected, key, format!("{expected}, {whose}"), found)
    }

    /// Requires a number within a range.
    pub(super) fn within(&self, key: &str, found: usize, range: RangeInclusive<usize>) -> Result<(), ModelError> {
        self.that(range.contains(&found), key, format!("{} to {}", range.start(), range.end()), found)
    }

    /// Requires that the residual blocks and transformer layers that `keys` stand for are not too many together.
    pub(super) fn layers(&self, keys: &str, found: usize) -> Result<(), ModelError> {
        self.that(found <= MOST_LAYERS, keys, format!("at most {MOST_LAYERS} layers together"), found)
    }

    /// Requires a multiple of `of`.
    pub(super) fn multiple(&self, key: &str, found: usize, of: usize) -> Result<(), ModelError> {
        self.that(found.is_multiple_of(of), key, format!("a multiple of {of}"), found)
    }

    /// Requires a list of `len` values, each within `range`.
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

    /// Requires the width of an attention head: whole vectors of four, no wider than the kernels support.
    pub(super) fn head(&self, key: &str, found: usize) -> Result<(), ModelError> {
        let fits = found > 0 && found <= Attention::MOST_HEAD_DIM && found.is_multiple_of(4);
        self.that(fits, key, format!("a multiple of 4 up to {}", Attention::MOST_HEAD_DIM), found)
    }

    /// Requires a positive number.
    pub(super) fn positive(&self, key: &str, found: f32) -> Result<(), ModelError> {
        self.that(found.is_finite() && found > 0.0, key, "a positive number", found)
    }

    /// Requires an `eps` that no device takes for zero.
    pub(super) fn eps(&self, key: &str, found: f32) -> Result<(), ModelError> {
        let fits = found.is_finite() && found >= Norm::LEAST_EPS;
        self.that(fits, key, format!("a number of at least {:e}", Norm::LEAST_EPS), format!("{found:?}"))
    }

    /// Requires `levels` widths of a VAE that `groups` groups divide.
    pub(super) fn widths(&self, widths: &[usize], levels: usize, groups: usize) -> Result<(), ModelError> {
        self.within("norm_num_groups", groups, WIDTH)?;
        self.list("block_out_channels", widths, levels, WIDTH)?;
        widths.iter().try_for_each(|width| self.divides("norm_num_groups", groups, "normed width", *width))
    }

    /// Requires a divisor of a width, named by `what`.
    pub(super) fn divides(&self, key: &str, found: usize, what: &str, width: usize) -> Result<(), ModelError> {
        let fits = width.is_multiple_of(found);
        self.that(fits, key, format!("a divisor of the {what} {width}"), found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VaeConfig;

    #[test]
    fn layers_of_a_unet_are_limited_together() {
        let refused = |preset: &str, change: fn(&mut UnetConfig)| {
            let mut unet = ModelConfig::preset(preset).expect("there is one").unet;
            change(&mut unet);
            unet.validate(Path::new("x")).expect_err(preset).to_string()
        };
        let error = refused("mobilediffusion", |unet| {
            let UnetConfig::MobileDiffusion(unet) = unet else { return };
            (unet.layers_mid, unet.transformer_depth_mid) = (64, vec![15; 64]);
        });
        assert!(error.starts_with("x: layers_down, layers_mid, layers_up, transformer_depth_down, "), "{error}");
        assert!(error.ends_with("transformer_depth_up: expected at most 1024 layers together, found 1033"), "{error}");
        let error = refused("sd15", |unet| {
            let UnetConfig::StableDiffusion(unet) = unet else { return };
            (unet.sample_size, unet.layers_per_block, unet.block_out_channels) = (128, 64, vec![320; 8]);
            unet.down_block_types = vec!["CrossAttnDownBlock2D".to_owned(); 8];
            unet.up_block_types = vec!["CrossAttnUpBlock2D".to_owned(); 8];
        });
        let expected = "x: layers_per_block, down_block_types: expected at most 1024 layers together, found 2067";
        assert_eq!(error, expected);
    }

    #[test]
    fn the_golden_configurations_are_valid() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden");
        let config = |part: &str| golden.join(part).join("config.json");
        for part in ["unet", "unet_softmax", "unet_flat", "alt-1", "alt-2", "alt-4", "alt-7", "sd15_unet"] {
            UnetConfig::open(&config(part)).unwrap();
        }
        for part in ["vae", "sd15_vae"] {
            VaeConfig::open(&config(part)).unwrap();
        }
        DecoderConfig::open(&config("decoder")).unwrap();
        TextEncoderConfig::open(&config("text_encoder")).unwrap();
    }
}

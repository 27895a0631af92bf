//! Noise schedule, and the steps of the samplers as plain coefficients (docs/model.md, section 4).
//!
//! At timestep `t` a latent is `x_t = a_t x0 + s_t noise`, with `a_t = sqrt(abar_t)` and `s_t = sqrt(1 - abar_t)`.
//! All values are computed in f64 and rounded once, when they become coefficients.

use crate::config::SchedulerConfig;
use crate::error::ModelError;
use std::path::Path;

/// Largest number of steps of the one-step sampler, as UFOGen's networks are trained for four timesteps.
pub(crate) const MOST_ONE_STEP: usize = 4;

/// Values of `abar` at every training step, "scaled linear" as in Stable Diffusion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    alpha_bar: Vec<f64>,
}

/// Noise level of a latent, which is `signal * picture + noise * noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Level {
    /// Share of the picture: `sqrt(abar)`.
    pub(crate) signal: f32,
    /// Share of the noise: `sqrt(1 - abar)`.
    pub(crate) noise: f32,
}

impl Level {
    fn of(alpha_bar: f64) -> Self {
        Self { signal: alpha_bar.sqrt() as f32, noise: (1.0 - alpha_bar).sqrt() as f32 }
    }

    /// Returns `picture` with the amount of `noise` of this level.
    pub(crate) fn mix(self, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        picture.iter().zip(noise).map(|(z, n)| self.signal * z + self.noise * n).collect()
    }
}

/// One step of either sampler: the network predicts the picture `x0` and the noise `e` in a latent, and the next latent
/// is `signal x0 + kept e + added noise`, with fresh `noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    /// Training step at which the network is evaluated.
    pub(crate) timestep: usize,
    /// Noise level of the latent before the step.
    pub(crate) now: Level,
    /// Share of the picture after the step.
    pub(crate) signal: f32,
    /// Share of the predicted noise: `sqrt(1 - abar_prev - sigma²)` for DDIM, none for the one-step sampler.
    pub(crate) kept: f32,
    /// Share of fresh noise: DDIM's `sigma = eta sqrt((1 - abar_prev) / (1 - abar_t)) sqrt(1 - abar_t / abar_prev)`,
    /// all noise of the next level for the one-step sampler.
    pub(crate) added: f32,
}

impl Step {
    /// Returns the noise level of the latent after the step.
    pub(crate) fn next(&self) -> Level {
        Level { signal: self.signal, noise: self.kept.hypot(self.added) }
    }
}

impl Schedule {
    /// Builds the schedule of a configuration.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is not valid.
    pub(crate) fn new(config: &SchedulerConfig) -> Result<Self, ModelError> {
        config.validate(Path::new("scheduler/config.json"))?;
        let (first, last) = (config.beta_start.sqrt(), config.beta_end.sqrt());
        let steps = config.num_train_timesteps;
        let mut product = 1.0;
        let alpha_bar = (0..steps)
            .map(|i| {
                let root = first + (last - first) * i as f64 / (steps - 1) as f64;
                product *= 1.0 - root * root;
                product
            })
            .collect();
        Ok(Self { alpha_bar })
    }

    /// Returns the number of training steps.
    pub(crate) fn train_steps(&self) -> usize {
        self.alpha_bar.len()
    }

    /// Returns the steps of DDIM, from noise to picture, with "leading" spacing and an offset of 1. After the last
    /// step follows `abar` of timestep 0. `eta` is the share of fresh noise, from 0 for none to 1 for DDPM's.
    ///
    /// # Errors
    /// [`ModelError::Request`] if `steps` is not within 1 to `train_steps - 1`, or `eta` not within 0 to 1.
    pub(crate) fn ddim(&self, steps: usize, eta: f64) -> Result<Vec<Step>, ModelError> {
        check_steps(steps, self.train_steps() - 1)?;
        if !(0.0..=1.0).contains(&eta) {
            return Err(ModelError::request("eta", "a number from 0 to 1", eta));
        }
        let stride = self.train_steps() / steps;
        Ok((0..steps).rev().map(|k| self.ddim_step(stride * k + 1, stride, eta)).collect())
    }

    /// Returns the step of DDIM at one timestep.
    fn ddim_step(&self, timestep: usize, stride: usize, eta: f64) -> Step {
        let now = self.alpha_bar[timestep];
        let previous = self.alpha_bar[timestep.saturating_sub(stride)];
        let sigma = eta * ((1.0 - previous) / (1.0 - now)).sqrt() * (1.0 - now / previous).max(0.0).sqrt();
        Step {
            timestep,
            now: Level::of(now),
            signal: previous.sqrt() as f32,
            kept: (1.0 - previous - sigma * sigma).max(0.0).sqrt() as f32,
            added: sigma as f32,
        }
    }

    /// Returns the steps of the one-step sampler, evenly spaced from the last timestep down: 999 for one step, and
    /// 999, 749, 499 and 249 for four.
    ///
    /// # Errors
    /// [`ModelError::Request`] if `steps` is not within 1 to [`MOST_ONE_STEP`].
    pub(crate) fn one_step(&self, steps: usize) -> Result<Vec<Step>, ModelError> {
        self.one_step_from(steps, self.train_steps() - 1)
    }

    /// Returns the steps of the one-step sampler, evenly spaced from the timestep `first` down, for a latent that is
    /// partly known.
    ///
    /// # Errors
    /// [`ModelError::Request`] if `steps` is not within 1 to the smaller of [`MOST_ONE_STEP`] and `first + 1`.
    ///
    /// # Panics
    /// If `first` is beyond the schedule.
    pub(crate) fn one_step_from(&self, steps: usize, first: usize) -> Result<Vec<Step>, ModelError> {
        assert!(first < self.train_steps(), "timestep {first} of a schedule of {}", self.train_steps());
        check_steps(steps, MOST_ONE_STEP.min(first + 1))?;
        let stride = (first + 1) / steps;
        let timestep = |k: usize| first - k * stride;
        // The last step ends with the picture.
        let level = |k: usize| Level::of(if k < steps { self.alpha_bar[timestep(k)] } else { 1.0 });
        let step = |k: usize| {
            let next = level(k + 1);
            Step { timestep: timestep(k), now: level(k), signal: next.signal, kept: 0.0, added: next.noise }
        };
        Ok((0..steps).map(step).collect())
    }
}

fn check_steps(steps: usize, most: usize) -> Result<(), ModelError> {
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(ModelError::request("steps", format!("1 to {most}"), steps))
}

#[cfg(test)]
mod tests;

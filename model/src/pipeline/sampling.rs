//! The sampler's walk from noise to a picture as plain data: the inputs of every UNet evaluation, and the noise level
//! after it.

use super::request::Settings;
use crate::config::Sampler;
use crate::error::ModelError;
use crate::schedule::{Schedule, Step};

/// One evaluation of the UNet with the sampler's step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evaluation {
    /// The step.
    pub(super) step: Step,
    /// Coefficients for the sampler's kernel.
    pub(super) coefficients: [f32; 8],
    /// Stream of the fresh noise that the step adds.
    pub(super) fresh: Option<u32>,
}

impl Evaluation {
    /// Returns the clean latent that the step predicted, from the latents before and after it and the fresh noise.
    /// DDIM keeps the noise that it predicts, so two latents of one line determine where the line ends.
    pub(super) fn predicted(&self, latent: &[f32], next: &[f32], fresh: Option<&[f32]>) -> Vec<f32> {
        let Step { now: from, signal, kept, added, .. } = self.step;
        let across = from.noise * signal - kept * from.signal;
        let known = |i: usize| next[i] - fresh.map_or(0.0, |fresh| added * fresh[i]);
        latent.iter().enumerate().map(|(i, x)| (from.noise * known(i) - kept * x) / across).collect()
    }
}

/// Returns the evaluations for a share of the walk, counted from the picture: all for a strength of 1, none for 0.
pub(super) fn evaluations(
    schedule: &Schedule,
    settings: &Settings,
    strength: f32,
) -> Result<Vec<Evaluation>, ModelError> {
    if strength == 0.0 {
        return Ok(Vec::new());
    }
    match settings.sampler {
        Sampler::Ddim => ddim(schedule, settings, strength),
        Sampler::OneStep => one_step(schedule, settings.steps, strength),
    }
}

/// Returns the stream of the noise that goes into a step. Stream 0 is the noise at the beginning.
fn stream(index: usize) -> u32 {
    u32::try_from(index + 1).expect("there are fewer steps than timesteps")
}

/// Returns the coefficients of a step in the order of the sampler's kernel.
fn coefficients(Step { now, signal, kept, added, .. }: Step, guidance: f32) -> [f32; 8] {
    [now.signal, now.noise, signal, kept, guidance, added, 0.0, 0.0]
}

/// Returns the last DDIM steps, at least one.
fn ddim(schedule: &Schedule, settings: &Settings, strength: f32) -> Result<Vec<Evaluation>, ModelError> {
    let steps = schedule.ddim(settings.steps, settings.eta)?;
    let used = ((settings.steps as f32 * strength).round() as usize).clamp(1, settings.steps);
    let evaluation = |(index, step): (usize, Step)| {
        let fresh = (settings.eta > 0.0).then(|| stream(index));
        Evaluation { step, coefficients: coefficients(step, settings.guidance), fresh }
    };
    Ok(steps.into_iter().enumerate().skip(settings.steps - used).map(evaluation).collect())
}

/// Returns as many one-step evaluations as asked for, starting from a timestep nearer to the picture.
fn one_step(schedule: &Schedule, steps: usize, strength: f32) -> Result<Vec<Evaluation>, ModelError> {
    let train = schedule.train_steps();
    let first = ((train as f32 * strength).round() as usize).clamp(steps, train) - 1;
    let evaluation = |(index, step): (usize, Step)| Evaluation {
        step,
        coefficients: coefficients(step, 1.0),
        fresh: (steps > 1).then(|| stream(index)),
    };
    Ok(schedule.one_step_from(steps, first)?.into_iter().enumerate().map(evaluation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::pipeline::request::Request;
    use crate::schedule::Level;

    fn walk(sampler: Sampler, steps: usize, strength: f32) -> Vec<Evaluation> {
        noisy_walk((sampler, 0.0), steps, strength)
    }

    fn noisy_walk((sampler, eta): (Sampler, f64), steps: usize, strength: f32) -> Vec<Evaluation> {
        let config = ModelConfig::preset("mini").expect("there is a preset");
        let schedule = Schedule::new(&config.scheduler).expect("the schedule is valid");
        let request = Request { steps: Some(steps), eta: Some(eta), ..Request::new("") };
        let settings = request.settings(&config, &schedule).expect("the settings are valid");
        let settings = Settings { sampler, guidance: 1.0, ..settings };
        evaluations(&schedule, &settings, strength).expect("the settings are valid")
    }

    #[test]
    fn strength_is_the_share_of_the_way() {
        let timesteps = |sampler, steps, strength| -> Vec<usize> {
            walk(sampler, steps, strength).iter().map(|e| e.step.timestep).collect()
        };
        assert_eq!(timesteps(Sampler::Ddim, 4, 1.0), [751, 501, 251, 1]);
        assert_eq!(timesteps(Sampler::Ddim, 4, 0.5), [251, 1]);
        assert_eq!(timesteps(Sampler::Ddim, 4, 0.01), [1]);
        assert_eq!((timesteps(Sampler::Ddim, 4, 0.4), timesteps(Sampler::Ddim, 4, 0.35)), (vec![251, 1], vec![1]));
        assert_eq!(timesteps(Sampler::OneStep, 1, 1.0), [999]);
        assert_eq!(timesteps(Sampler::OneStep, 1, 0.5), [499]);
        assert_eq!([0.4996, 0.4994].map(|strength| timesteps(Sampler::OneStep, 1, strength)), [[499], [498]]);
        assert_eq!(timesteps(Sampler::OneStep, 4, 1.0), [999, 749, 499, 249]);
        assert_eq!(timesteps(Sampler::OneStep, 4, 0.001), [3, 2, 1, 0]);
        assert!(walk(Sampler::Ddim, 4, 0.0).is_empty() && walk(Sampler::OneStep, 1, 0.0).is_empty());
    }

    /// Stream 0 is the noise at the beginning: a step that added it again would leave a trace of it in the picture.
    #[test]
    fn every_step_adds_the_noise_of_its_own_stream() {
        let streams = |sampler: (Sampler, f64), steps, strength| -> Vec<u32> {
            noisy_walk(sampler, steps, strength).iter().filter_map(|e| e.fresh).collect()
        };
        let (ddim, one_step) = ((Sampler::Ddim, 1.0), (Sampler::OneStep, 0.0));
        assert_eq!(streams(ddim, 6, 1.0), [1, 2, 3, 4, 5, 6]);
        assert_eq!(streams(ddim, 6, 0.5), [4, 5, 6], "the last steps of the whole walk");
        assert_eq!(streams(one_step, 4, 1.0), [1, 2, 3, 4]);
        assert_eq!(streams(one_step, 4, 0.5), [1, 2, 3, 4], "all steps, nearer to the picture");
        assert!(streams(one_step, 1, 1.0).is_empty() && streams((Sampler::Ddim, 0.0), 6, 1.0).is_empty());
    }

    #[test]
    fn every_step_begins_where_the_last_one_ended() {
        for (sampler, steps, eta) in [(Sampler::Ddim, 10, 0.0), (Sampler::Ddim, 10, 0.7), (Sampler::OneStep, 4, 0.0)] {
            for pair in noisy_walk((sampler, eta), steps, 1.0).windows(2) {
                let (end, start) = (pair[0].step.next(), pair[1].step.now);
                assert!((end.signal - start.signal).abs() < 1e-6 && (end.noise - start.noise).abs() < 1e-6, "{pair:?}");
            }
        }
    }

    #[test]
    fn the_prediction_is_found_again() {
        let (picture, noise, fresh) = (vec![0.3, -1.0, 2.0], vec![1.0, 0.5, -0.7], vec![-0.2, 0.9, 0.1]);
        for (sampler, steps, eta) in [(Sampler::Ddim, 10, 0.0), (Sampler::Ddim, 10, 0.7), (Sampler::OneStep, 4, 0.0)] {
            for e in noisy_walk((sampler, eta), steps, 1.0) {
                let given = e.fresh.map(|_| fresh.as_slice());
                assert_eq!(given.is_some(), eta > 0.0 || sampler == Sampler::OneStep);
                let Step { now, signal, kept, added, .. } = e.step;
                let mut next = Level { signal, noise: kept }.mix(&picture, &noise);
                next.iter_mut().zip(&fresh).for_each(|(x, n)| *x += added * n);
                let found = e.predicted(&now.mix(&picture, &noise), &next, given);
                let worst = found.iter().zip(&picture).map(|(f, p)| (f - p).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{e:?}: {found:?}");
            }
        }
    }
}

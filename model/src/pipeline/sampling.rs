//! The walk from noise to a picture as plain data: what every evaluation of the UNet is given, and how much noise is
//! left after it.

use super::request::Settings;
use crate::config::Sampler;
use crate::error::ModelError;
use crate::schedule::Schedule;

/// A latent is `signal * picture + noise * noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Level {
    pub(super) signal: f32,
    pub(super) noise: f32,
}

impl Level {
    /// `picture` with as much of `noise` as belongs here.
    pub(super) fn mix(self, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        picture.iter().zip(noise).map(|(z, n)| self.signal * z + self.noise * n).collect()
    }
}

/// One evaluation of the UNet and the sampler's step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evaluation {
    pub(super) timestep: usize,
    /// As the sampler's kernel takes them.
    pub(super) coefficients: Vec<f32>,
    /// Where it begins.
    pub(super) now: Level,
    /// Where it ends.
    pub(super) next: Level,
    /// How much of the noise it saw is still there at its end; the rest of `next` is fresh.
    pub(super) kept: f32,
    /// How much of the fresh noise it adds.
    pub(super) added: f32,
    /// The stream of fresh noise that goes into it.
    pub(super) fresh: Option<u32>,
}

impl Evaluation {
    /// The picture's latent that the step saw: from where it began, where it ended, and the noise it was given. DDIM
    /// keeps the noise it predicts, so two latents of one line give the line's end.
    pub(super) fn predicted(&self, latent: &[f32], next: &[f32], fresh: Option<&[f32]>) -> Vec<f32> {
        let (from, kept) = (self.now, self.kept);
        let across = from.noise * self.next.signal - kept * from.signal;
        let known = |i: usize| next[i] - fresh.map_or(0.0, |fresh| self.added * fresh[i]);
        latent.iter().enumerate().map(|(i, x)| (from.noise * known(i) - kept * x) / across).collect()
    }
}

/// The evaluations for a share of the way, counted from the picture: all for a strength of 1, none for 0.
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

/// The stream of the noise that goes into a step: stream 0 is the noise at the beginning.
fn stream(index: usize) -> u32 {
    u32::try_from(index + 1).expect("there are fewer steps than timesteps")
}

/// The last of the steps, at least one.
fn ddim(schedule: &Schedule, settings: &Settings, strength: f32) -> Result<Vec<Evaluation>, ModelError> {
    let steps = schedule.ddim(settings.steps, settings.eta)?;
    let used = ((settings.steps as f32 * strength).round() as usize).clamp(1, settings.steps);
    let evaluation = |(index, s): (usize, crate::schedule::DdimStep)| Evaluation {
        timestep: s.timestep,
        coefficients: vec![s.a_t, s.s_t, s.a_prev, s.direction, settings.guidance, s.sigma, 0.0, 0.0],
        now: Level { signal: s.a_t, noise: s.s_t },
        next: Level { signal: s.a_prev, noise: s.direction.hypot(s.sigma) },
        kept: s.direction,
        added: s.sigma,
        fresh: (settings.eta > 0.0).then(|| stream(index)),
    };
    Ok(steps.into_iter().enumerate().skip(settings.steps - used).map(evaluation).collect())
}

/// All of the steps, from a timestep nearer to the picture.
fn one_step(schedule: &Schedule, steps: usize, strength: f32) -> Result<Vec<Evaluation>, ModelError> {
    let train = schedule.train_steps();
    let first = ((train as f32 * strength).round() as usize).clamp(steps, train) - 1;
    let evaluation = |(index, s): (usize, crate::schedule::OneStep)| Evaluation {
        timestep: s.timestep,
        coefficients: vec![s.a, s.s, s.a_next, s.s_next],
        now: Level { signal: s.a, noise: s.s },
        next: Level { signal: s.a_next, noise: s.s_next },
        kept: 0.0,
        added: s.s_next,
        fresh: (steps > 1).then(|| stream(index)),
    };
    Ok(schedule.one_step_from(steps, first)?.into_iter().enumerate().map(evaluation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::pipeline::request::Request;

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
            walk(sampler, steps, strength).iter().map(|e| e.timestep).collect()
        };
        assert_eq!(timesteps(Sampler::Ddim, 4, 1.0), [751, 501, 251, 1]);
        assert_eq!(timesteps(Sampler::Ddim, 4, 0.5), [251, 1]);
        assert_eq!(timesteps(Sampler::Ddim, 4, 0.01), [1]);
        assert_eq!(timesteps(Sampler::OneStep, 1, 1.0), [999]);
        assert_eq!(timesteps(Sampler::OneStep, 1, 0.5), [499]);
        assert_eq!(timesteps(Sampler::OneStep, 4, 1.0), [999, 749, 499, 249]);
        assert_eq!(timesteps(Sampler::OneStep, 4, 0.001), [3, 2, 1, 0]);
        assert!(walk(Sampler::Ddim, 4, 0.0).is_empty() && walk(Sampler::OneStep, 1, 0.0).is_empty());
    }

    #[test]
    fn every_step_begins_where_the_last_one_ended() {
        for (sampler, steps, eta) in [(Sampler::Ddim, 10, 0.0), (Sampler::Ddim, 10, 0.7), (Sampler::OneStep, 4, 0.0)] {
            for pair in noisy_walk((sampler, eta), steps, 1.0).windows(2) {
                let (end, start) = (pair[0].next, pair[1].now);
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
                let mut next = Level { noise: e.kept, ..e.next }.mix(&picture, &noise);
                next.iter_mut().zip(&fresh).for_each(|(x, n)| *x += e.added * n);
                let found = e.predicted(&e.now.mix(&picture, &noise), &next, given);
                let worst = found.iter().zip(&picture).map(|(f, p)| (f - p).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{e:?}: {found:?}");
            }
        }
    }
}

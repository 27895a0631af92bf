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
    /// The stream of fresh noise that goes into it.
    pub(super) fresh: Option<u32>,
}

impl Evaluation {
    /// The picture's latent that the step saw: from where it began, where it ended, and the noise it was given. DDIM
    /// keeps the noise it predicts, so two latents of one line give the line's end.
    pub(super) fn predicted(&self, latent: &[f32], next: &[f32], fresh: Option<&[f32]>) -> Vec<f32> {
        match fresh {
            Some(fresh) => next.iter().zip(fresh).map(|(x, n)| (x - self.next.noise * n) / self.next.signal).collect(),
            None => {
                let (from, to) = (self.now, self.next);
                let across = from.noise * to.signal - to.noise * from.signal;
                latent.iter().zip(next).map(|(x, y)| (from.noise * y - to.noise * x) / across).collect()
            }
        }
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

/// The last of the steps, at least one.
fn ddim(schedule: &Schedule, settings: &Settings, strength: f32) -> Result<Vec<Evaluation>, ModelError> {
    let steps = schedule.ddim(settings.steps, 0.0)?;
    let used = ((settings.steps as f32 * strength).round() as usize).clamp(1, settings.steps);
    let evaluation = |s: crate::schedule::DdimStep| Evaluation {
        timestep: s.timestep,
        coefficients: vec![s.a_t, s.s_t, s.a_prev, s.direction, settings.guidance, s.sigma, 0.0, 0.0],
        now: Level { signal: s.a_t, noise: s.s_t },
        next: Level { signal: s.a_prev, noise: s.direction },
        fresh: None,
    };
    Ok(steps.into_iter().skip(settings.steps - used).map(evaluation).collect())
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
        // Stream 0 is the noise at the beginning.
        fresh: (steps > 1).then(|| u32::try_from(index + 1).expect("a handful of steps")),
    };
    Ok(schedule.one_step_from(steps, first)?.into_iter().enumerate().map(evaluation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn walk(sampler: Sampler, steps: usize, strength: f32) -> Vec<Evaluation> {
        let config = ModelConfig::preset("mini").expect("there is a preset");
        let schedule = Schedule::new(&config.scheduler).expect("the schedule is valid");
        let settings = Settings { width: 64, height: 64, sampler, steps, guidance: 1.0, truncated: None };
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
        for (sampler, steps) in [(Sampler::Ddim, 10), (Sampler::OneStep, 4)] {
            for pair in walk(sampler, steps, 1.0).windows(2) {
                let (end, start) = (pair[0].next, pair[1].now);
                assert!((end.signal - start.signal).abs() < 1e-6 && (end.noise - start.noise).abs() < 1e-6, "{pair:?}");
            }
        }
    }

    #[test]
    fn the_prediction_is_found_again() {
        let (picture, noise, fresh) = (vec![0.3, -1.0, 2.0], vec![1.0, 0.5, -0.7], vec![-0.2, 0.9, 0.1]);
        for (sampler, steps) in [(Sampler::Ddim, 10), (Sampler::OneStep, 4)] {
            for e in walk(sampler, steps, 1.0) {
                let given = e.fresh.map(|_| fresh.as_slice());
                let next = e.next.mix(&picture, given.unwrap_or(&noise));
                let found = e.predicted(&e.now.mix(&picture, &noise), &next, given);
                let worst = found.iter().zip(&picture).map(|(f, p)| (f - p).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{e:?}: {found:?}");
            }
        }
    }
}

use super::*;
use crate::config::ModelConfig;
use crate::noise::Noise;
use serde_json::Value;

fn schedule() -> Schedule {
    Schedule::new(&ModelConfig::preset("mobilediffusion").unwrap().scheduler).unwrap()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/golden/samplers.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got} instead of {want}");
}

#[test]
fn the_schedule_has_the_known_values() {
    let schedule = schedule();
    let known = [(0, 0.99915), (1, 0.99829603), (499, 0.27766965), (981, 0.00577550), (999, 0.00466010)];
    for (timestep, want) in known {
        close(schedule.alpha_bar[timestep], want, 1e-8);
    }
    assert_eq!(schedule.train_steps(), 1000);
}

#[test]
fn fifty_steps_of_ddim_lead_from_981_to_1() {
    let steps = schedule().ddim(50, 0.0).unwrap();
    assert!(steps.iter().map(|step| step.timestep).eq((0..50).map(|k| 981 - 20 * k)), "{steps:?}");
    for pair in steps.windows(2) {
        assert_eq!((pair[0].signal, pair[0].kept), (pair[1].now.signal, pair[1].now.noise));
    }
    let last = steps[49];
    close(last.signal.into(), 0.99915_f64.sqrt(), 1e-7);
    close(last.kept.into(), 0.00085_f64.sqrt(), 1e-7);
    assert!(steps.iter().all(|step| step.added == 0.0), "no fresh noise at eta 0");
}

#[test]
fn any_number_of_steps_stays_within_the_schedule() {
    let schedule = schedule();
    for steps in 1..=999 {
        for eta in [0.0, 1.0] {
            let plan = schedule.ddim(steps, eta).unwrap();
            let finite =
                |s: &Step| [s.now.signal, s.now.noise, s.signal, s.kept, s.added].iter().all(|v| v.is_finite());
            assert!(plan.len() == steps && plan[steps - 1].timestep == 1 && plan.iter().all(finite), "{steps}");
        }
    }
}

#[test]
fn a_level_mixes_the_shares_that_it_names() {
    let level = Level { signal: 0.5, noise: 0.25 };
    assert_eq!(level.mix(&[2.0, -4.0], &[8.0, 16.0]), [3.0, 2.0]);
}

#[test]
fn eta_moves_variance_from_the_direction_to_the_noise() {
    let schedule = schedule();
    let (plain, noisy) = (schedule.ddim(50, 0.0).unwrap(), schedule.ddim(50, 1.0).unwrap());
    for (plain, noisy) in plain.iter().zip(&noisy) {
        assert!(noisy.added > 0.0 && noisy.kept < plain.kept, "{noisy:?}");
        close(noisy.added.hypot(noisy.kept).into(), plain.kept.into(), 1e-6);
    }
}

#[test]
fn one_step_starts_at_999_and_ends_with_the_picture() {
    let schedule = schedule();
    let [only] = schedule.one_step(1).unwrap()[..] else { panic!("one step") };
    assert_eq!(only.timestep, 999);
    close(only.now.signal.into(), 0.068265, 1e-6);
    close(only.now.noise.into(), 0.997667, 1e-6);
    assert_eq!(only.next(), Level { signal: 1.0, noise: 0.0 });

    let four = schedule.one_step(4).unwrap();
    assert!(four.iter().map(|step| step.timestep).eq([999, 749, 499, 249]), "{four:?}");
    assert_eq!(four[0].next(), four[1].now);
    assert_eq!(four[3].next(), only.next());
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let schedule = schedule();
    for steps in [0, 1000, usize::MAX] {
        let error = schedule.ddim(steps, 0.0).unwrap_err().to_string();
        assert_eq!(error, format!("steps: expected 1 to 999, found {steps}"));
    }
    for steps in [0, 5] {
        let error = schedule.one_step(steps).unwrap_err().to_string();
        assert_eq!(error, format!("steps: expected 1 to 4, found {steps}"));
    }
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(schedule.ddim(10, eta), Err(ModelError::Request { key: "eta", .. })), "{eta}");
    }
    let mut config = ModelConfig::preset("mobilediffusion").unwrap().scheduler;
    config.beta_schedule = "linear".into();
    assert!(matches!(Schedule::new(&config), Err(ModelError::Config { .. })), "an unknown schedule");
}

#[test]
fn the_schedule_agrees_with_the_twin() {
    let (schedule, golden) = (schedule(), golden());
    for timestep in [0, 1, 499, 981, 999] {
        let want = golden["check"][format!("alpha_bar_{timestep}")].as_f64().unwrap();
        close(schedule.alpha_bar[timestep], want, 1e-13);
    }
    for (steps, want) in golden["ddim"].as_object().unwrap() {
        let plan = schedule.ddim(steps.parse().unwrap(), 0.0).unwrap();
        let timesteps: Vec<u64> = want["timesteps"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
        assert!(plan.iter().map(|step| step.timestep as u64).eq(timesteps), "{steps} steps");
        for (step, alpha_bar) in plan.iter().zip(numbers(&want["alpha_bar"])) {
            close(step.now.signal.into(), alpha_bar.sqrt(), 1e-7);
        }
    }
}

/// Linear stand-in for a network, the one that the PyTorch twin's trajectories were computed with.
fn fake_eps(z: f64, timestep: usize) -> f64 {
    0.3 * z + 0.01 * (timestep as f64 / 1000.0)
}

#[test]
fn a_trajectory_agrees_with_the_twin() {
    let (schedule, golden) = (schedule(), golden());
    let start = numbers(&golden["initial_latent"]);
    for steps in [10, 50] {
        let mut latent = start.clone();
        let trajectory = golden[format!("ddim_{steps}_trajectory")].as_array().unwrap();
        assert_eq!(trajectory.len(), steps);
        for (step, want) in schedule.ddim(steps, 0.0).unwrap().iter().zip(trajectory) {
            for (z, want) in latent.iter_mut().zip(numbers(&want["latent"])) {
                let eps = fake_eps(*z, step.timestep);
                let x0 = (*z - f64::from(step.now.noise) * eps) / f64::from(step.now.signal);
                *z = f64::from(step.signal) * x0 + f64::from(step.kept) * eps;
                close(*z, want, 1e-6);
            }
        }
    }
    let only = schedule.one_step(1).unwrap()[0];
    for (z, want) in start.iter().zip(numbers(&golden["one_step_x0"])) {
        close((z - f64::from(only.now.noise) * fake_eps(*z, 999)) / f64::from(only.now.signal), want, 1e-6);
    }
}

/// Returns the fresh noise that the twin's trajectories add after step `k`, counted from 1.
fn fresh(k: usize) -> Vec<f64> {
    Noise::new(5).stream(k as u32).latent(8).into_iter().map(f64::from).collect()
}

#[test]
fn a_trajectory_with_fresh_noise_agrees_with_the_twin() {
    let (schedule, golden) = (schedule(), golden());
    let mut latent = numbers(&golden["initial_latent"]);
    let trajectory = golden["ddim_7_eta_0.7_trajectory"].as_array().unwrap();
    for (k, (step, want)) in schedule.ddim(7, 0.7).unwrap().iter().zip(trajectory).enumerate() {
        assert_eq!(want["timestep"], step.timestep);
        for ((z, want), noise) in latent.iter_mut().zip(numbers(&want["latent"])).zip(fresh(k + 1)) {
            let eps = fake_eps(*z, step.timestep);
            let x0 = (*z - f64::from(step.now.noise) * eps) / f64::from(step.now.signal);
            *z = f64::from(step.signal) * x0 + f64::from(step.kept) * eps + f64::from(step.added) * noise;
            close(*z, want, 1e-6);
        }
    }
}

#[test]
fn a_few_steps_of_the_one_step_sampler_agree_with_the_twin() {
    let (schedule, golden) = (schedule(), golden());
    for (steps, trajectory) in golden["one_step_trajectories"].as_object().unwrap() {
        let mut latent = numbers(&golden["initial_latent"]);
        let plan = schedule.one_step(steps.parse().unwrap()).unwrap();
        for (k, (step, want)) in plan.iter().zip(trajectory.as_array().unwrap()).enumerate() {
            assert_eq!(want["timestep"], step.timestep, "{steps} steps");
            for ((z, want), noise) in latent.iter_mut().zip(numbers(&want["x0"])).zip(fresh(k + 1)) {
                let x0 = (*z - f64::from(step.now.noise) * fake_eps(*z, step.timestep)) / f64::from(step.now.signal);
                close(x0, want, 1e-6);
                *z = f64::from(step.signal) * x0 + f64::from(step.added) * noise;
            }
        }
    }
}

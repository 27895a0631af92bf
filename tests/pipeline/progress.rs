//! Progress, and stopping by its callback.

use crate::{draw, load, small};
use mobilediffusion_model::{DeviceChoice, Flow, ModelError, Phase, Pipeline, Request};
use mobilediffusion_tests::{drawing_devices, psnr};
use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

#[test]
fn progress_goes_forward_phase_by_phase() {
    for device in drawing_devices() {
        let mut pipeline = load(device);
        let request = Request { steps: Some(3), count: 2, ..small("sun") };
        let mut heard: Vec<(Phase, usize, usize, usize)> = Vec::new();
        for run in 0..2 {
            heard.clear();
            let drawn = pipeline.generate(&request, &mut |p| {
                heard.push((p.phase, p.step, p.total, p.picture));
                Flow::Continue
            });
            assert_eq!(drawn.expect("it draws").len(), 2);
            let mut phases: Vec<Phase> = heard.iter().map(|h| h.0).collect();
            phases.dedup();
            let prepared = [Phase::Check, Phase::Load, Phase::Compile];
            let drawing = [Phase::Text, Phase::Denoise, Phase::Decode, Phase::Denoise, Phase::Decode];
            let expected: Vec<Phase> = prepared.into_iter().filter(|_| run == 0).chain(drawing).collect();
            assert_eq!(phases, expected);
            for pair in heard.windows(2) {
                let same = (pair[0].0, pair[0].3) == (pair[1].0, pair[1].3);
                assert!(!same || pair[0].1 <= pair[1].1, "backwards: {pair:?}");
                assert!(same || pair[0].1 == pair[0].2, "a phase ended before its end: {pair:?}");
            }
            assert!(heard.iter().any(|h| h.0 == Phase::Denoise && (h.1, h.2) == (2, 3)), "every step is heard of");
        }
    }
}

#[test]
fn a_preview_says_which_picture_it_shows() {
    let mut pipeline = load(DeviceChoice::Cpu);
    let request = Request { steps: Some(5), count: 3, batch: 2, preview_every: Some(2), ..small("sun") };
    let mut heard = Vec::new();
    let drawn = pipeline.generate(&request, &mut |p| {
        if p.phase == Phase::Denoise {
            heard.push((p.preview.is_some(), p.step, p.picture));
        }
        Flow::Continue
    });
    assert_eq!(drawn.expect("it draws").len(), 3);
    let (shown, plain): (Vec<_>, Vec<_>) = heard.into_iter().partition(|(preview, ..)| *preview);
    let shown: Vec<(usize, usize)> = shown.into_iter().map(|(_, step, picture)| (step, picture)).collect();
    assert_eq!(shown, [(2, 0), (2, 1), (4, 0), (4, 1), (2, 2), (4, 2)], "steps and pictures of the previews");
    let mut others: Vec<usize> = plain.into_iter().map(|(.., picture)| picture).collect();
    others.dedup();
    assert_eq!(others, [0, 2], "the first of those that are drawn at once");
}

#[test]
fn a_progress_callback_may_use_the_model() {
    for device in drawing_devices() {
        let mut pipeline = load(device);
        let model = Arc::clone(pipeline.model());
        let mut phases = HashSet::new();
        let drawn = pipeline.generate(&small("sun"), &mut |progress| {
            if phases.insert(progress.phase) {
                let (model, (answer, heard)) = (Arc::clone(&model), mpsc::channel());
                thread::spawn(move || {
                    let line = model.device_line();
                    let _ = answer.send((line, model.settings(&small("moon")).is_ok(), model.device()));
                });
                let heard = heard.recv_timeout(Duration::from_secs(60));
                assert!(heard.is_ok_and(|(line, fine, _)| !line.is_empty() && fine), "{}", progress.phase);
            }
            Flow::Continue
        });
        drawn.expect("it draws");
        assert_eq!(phases.len(), 6, "{phases:?}");
    }
}

#[test]
fn stopping_anywhere_leaves_the_pipeline_usable() {
    for device in drawing_devices() {
        let mut pipeline = load(device);
        let request = Request { steps: Some(2), ..small("sun") };
        let mut calls = 0;
        let expected = pipeline.generate(&request, &mut |_| {
            calls += 1;
            Flow::Continue
        });
        let expected = expected.expect("it draws");
        let stop_at = |pipeline: &mut Pipeline, at: usize| {
            let mut heard = 0;
            let drawn = pipeline.generate(&request, &mut |_| {
                heard += 1;
                if heard >= at { Flow::Stop } else { Flow::Continue }
            });
            assert!(matches!(drawn, Err(ModelError::Stopped)), "stopped at {at}: {drawn:?}");
            assert_eq!(heard, at, "asked again after the stop");
        };
        let prepared = calls;
        let mut calls = 0;
        // Another prompt in between, so that the request encodes its own again.
        let other = Request { prompt: "red apple".to_owned(), ..request.clone() };
        let drawn_between = draw(&mut pipeline, &other);
        let again = pipeline.generate(&request, &mut |_| {
            calls += 1;
            Flow::Continue
        });
        assert!(again.expect("it draws") == expected && calls < prepared, "nothing was made ready again");
        for at in [1, 2, calls / 3, calls / 2, calls - 1, calls] {
            stop_at(&mut pipeline, at);
            // What the stopped request left behind is of no use to another one.
            assert!(draw(&mut pipeline, &other) == drawn_between, "another picture changed after a stop at {at}");
            stop_at(&mut pipeline, at);
            assert!(draw(&mut pipeline, &request) == expected, "the picture changed after a stop at {at} of {calls}");
            draw(&mut pipeline, &other);
        }
    }
}

#[test]
fn stopping_while_getting_ready_leaves_the_pipeline_usable() {
    for device in drawing_devices() {
        let before = [(Phase::Check, 0), (Phase::Check, 20), (Phase::Load, 0)];
        let after = [(Phase::Load, 2), (Phase::Load, 20), (Phase::Compile, 0), (Phase::Compile, 20)];
        for (phase, at) in before.into_iter().chain(after) {
            let mut pipeline = load(device.clone());
            let mut asked = 0;
            let drawn = pipeline.generate(&small("sun"), &mut |progress| {
                let stop = asked > 0 || progress.phase == phase && progress.step >= at;
                asked += usize::from(stop);
                if stop { Flow::Stop } else { Flow::Continue }
            });
            assert!(matches!(drawn, Err(ModelError::Stopped)), "{phase} {at}: {drawn:?}");
            assert_eq!(asked, 1, "{phase} {at}: asked again after the stop");
            let there = pipeline.counters().weight_bytes;
            assert_eq!(there > 0, !before.contains(&(phase, at)), "{phase} {at}: {there} bytes of weights stayed");
            assert_eq!(draw(&mut pipeline, &small("sun")).len(), 1);
        }
    }
}

/// A preview is the picture that the last evaluation predicted. The latent after it still has noise in it.
#[test]
fn previews_come_closer_to_the_picture() {
    let mut pipeline = load(DeviceChoice::Cpu);
    // With an eta of 1 much of the noise is fresh in every step.
    for (eta, floor) in [(0.0, 40.0), (1.0, 37.0)] {
        let request = Request { steps: Some(10), eta: Some(eta), preview_every: Some(1), ..Request::new("red apple") };
        let mut previews = Vec::new();
        let drawn = pipeline.generate(&request, &mut |progress| {
            previews.extend(progress.preview.clone());
            Flow::Continue
        });
        let drawn = drawn.expect("it draws").remove(0);
        let near: Vec<f64> = previews.iter().map(|preview| psnr(&preview.rgba, &drawn.rgba)).collect();
        assert!(near.is_sorted_by(|before, after| before < after), "eta {eta}: {near:.1?} dB");
        assert!(near.len() == 9 && near[0] > 12.0 && near[8] > floor, "eta {eta}: {near:.1?} dB");
    }
}

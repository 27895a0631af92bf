//! Pipelines with a limit on memory.

use crate::{draw, on, small, source};
use mobilediffusion_model::{DeviceChoice, Floats, Flow, ModelError, Options, Phase, Pipeline, Request, WeightType};
use mobilediffusion_tests::drawing_devices;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

#[test]
fn too_little_memory_is_refused_with_what_would_fit() {
    for device in drawing_devices() {
        let limited = |memory| {
            let options = Options { memory: Some(memory), ..on(device.clone()) };
            Pipeline::load(source(), options).expect("it loads")
        };
        let mut pipeline = limited(1 << 40);
        draw(&mut pipeline, &small("sun"));
        let needed = pipeline.counters().plan_bytes + pipeline.counters().weight_bytes;
        let mut enough = limited(needed);
        draw(&mut enough, &small("sun"));

        let large = Request { width: Some(512), height: Some(256), ..Request::new("sun") };
        let there = enough.counters();
        let refused = enough.generate(&large, &mut |_| Flow::Continue).expect_err("512x256 needs more");
        assert_eq!(enough.counters(), there, "nothing has to go for a request that does not fit");
        let line = refused.to_string();
        assert!(
            line.starts_with("out of memory: 512x256 pixels need ") && line.contains("MiB; 32x32 would fit"),
            "{line}"
        );
        draw(&mut enough, &small("sun"));

        let refused = limited(needed / 2).generate(&large, &mut |_| Flow::Continue).expect_err("half is too little");
        assert!(
            refused.to_string().contains("no picture would fit") || refused.to_string().contains("16-bit"),
            "{refused}"
        );
    }
}

#[test]
fn a_released_pipeline_holds_nothing_and_draws_the_same_again() {
    for device in drawing_devices() {
        let mut pipeline = Pipeline::load(source(), on(device)).expect("it loads");
        let drawn = draw(&mut pipeline, &small("sun"));
        let mut other = Pipeline::over(Arc::clone(pipeline.model()));
        other.prepare(&small("sun"), &mut |_| Flow::Continue).expect("it loads");
        pipeline.release();
        let there = pipeline.counters();
        assert!(there.plan_bytes == 0 && there.plans == 0 && there.weight_bytes > 0, "another needs them: {there:?}");
        other.release();
        assert_eq!(pipeline.counters().weight_bytes, 0, "no pipeline has plans");
        assert!(draw(&mut pipeline, &small("sun")) == drawn, "another picture after the release");
    }
}

#[test]
fn weights_that_came_before_a_callback_panicked_are_counted_and_freed() {
    for device in drawing_devices() {
        let mut pipeline = Pipeline::load(source(), on(device)).expect("it loads");
        let drawn = draw(&mut pipeline, &small("sun"));
        let whole = pipeline.counters().weight_bytes;
        pipeline.release();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pipeline.prepare(&small("sun"), &mut |progress| {
                let half = progress.phase == Phase::Load && 2 * progress.step > progress.total;
                if half { resume_unwind(Box::new("the application's mistake")) } else { Flow::Continue }
            })
        }));
        assert!(panicked.is_err(), "the panic reaches the application");
        let there = pipeline.counters();
        assert!((1..whole).contains(&there.weight_bytes) && there.plans == 0, "{there:?} of {whole}");
        pipeline.release();
        assert_eq!(pipeline.counters().weight_bytes, 0);
        assert!(draw(&mut pipeline, &small("sun")) == drawn, "another picture after the panic");
        assert_eq!(pipeline.counters().weight_bytes, whole, "every weight is there once");
    }
}

#[test]
fn weights_that_two_pipelines_load_at_once_are_counted_once() {
    for device in drawing_devices() {
        let mut pipeline = Pipeline::load(source(), on(device)).expect("it loads");
        let mut other = Pipeline::over(Arc::clone(pipeline.model()));
        // While one of them has loaded a part, the other loads everything.
        let stopped = pipeline.prepare(&small("sun"), &mut |progress| {
            if progress.phase != Phase::Load || 2 * progress.step <= progress.total {
                return Flow::Continue;
            }
            other.prepare(&small("sun"), &mut |_| Flow::Continue).expect("it loads");
            Flow::Stop
        });
        assert!(matches!(stopped, Err(ModelError::Stopped)), "{stopped:?}");
        let (stopped, whole) = (pipeline.counters().weight_bytes, other.counters().weight_bytes);
        pipeline.prepare(&small("sun"), &mut |_| Flow::Continue).expect("it loads");
        assert_eq!([stopped, whole], [pipeline.counters().weight_bytes; 2], "every weight is there once");
    }
}

#[test]
fn int8_weights_are_offered_where_only_they_make_room() {
    let square = |side| Request { width: Some(side), height: Some(side), ..Request::new("sun") };
    for device in drawing_devices() {
        let with = |floats, weights, memory| {
            let options = Options { floats, weights, memory: Some(memory), ..on(device.clone()) };
            Pipeline::load(source(), options).expect("it loads")
        };
        let refused = |floats, weights, memory| {
            let drawn = with(floats, weights, memory).generate(&square(256), &mut |_| Flow::Continue);
            drawn.expect_err("256x256 needs more").to_string()
        };
        let line = refused(Floats::F32, WeightType::Floats, 1 << 20);
        assert!(line.ends_with("; no picture would fit"), "{line}");
        if device == DeviceChoice::Cpu {
            let mut int8 = Pipeline::load(source(), Options { weights: WeightType::Int8, ..on(device.clone()) });
            let int8 = int8.as_mut().expect("it loads");
            draw(int8, &Request { prompt: "sun".to_owned(), ..square(64) });
            let made = int8.counters();
            let line = refused(Floats::F32, WeightType::Floats, made.weight_bytes + made.plan_bytes);
            assert!(line.contains("; 64x64 with int8 weights would fit with "), "{line}");
            continue;
        }
        let least = with(Floats::F16, WeightType::Int8, 1 << 20).summaries(&square(64)).expect("it is valid");
        let needed = least.iter().map(|(_, plan)| (plan.weight_bytes + plan.lower_bound_in_place_bytes) as u64).sum();
        let mib = needed as f64 / f64::from(1 << 20);
        for (floats, weights, how) in [
            (Floats::F32, WeightType::Floats, " in 16-bit floats with int8 weights"),
            (Floats::F16, WeightType::Floats, " with int8 weights"),
            (Floats::F32, WeightType::Int8, " in 16-bit floats"),
            (Floats::F16, WeightType::Int8, ""),
        ] {
            let line = refused(floats, weights, needed);
            let offer = format!("MiB; 64x64{how} would fit with {mib:.1} MiB for weights and plans");
            assert!(line.ends_with(&offer), "expected `{offer}`: {line}");
        }
    }
}

#[test]
fn weights_that_a_request_does_not_use_make_room_for_those_it_uses() {
    for device in drawing_devices() {
        // An eta above 0 selects DDIM, which draws with another UNet, `unet_base`.
        let noisy = Request { eta: Some(0.5), steps: Some(5), guidance: Some(1.0), ..small("sun") };
        let mut all = Pipeline::load(source(), on(device.clone())).expect("it loads");
        let expected = [draw(&mut all, &small("sun")), draw(&mut all, &noisy)];
        let both = all.counters().weight_bytes;
        let mut alone = Pipeline::load(source(), on(device.clone())).expect("it loads");
        draw(&mut alone, &noisy);
        let most = alone.counters().weight_bytes + alone.counters().plan_bytes;
        assert!(most < both, "else nothing has to go");

        let options = Options { memory: Some(most), ..on(device) };
        let mut short = Pipeline::load(source(), options).expect("it loads");
        for turn in 0..2 {
            let drawn = [draw(&mut short, &small("sun")), draw(&mut short, &noisy)];
            assert!(drawn == expected, "another picture in turn {turn}");
            let there = short.counters();
            assert!(there.weight_bytes + there.plan_bytes <= most, "{there:?} of {most}");
        }
        // Weights stay where a plan of another pipeline uses them, and not because there is another pipeline.
        let mut other = Pipeline::over(Arc::clone(short.model()));
        other.prepare(&noisy, &mut |_| Flow::Continue).expect("it fits");
        let refused = short.generate(&small("sun"), &mut |_| Flow::Continue).expect_err("they stay").to_string();
        assert!(refused.starts_with("out of memory"), "{refused}");
        other.release();
        draw(&mut short, &small("sun"));
    }
}

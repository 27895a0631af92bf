//! `Pipeline` as an application uses it, on the CPU device and on the GPU adapters of this machine.

#[path = "pipeline/batch.rs"]
mod batch;
#[path = "pipeline/cache.rs"]
mod cache;
#[path = "pipeline/f16.rs"]
mod f16;
#[path = "pipeline/files.rs"]
mod files;
#[path = "pipeline/memory.rs"]
mod memory;
#[path = "pipeline/progress.rs"]
mod progress;

use mobilediffusion_graph::Device;
use mobilediffusion_model::{
    DeviceChoice, Floats, Flow, Model, ModelError, Options, Phase, Picture, Pipeline, Progress, Request, Source,
    WeightType,
};
use mobilediffusion_tests::{drawing_devices, on, psnr};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn source() -> Source {
    Source::bundled().expect("the checkpoint is in the repository")
}

fn load(device: DeviceChoice) -> Pipeline {
    Pipeline::load(source(), on(device)).expect("the bundled model loads")
}

/// Returns a request for the smallest possible picture, 32x32 pixels.
fn small(prompt: &str) -> Request {
    Request { width: Some(32), height: Some(32), ..Request::new(prompt) }
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    pipeline.generate(request, &mut |_| Flow::Continue).expect("the request draws")
}

#[test]
fn a_second_request_of_a_shape_makes_nothing() {
    for device in drawing_devices() {
        let mut pipeline = load(device);
        let first = draw(&mut pipeline, &small("sun"));
        let made = pipeline.counters();
        let other = draw(&mut pipeline, &Request { seed: 1, ..small("red apple") });
        assert!(first != other && first == draw(&mut pipeline, &small("sun")), "pictures follow their requests");
        assert_eq!(pipeline.counters(), made, "a plan that was there was made again");

        draw(&mut pipeline, &Request { height: Some(64), ..small("sun") });
        let grown = pipeline.counters();
        assert_eq!((grown.plans, grown.weight_bytes), (made.plans + 2, made.weight_bytes), "UNet and decoder are new");
        assert!(first == draw(&mut pipeline, &small("sun")) && pipeline.counters() == grown, "the old plans are kept");
    }
}

#[test]
fn a_prompt_is_encoded_once_and_every_picture_is_its_own() {
    /// Draws, and returns the picture and how often progress was reported for the text.
    fn told(pipeline: &mut Pipeline, request: &Request) -> (Vec<Picture>, usize) {
        let mut text = 0;
        let drawn = pipeline.generate(request, &mut |progress| {
            text += usize::from(progress.phase == Phase::Text);
            Flow::Continue
        });
        (drawn.expect("the request draws"), text)
    }
    let ddim =
        |negative: &str| Request { steps: Some(5), guidance: Some(3.0), negative: negative.to_owned(), ..small("sun") };
    let requests = [
        (small("sun"), false),
        (Request { seed: 1, ..small("sun") }, true),
        (small("red apple"), false),
        (small("sun"), false),
        (ddim("blue"), false),
        (Request { seed: 1, ..ddim("blue") }, true),
        (ddim("red"), false),
        // The plan for one step still has the prompt, and so has it after a request of another size.
        (small("sun"), true),
        (Request { height: Some(64), ..small("sun") }, false),
        (small("sun"), true),
        // Two steps at two timesteps.
        (Request { steps: Some(2), ..small("sun") }, false),
        (Request { steps: Some(2), seed: 1, ..small("sun") }, true),
    ];
    for device in drawing_devices() {
        let mut pipeline = load(device.clone());
        // What new pipelines draw.
        let mut expected: Vec<(&Request, Vec<Picture>)> = Vec::new();
        for (request, has_it) in &requests {
            let (drawn, text) = told(&mut pipeline, request);
            assert_eq!(text == 1, *has_it, "{request:?}: progress of the text was told {text} times");
            if !expected.iter().any(|(known, _)| *known == request) {
                expected.push((request, draw(&mut load(device.clone()), request)));
            }
            assert!(expected.contains(&(request, drawn)), "{request:?}: a new pipeline draws another picture");
        }
        // A request that is stopped after its text leaves the next one complete.
        let stopped = pipeline.generate(&small("pizza"), &mut |progress| match progress.phase {
            Phase::Denoise => Flow::Stop,
            _ => Flow::Continue,
        });
        assert!(matches!(stopped, Err(ModelError::Stopped)), "it was stopped");
        let (drawn, text) = told(&mut pipeline, &small("pizza"));
        assert!(text == 1 && drawn == draw(&mut load(device), &small("pizza")), "progress of the text: {text}");
    }
}

#[test]
fn fewer_bits_draw_nearly_the_same_and_halves_not_on_the_cpu() {
    for device in drawing_devices() {
        let halved = Options { floats: Floats::F16, ..on(device.clone()) };
        let int8 = Options { weights: WeightType::Int8, ..on(device.clone()) };
        let smaller = if device == DeviceChoice::Cpu {
            let refused = Pipeline::load(source(), halved).expect_err("the CPU device computes in f32");
            assert!(refused.to_string().contains("dtype: expected f32"), "{refused}");
            int8
        } else {
            halved
        };
        let mut fewer = Pipeline::load(source(), smaller).expect("it loads");
        let mut whole = load(device.clone());
        let (found, expected) = (draw(&mut fewer, &small("sun")), draw(&mut whole, &small("sun")));
        let psnr = psnr(&found[0].rgba, &expected[0].rgba);
        assert!(psnr > 30.0, "{device:?}: PSNR {psnr:.1} dB");
        assert!(psnr < 90.0, "{device:?}: PSNR {psnr:.1} dB, which fewer bits do not give");
        let [fewer, whole] = [fewer, whole].map(|pipeline| pipeline.counters().weight_bytes);
        // Most of the small model are embeddings and convolutions by Winograd's algorithm, which the CPU keeps in f32. The
        // matrices of this checkpoint are in 16 bits anyway.
        let most = if device == DeviceChoice::Cpu { whole / 12 * 11 } else { whole / 5 * 4 };
        assert!(fewer < most, "{device:?}: {fewer} bytes of weights, {whole} otherwise");
    }
}

#[test]
fn plans_are_bounded() {
    let mut pipeline = Pipeline::load(source(), Options { plans: 4, ..on(DeviceChoice::Cpu) }).expect("it loads");
    let first = draw(&mut pipeline, &small("sun"));
    let bytes = pipeline.counters().plan_bytes;
    for height in [64, 96, 128] {
        draw(&mut pipeline, &Request { height: Some(height), ..small("sun") });
        assert!(pipeline.counters().plans <= 4, "{:?}", pipeline.counters());
    }
    assert!(first == draw(&mut pipeline, &small("sun")), "a plan that was given back is made again");
    assert!(pipeline.counters().plan_bytes < 3 * bytes, "what was given back does not count");
}

#[test]
fn the_plans_that_were_used_last_are_kept() {
    // The text encoder, and UNet and decoder of two sizes.
    let mut pipeline = Pipeline::load(source(), Options { plans: 5, ..on(DeviceChoice::Cpu) }).expect("it loads");
    let mut compiles = |height: usize| {
        let mut heard = false;
        let drawn = pipeline.generate(&Request { height: Some(height), ..small("sun") }, &mut |progress| {
            heard |= progress.phase == Phase::Compile;
            Flow::Continue
        });
        drawn.expect("it draws");
        heard
    };
    // The third size takes the place of the second, because the first was used again.
    let expected = [(32, true), (64, true), (32, false), (96, true), (32, false), (64, true), (32, false), (96, true)];
    for (turn, (height, expected)) in expected.into_iter().enumerate() {
        assert_eq!(compiles(height), expected, "request {turn}, {height} pixels high");
    }
}

#[test]
fn pipelines_share_one_model_across_threads() {
    for device in drawing_devices() {
        let model = Arc::new(Model::load(source(), on(device)).expect("it loads"));
        let mut here = Pipeline::over(Arc::clone(&model));
        let expected = draw(&mut here, &small("sun"));
        let weights = here.counters().weight_bytes;
        thread::scope(|scope| {
            let draws = |_| {
                let mut pipeline = Pipeline::over(Arc::clone(&model));
                scope.spawn(move || (draw(&mut pipeline, &small("sun")), pipeline))
            };
            for thread in (0..2).map(draws).collect::<Vec<_>>() {
                let (pictures, pipeline) = thread.join().expect("the thread draws");
                assert!(pictures == expected, "another pipeline drew something else");
                assert_eq!(pipeline.counters().weight_bytes, weights, "the weights are there once");
            }
        });
    }
}

#[test]
fn drawing_can_be_awaited_without_blocking() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    for device in drawing_devices() {
        let mut pipeline = load(device.clone());
        let expected = draw(&mut pipeline, &small("sun"));
        let request = small("sun");
        let mut go_on = |_: &Progress| Flow::Continue;
        let mut drawing = std::pin::pin!(sendable(pipeline.generate_async(&request, &mut go_on)));
        let mut waits = 0;
        let drawn = pollster::block_on(std::future::poll_fn(|context| {
            let polled = drawing.as_mut().poll(context);
            waits += usize::from(polled.is_pending());
            polled
        }));
        assert!(drawn.expect("it draws") == expected, "{device:?}: waiting changed the picture");
        // On a GPU the future is pending while the device works.
        assert!(device == DeviceChoice::Cpu || waits > 0, "{device:?}: nobody else could do anything meanwhile");
    }
}

#[test]
fn a_lost_device_is_an_error_and_comes_back() {
    for device in drawing_devices() {
        let model = Arc::new(Model::load(source(), on(device)).expect("it loads"));
        let Device::Gpu(gpu, storage) = model.device() else { continue };
        let [mut pipeline, mut other] = [(); 2].map(|()| Pipeline::over(Arc::clone(&model)));
        let expected = draw(&mut pipeline, &small("sun"));
        assert!(draw(&mut other, &small("sun")) == expected);
        gpu.destroy();
        for pipeline in [&mut pipeline, &mut other] {
            let drawn = pipeline.generate(&small("sun"), &mut |_| Flow::Continue);
            assert!(matches!(drawn, Err(ModelError::DeviceLost { .. })), "{drawn:?}");
        }
        pipeline.recover().expect("the device opens again");
        let now = model.device();
        assert!(matches!(&now, Device::Gpu(g, s) if g.adapter() == gpu.adapter() && *s == storage), "{now:?}");
        assert!(draw(&mut pipeline, &small("sun")) == expected, "another picture after the loss");
        let opened = pipeline.counters();
        other.recover().expect("it joins");
        assert_eq!(pipeline.counters().buffers, opened.buffers, "the device was opened twice");
        assert!(draw(&mut other, &small("sun")) == expected, "another picture after the loss");
    }
}

#[test]
fn pictures_of_a_request_are_those_of_their_seeds() {
    let mut pipeline = load(DeviceChoice::Cpu);
    let together = draw(&mut pipeline, &Request { seed: u64::MAX, count: 3, ..small("sun") });
    for (picture, seed) in together.iter().zip([u64::MAX, 0, 1]) {
        assert!(draw(&mut pipeline, &Request { seed, ..small("sun") })[0] == *picture, "seed {seed}");
    }
}

#[test]
fn each_picture_is_handed_over_once_it_is_drawn() {
    let request = Request { count: 3, ..small("sun") };
    for device in drawing_devices() {
        let mut pipeline = load(device);
        let all = draw(&mut pipeline, &request);
        for wanted in 1..=3 {
            let (at, mut taken) = (AtomicUsize::new(0), Vec::new());
            let mut hear = |progress: &Progress| {
                at.store(progress.picture, Ordering::Relaxed);
                Flow::Continue
            };
            let done = pipeline.generate_each(&request, &mut hear, &mut |number, picture| {
                assert_eq!((number, at.load(Ordering::Relaxed)), (taken.len(), number), "no other was begun");
                taken.push(picture);
                if taken.len() < wanted { Flow::Continue } else { Flow::Stop }
            });
            assert!(matches!(done, Err(ModelError::Stopped)), "{done:?}");
            assert!(taken == all[..wanted], "{wanted} of them");
        }
    }
}

#[test]
fn previews_come_and_change_nothing() {
    for device in drawing_devices() {
        let mut pipeline = load(device);
        for (steps, expected) in [(5, vec![2, 4]), (4, vec![2])] {
            let plain = Request { steps: Some(steps), ..small("sun") };
            let mut previews = Vec::new();
            let shown = pipeline.generate(&Request { preview_every: Some(2), ..plain.clone() }, &mut |progress| {
                previews.extend(progress.preview.clone().map(|preview| (progress.step, preview)));
                Flow::Continue
            });
            assert!(shown.expect("it draws") == draw(&mut pipeline, &plain), "{steps} steps: looking changed it");
            assert_eq!(previews.iter().map(|(step, _)| *step).collect::<Vec<_>>(), expected);
            assert!(previews.iter().all(|(_, p)| (p.width, p.height) == (32, 32) && !p.is_flat()));
        }
    }
}

#[test]
fn any_prompt_draws() {
    let mut pipeline = load(DeviceChoice::Cpu);
    for prompt in ["", "   ", "a\0b", "\u{1f34e}\u{200d}\u{1f525}", "\u{202e}\u{5ea}\u{5e4}\u{5d5}\u{5d7} \u{644}"] {
        assert_eq!(draw(&mut pipeline, &small(prompt)).len(), 1, "{prompt:?}");
    }
    let long = small(&"red apple ".repeat(5_000));
    let cut = pipeline.settings(&long).expect("it is valid").truncated.expect("it is too long");
    assert!(cut.kept.ends_with("apple") || cut.kept.ends_with("red"), "{cut:?}");
    assert!(long.prompt.ends_with(&cut.left_out) && cut.left_out.len() > 40_000);
    draw(&mut pipeline, &long);
    let negative = Request { negative: long.prompt, ..small("sun") };
    let settings = pipeline.settings(&negative).expect("it is valid");
    assert_eq!((settings.truncated, settings.negative_truncated), (None, Some(cut)));
}

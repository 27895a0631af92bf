//! Pictures that are drawn at once.

use crate::{draw, load, on, small, source};
use mobilediffusion_graph::PlanSummary;
use mobilediffusion_model::{DeviceChoice, Flow, Init, Mask, Options, Picture, Pipeline, Request};
use mobilediffusion_tests::{drawing_devices, psnr};

/// Draws every picture of a request by itself.
fn one_by_one(pipeline: &mut Pipeline, request: &Request) -> Vec<Picture> {
    draw(pipeline, &Request { batch: 1, ..request.clone() })
}

/// Requests for three pictures in batches of two and one, by everything that reaches a sampler.
fn requests(picture: &Picture) -> [(&'static str, Request); 4] {
    let three = Request { count: 3, batch: 2, seed: u64::MAX, ..small("sun") };
    let left =
        Mask { width: 32, height: 32, values: (0..32 * 32).map(|i| if i % 32 < 16 { 255 } else { 0 }).collect() };
    // Two of DDIM's steps.
    let begun = Init { strength: 0.4, ..Init::new(picture.clone()) };
    let guided = Request { steps: Some(5), eta: Some(0.5), negative: "moon".to_owned(), ..three.clone() };
    [
        ("one step", three.clone()),
        ("two steps with fresh noise", Request { steps: Some(2), ..three.clone() }),
        ("guidance and eta from a picture", Request { init: Some(begun), ..guided }),
        ("under a mask", Request { steps: Some(2), init: Some(Init::masked(picture.clone(), left)), ..three }),
    ]
}

#[test]
fn pictures_that_are_drawn_at_once_are_those_that_are_drawn_alone() {
    for device in drawing_devices() {
        let mut pipeline = load(device.clone());
        let begin = draw(&mut pipeline, &small("red apple")).remove(0);
        for (what, request) in requests(&begin) {
            let expected = one_by_one(&mut pipeline, &request);
            let mut found = Vec::new();
            let mut keep = |at: usize, picture| {
                assert_eq!(at, found.len(), "{device:?}, {what}");
                found.push(picture);
                Flow::Continue
            };
            pipeline.generate_each(&request, &mut |_| Flow::Continue, &mut keep).expect("the request draws");
            assert_eq!(found.len(), 3, "{device:?}, {what}");
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let psnr = psnr(&found.rgba, &expected.rgba);
                assert!(psnr > 60.0, "{device:?}, {what}: picture {at} has a PSNR of {psnr:.1} dB");
            }
            let made = pipeline.counters();
            assert!(draw(&mut pipeline, &request) == found, "{device:?}, {what}: other pictures the second time");
            assert_eq!(pipeline.counters(), made, "{device:?}, {what}: something was made again");
        }
    }
}

#[test]
fn every_picture_of_a_batch_has_its_previews() {
    for device in drawing_devices() {
        let mut pipeline = load(device.clone());
        let mut previews = |request: &Request| {
            let mut all = Vec::new();
            let drawn = pipeline.generate(request, &mut |progress| {
                all.extend(progress.preview.clone().map(|preview| (progress.picture, progress.step, preview)));
                Flow::Continue
            });
            drawn.expect("the request draws");
            all
        };
        let request = Request { count: 3, steps: Some(5), preview_every: Some(4), ..small("sun") };
        let expected = previews(&request);
        assert_eq!(
            expected.iter().map(|(picture, step, _)| (*picture, *step)).collect::<Vec<_>>(),
            [0, 1, 2].map(|p| (p, 4))
        );
        for (found, expected) in previews(&Request { batch: 3, ..request }).iter().zip(&expected) {
            assert_eq!((found.0, found.1), (expected.0, expected.1), "{device:?}");
            let psnr = psnr(&found.2.rgba, &expected.2.rgba);
            assert!(psnr > 60.0, "{device:?}: the preview of picture {} has a PSNR of {psnr:.1} dB", found.0);
        }
    }
}

/// The weights of a network count once, however many batch sizes it has plans for. A batch that does not fit is refused
/// with what would.
#[test]
fn batches_of_two_sizes_share_the_weights_that_are_counted() {
    for device in drawing_devices() {
        let request = Request { count: 3, batch: 2, ..small("sun") };
        let mut pipeline = load(device.clone());
        let expected = draw(&mut pipeline, &request);
        let made = pipeline.counters();
        let needed = made.weight_bytes + made.plan_bytes;
        let with = |memory| {
            let options = Options { memory: Some(memory), ..on(device.clone()) };
            Pipeline::load(source(), options).expect("it loads")
        };
        let mut limited = with(needed);
        assert!(draw(&mut limited, &request) == expected, "{device:?}");
        let larger = Request { count: 59, batch: 30, ..small("sun") };
        let refused = limited.generate(&larger, &mut |_| Flow::Continue).expect_err("30 need more").to_string();
        let named = refused.starts_with("out of memory: 30 pictures at once of 32x32 pixels need ");
        assert!(named, "{device:?}: {refused}");
        let alone = pipeline.summaries(&small("sun")).expect("it is valid");
        let least = |plan: &PlanSummary| match device {
            DeviceChoice::Cpu => plan.lower_bound_bytes,
            _ => plan.lower_bound_in_place_bytes,
        };
        let plans: usize = alone.iter().map(|(_, plan)| least(plan)).sum();
        let mib = (made.weight_bytes + plans as u64) as f64 / f64::from(1 << 20);
        let offer = format!("32x32 one by one would fit with {mib:.1} MiB");
        assert!(refused.contains(&offer), "{device:?}: expected {offer}: {refused}");
        assert!(draw(&mut limited, &request) == expected, "{device:?}: other pictures after the refusal");
    }
}

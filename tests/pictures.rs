//! Drawing from an initial picture and with a mask, and errors for invalid pictures, on the CPU device, every hardware
//! adapter and one software driver.

use mobilediffusion_graph::{Recording, Session, Weights};
use mobilediffusion_model::config::{ModelConfig, VaeConfig};
use mobilediffusion_model::networks::{Decoder, LatentSize, decode_graph, encode_graph};
use mobilediffusion_model::weights::Synthetic;
use mobilediffusion_model::{
    DeviceChoice, Floats, Flow, Init, Mask, ModelError, Options, Picture, Pipeline, Request, Source, WeightsFrom,
};
use mobilediffusion_tests::checkpoints::spoiled;
use mobilediffusion_tests::{drawing_devices, folder, on};

const SEED: u64 = 3;
const SIDE: usize = 64;

/// The bundled architecture with a small VAE and synthetic weights. What these tests check exactly holds for any
/// weights.
fn with_encoder() -> Source {
    let mini = ModelConfig::preset("mini").expect("there is a preset");
    let vae: VaeConfig = serde_json::from_value(serde_json::json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 1, "norm_num_groups": 4,
        "scaling_factor": mini.decoder.as_ref().map(|decoder| decoder.scaling_factor)
    }))
    .expect("the configuration parses");
    let config = ModelConfig { vae: Some(vae), ..mini };
    Source { config, weights: WeightsFrom::Synthetic(SEED) }
}

fn load(source: Source, device: &DeviceChoice) -> Pipeline {
    Pipeline::load(source, on(device.clone())).expect("it loads")
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Picture {
    pipeline.generate(request, &mut |_| Flow::Continue).expect("the request draws").remove(0)
}

/// Draws a test picture of waves in three colours.
fn waves(side: usize) -> Picture {
    let wave = |at: usize, length: f32| (127.5 + 127.5 * (at as f32 / length).sin()) as u8;
    let pixel = |at: usize| [wave(at % side, 5.0), wave(at / side, 7.0), wave(at, 11.0), 255];
    Picture { width: side, height: side, rgba: (0..side * side).flat_map(pixel).collect() }
}

/// Makes a mask whose white rectangle cuts through cells of the latent and has a grey edge.
fn mask(side: usize) -> Mask {
    let value = |at: usize| match (at % side, at / side) {
        (20..45, 12..50) => 255,
        (45, 12..50) => 100,
        _ => 0,
    };
    Mask { width: side, height: side, values: (0..side * side).map(value).collect() }
}

/// Encodes and decodes a picture with sessions of its own, and returns the pixels.
fn round_trip(pipeline: &Pipeline, picture: &Picture) -> Vec<u8> {
    let config = pipeline.model().config();
    let size = LatentSize::of(config, picture.width, picture.height).expect("the size is valid");
    let weights = Weights::new(pipeline.model().device(), Box::new(Synthetic { seed: SEED }));
    let session = |graph| Session::new(Recording::new(graph), &weights).expect("it is made");
    let mut encode = session(encode_graph(config, size).expect("the encoder builds"));
    let mut decode = session(decode_graph(config, size, Decoder::Light, 1).expect("the decoder builds"));
    let colours = picture.rgba.chunks_exact(4).flat_map(|pixel| &pixel[..3]);
    let image: Vec<f32> = colours.map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    encode.write("image", &image).expect("it fits");
    encode.run().expect("it runs");
    decode.write("latent", &encode.read("latent").expect("it reads")).expect("it fits");
    decode.run().expect("it runs");
    decode.read_u32("pixels").expect("it reads").into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn strength_0_draws_what_the_encoder_keeps_of_the_picture() {
    for device in drawing_devices() {
        let mut pipeline = load(with_encoder(), &device);
        let init = Init { strength: 0.0, ..Init::new(waves(SIDE)) };
        for steps in [1, 8] {
            let request = Request { init: Some(init.clone()), steps: Some(steps), ..Request::new("sun") };
            let drawn = draw(&mut pipeline, &request);
            assert!(drawn.rgba == round_trip(&pipeline, &init.picture), "{device:?}: {steps} steps");
        }
    }
}

#[test]
fn strength_leads_from_the_picture_to_the_prompt() {
    for device in drawing_devices() {
        let mut pipeline = load(with_encoder(), &device);
        for steps in [1, 6] {
            let plain = Request { steps: Some(steps), ..Request::new("sun") };
            let mut at = |strength: f32, picture: Picture| {
                let init = Init { strength, ..Init::new(picture) };
                draw(&mut pipeline, &Request { init: Some(init), ..plain.clone() })
            };
            let black = Picture { rgba: [0, 0, 0, 255].repeat(SIDE * SIDE), ..waves(SIDE) };
            let (kept, half, forgotten) = (at(0.0, waves(SIDE)), at(0.5, waves(SIDE)), at(1.0, waves(SIDE)));
            assert!(kept != half && half != forgotten, "{device:?}: {steps} steps: strength changes nothing");
            assert!(half != at(0.5, black.clone()), "{device:?}: {steps} steps: the picture changes nothing");
            assert!(forgotten == at(1.0, black), "{device:?}: {steps} steps: something is left of the picture");
            assert!(
                forgotten == draw(&mut pipeline, &plain),
                "{device:?}: {steps} steps: strength 1 is the prompt alone"
            );
        }
    }
}

#[test]
fn what_the_mask_keeps_is_kept_byte_by_byte() {
    for device in drawing_devices() {
        let mut pipeline = load(with_encoder(), &device);
        for (steps, strength) in [(1, 1.0), (3, 1.0), (6, 1.0), (1, 0.5), (6, 0.5)] {
            let init = Init { strength, ..Init::masked(waves(SIDE), mask(SIDE)) };
            let request = Request { init: Some(init), steps: Some(steps), ..Request::new("sun") };
            let drawn = draw(&mut pipeline, &request);
            let other = draw(&mut pipeline, &Request { seed: 1, ..request.clone() });
            let known = waves(SIDE);
            let mut changed = 0;
            for (at, share) in mask(SIDE).values.iter().enumerate() {
                let pixel = |picture: &Picture| picture.rgba[4 * at..4 * at + 4].to_vec();
                if *share == 0 {
                    assert_eq!(pixel(&drawn), pixel(&known), "{device:?}: pixel {at} was to be kept");
                }
                changed += usize::from(*share == 255 && pixel(&drawn) != pixel(&other));
            }
            assert!(
                changed > 25 * 38 / 2,
                "{device:?}: {steps} steps: the seed changes {changed} pixels under the mask"
            );
        }
    }
}

#[test]
fn what_is_kept_guides_what_is_drawn() {
    let mut pipeline = load(with_encoder(), &DeviceChoice::Cpu);
    for steps in [3, 6] {
        let mut within = |picture: Picture| {
            let init = Some(Init::masked(picture, mask(SIDE)));
            let drawn = draw(&mut pipeline, &Request { init, steps: Some(steps), ..Request::new("sun") });
            drawn.rgba[4 * (30 * SIDE + 30)..][..4].to_vec()
        };
        let black = Picture { rgba: [0, 0, 0, 255].repeat(SIDE * SIDE), ..waves(SIDE) };
        assert!(within(waves(SIDE)) != within(black), "{steps} steps: the sampler does not see what is kept");
    }
}

#[test]
fn a_picture_or_mask_that_is_not_whole_is_refused() {
    let mut pipeline = load(with_encoder(), &DeviceChoice::Cpu);
    let mut refused = |init: Init| {
        let request = Request { init: Some(init), ..Request::new("sun") };
        pipeline.generate(&request, &mut |_| Flow::Continue).expect_err("something is missing").to_string()
    };
    let (mut short, mut long) = (waves(SIDE), mask(SIDE));
    short.rgba.pop();
    long.values.push(255);
    let pixels = SIDE * SIDE;
    assert!(refused(Init::new(short)).contains(&format!(
        "init: expected {} values, found {}",
        4 * pixels,
        4 * pixels - 1
    )));
    let of_mask = refused(Init::masked(waves(SIDE), long));
    assert!(of_mask.contains(&format!("mask: expected {pixels} values, found {}", pixels + 1)), "{of_mask}");
}

#[test]
fn a_model_without_an_encoder_says_so() {
    let mut source = with_encoder();
    source.config.vae = None;
    let mut pipeline = load(source, &DeviceChoice::Cpu);
    let request = Request { init: Some(Init::new(waves(SIDE))), ..Request::new("sun") };
    let refused = pipeline.generate(&request, &mut |_| Flow::Continue);
    assert!(matches!(refused, Err(ModelError::NoPart { part: "vae" })), "{refused:?}");
    draw(&mut pipeline, &Request::new("sun"));
}

#[test]
fn the_bundled_encoder_keeps_what_it_sees() {
    let source = Source::bundled().expect("the checkpoint is in the repository");
    assert!(source.config.vae.is_some(), "the bundled checkpoint has an encoder");
    let mut pipeline = load(source, &DeviceChoice::Cpu);
    let apple = draw(&mut pipeline, &Request::new("red apple"));
    let init = Init { strength: 0.0, ..Init::new(apple.clone()) };
    let again = draw(&mut pipeline, &Request { init: Some(init), ..Request::new("") });
    let squares = apple.rgba.iter().zip(&again.rgba).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / apple.rgba.len() as f64;
    assert!(mean < 400.0, "an apple came back with a mean square error of {mean:.0}");
}

/// A picture that begins from one of a single colour may have a single colour.
#[test]
fn a_flat_picture_from_an_initial_one_is_no_error() {
    let folder = folder();
    let source = spoiled(folder.path(), ("decoder", "decoder.conv_out.weight"), 0.0);
    let mut pipeline = load(source, &DeviceChoice::Cpu);
    let init = Init { strength: 0.0, ..Init::new(waves(SIDE)) };
    let drawn = draw(&mut pipeline, &Request { init: Some(init), ..Request::new("sun") });
    assert!(drawn.is_flat(), "the decoder draws one colour");
}

#[test]
fn a_picture_that_is_flat_or_not_finite_is_an_error() {
    let folder = folder();
    for device in drawing_devices() {
        // Where a device has no floats of 16 bits in shaders, `F16` stores them packed. The CPU computes in f32 only.
        let all = if device == DeviceChoice::Cpu { &[Floats::F32][..] } else { &[Floats::F32, Floats::F16] };
        for floats in all {
            let drawn = |value| {
                let source = spoiled(folder.path(), ("decoder", "decoder.conv_out.weight"), value);
                let options = Options { floats: *floats, ..on(device.clone()) };
                let mut pipeline = Pipeline::load(source, options).expect("it loads");
                pipeline.generate(&Request::new("sun"), &mut |_| Flow::Continue)
            };
            // The largest weight that is stored, whose products are too large.
            let (flat, huge) = (drawn(0.0), drawn(if *floats == Floats::F32 { 3e38 } else { 65_504.0 }));
            assert!(matches!(flat, Err(ModelError::Flat)), "{device:?} {floats:?}: {flat:?}");
            assert!(matches!(huge, Err(ModelError::NotFinite { .. })), "{device:?} {floats:?}: {huge:?}");
        }
    }
}

//! A small application that uses most of the pipeline: progress with previews, several pictures, another size without
//! loading again, a picture drawn from a picture, stopping, a second pipeline over the same weights, and recovery of a
//! lost device.
//!
//!     cargo run --release -p mobilediffusion-model --example app -- [FOLDER]
#![expect(clippy::print_stderr, reason = "an application talks to whoever started it")]

use mobilediffusion_model::{Flow, Init, ModelError, Options, Phase, Picture, Pipeline, Progress, Request, Source};
use std::path::PathBuf;
use std::sync::Arc;

/// Prints progress; stands for a progress bar with a cancel button and a place for previews.
fn hear(progress: &Progress) -> Flow {
    if let Some(preview) = &progress.preview {
        eprintln!("picture {}: a preview of {}x{} pixels", progress.picture, preview.width, preview.height);
    }
    if progress.phase == Phase::Denoise {
        eprintln!("picture {}: step {} of {}", progress.picture, progress.step, progress.total);
    }
    Flow::Continue
}

/// Draws, and opens the device once more if it was lost meanwhile, for example because a driver was updated or a
/// laptop slept.
fn draw(pipeline: &mut Pipeline, request: &Request) -> Result<Vec<Picture>, ModelError> {
    match pipeline.generate(request, &mut hear) {
        Err(ModelError::DeviceLost { .. }) => {
            pipeline.recover()?;
            pipeline.generate(request, &mut hear)
        }
        drawn => drawn,
    }
}

fn main() -> Result<(), ModelError> {
    let folder = std::env::args_os().nth(1).map_or_else(PathBuf::new, PathBuf::from);
    let mut pipeline = Pipeline::load(Source::bundled()?, Options::default())?;
    eprintln!("drawing on {}", pipeline.model().device_line());

    let request = Request { count: 3, seed: 7, ..Request::new("red apple") };
    let apples = draw(&mut pipeline, &request)?;
    for (seed, apple) in (request.seed..).zip(&apples) {
        apple.save_png(&folder.join(format!("apple-{seed}.png")), &[("Seed", seed.to_string())])?;
    }
    // Several pictures at once take less time each, in more memory.
    draw(&mut pipeline, &Request { batch: 3, ..request.clone() })?;
    // Another shape makes new plans once; the weights stay on the device.
    let wide = Request { width: Some(128), steps: Some(10), negative: "leaf".into(), ..Request::new("red apple") };
    Picture::sheet(&draw(&mut pipeline, &wide)?).save_png(&folder.join("wide.png"), &[])?;

    // Each picture is passed on as soon as it is drawn, and is shown on the way there.
    let shown = Request { steps: Some(10), count: 2, preview_every: Some(4), ..Request::new("red apple") };
    pipeline.generate_each(&shown, &mut hear, &mut |number, picture| {
        eprintln!("picture {number} is done: {}x{} pixels", picture.width, picture.height);
        Flow::Continue
    })?;

    // A stopped request ends with an error of its own, and the pipeline can be used again.
    let stopped = pipeline.generate(&request, &mut |_| Flow::Stop);
    assert!(matches!(stopped, Err(ModelError::Stopped)), "it was told to stop");

    // A second pipeline draws on another thread, over the same device and weights.
    let mut second = Pipeline::over(Arc::clone(pipeline.model()));
    let suns = std::thread::spawn(move || draw(&mut second, &Request::new("sun")));
    suns.join().expect("the thread does not panic")?[0].save_png(&folder.join("sun.png"), &[])?;

    let from_apple = Request { init: Some(Init::new(apples[0].clone())), ..Request::new("green apple") };
    match draw(&mut pipeline, &from_apple) {
        Ok(pictures) => pictures[0].save_png(&folder.join("green.png"), &[]),
        Err(ModelError::NoPart { .. }) => {
            eprintln!("this model does not begin from pictures");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

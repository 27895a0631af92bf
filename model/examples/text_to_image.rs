//! Draws a prompt with the bundled checkpoint and writes a PNG file: the least code that an application needs.

use mobilediffusion_model::{Flow, ModelError, Options, Pipeline, Request, Source};
use std::path::Path;

fn main() -> Result<(), ModelError> {
    let mut pipeline = Pipeline::load(Source::bundled()?, Options::default())?;
    let pictures = pipeline.generate(&Request::new("red apple"), &mut |_| Flow::Continue)?;
    pictures[0].save_png(Path::new("apple.png"), &[])
}

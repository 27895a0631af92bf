//! From a prompt to a PNG with the bundled checkpoint: what an application has to write.

use mobilediffusion_model::{Flow, ModelError, Options, Pipeline, Request, Source};
use std::path::Path;

fn main() -> Result<(), ModelError> {
    let mut pipeline = Pipeline::load(Source::bundled()?, Options::default())?;
    let pictures = pipeline.generate(&Request::new("red apple"), &mut |_| Flow::Continue)?;
    pictures[0].save_png(Path::new("apple.png"), &[])
}

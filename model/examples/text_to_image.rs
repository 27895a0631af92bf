//! From a prompt to a PNG with the bundled checkpoint: what an application has to write.

use mobilediffusion_model::{ModelError, Options, Pipeline, Source};
use std::path::Path;

fn main() -> Result<(), ModelError> {
    let source = Source::bundled()?;
    let options = Options::new(&source.config);
    let mut pipeline = Pipeline::load(source, options, &mut |_| ())?;
    let picture = pipeline.generate("red apple", 0, &mut |_| ())?;
    picture.save_png(Path::new("apple.png"), &[])
}

//! `info`: what a model is made of.

use crate::Failure;
use crate::args::Networks;
use crate::terminal::result;

pub(crate) fn info(args: &Networks) -> Result<(), Failure> {
    let config = args.config()?;
    let size = args.size.unwrap_or(config.defaults.image_size);
    let counted = mobilediffusion_model::info::summary(&config, size)?;
    let defaults = &config.defaults;
    result(&format!("{}: {}", defaults.name, defaults.description))?;
    result(&format!("one image of {size}x{size} pixels, one evaluation of the UNet\n\n{counted}\n"))?;
    result(&mobilediffusion_model::info::paper::table()?.to_string())?;
    Ok(())
}

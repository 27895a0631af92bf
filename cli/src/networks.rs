//! `info` and `plan`: what a model is made of, and what will run.

use crate::Failure;
use crate::args::{Networks, Plan};
use crate::terminal::result;
use mobilediffusion_graph::Recording;
use mobilediffusion_kernels::Storage;
use mobilediffusion_model::networks::{Shape, decode_graph, denoise_graph, text_graph};

pub(crate) fn info(args: &Networks) -> Result<(), Failure> {
    let config = args.config()?;
    let size = args.size.unwrap_or(config.defaults.image_size);
    let counted = mobilediffusion_model::info::summary(&config, size)?;
    let defaults = &config.defaults;
    result(&format!("{}: {}", defaults.name, defaults.description))?;
    result(&format!("one image of {size}x{size} pixels, one evaluation of the UNet\n\n{counted}"))?;
    Ok(())
}

pub(crate) fn plan(args: &Plan) -> Result<(), Failure> {
    let config = args.networks.config()?;
    let defaults = &config.defaults;
    let size = args.networks.size.unwrap_or(defaults.image_size);
    let guided = args.guidance.unwrap_or(defaults.guidance) != 1.0;
    let shape = Shape::of(size, size, defaults.sampler, defaults.steps, guided)?;
    let guidance = if guided { "with guidance" } else { "without guidance" };
    result(&format!("{}, {size}x{size} pixels, {guidance}", defaults.name))?;
    let graphs = [
        ("text encoder", text_graph(&config, shape.batch())?),
        ("unet", denoise_graph(&config, &shape)?),
        ("decoder", decode_graph(&config, &shape)?),
    ];
    for (name, graph) in graphs {
        let recording = Recording::new(graph);
        for (label, storage) in [("f32", Storage::F32), ("f16", Storage::F16)] {
            result(&format!("{name}, {label}: {}", recording.summary(storage)))?;
        }
        if args.list {
            result(&format!("{recording}"))?;
        }
    }
    Ok(())
}

//! `info`: parameters and multiply-accumulates of a model, or the rounding errors of weights stored in fewer bits.

use crate::Failure;
use crate::args::{Info, Networks, of_size};
use crate::graphs::{record, shape};
use crate::terminal::{printable, result};
use mobilediffusion_graph::{Device, Rounding, Weights, rounding};
use mobilediffusion_kernels::WeightType;
use mobilediffusion_model::networks::Network;
use serde_json::{Value, json};

pub(crate) fn run(args: &Info) -> Result<(), Failure> {
    match args.weights_dtype {
        Some(weights) => losses(args, weights),
        None => parts(&args.networks),
    }
}

/// Prints the rounding error of every weight of a model when matrices of weights are stored as `asked`.
fn losses(args: &Info, asked: WeightType) -> Result<(), Failure> {
    let storage = args.dtype.planned().with_weights(asked);
    let source = args.networks.source()?;
    let config = &source.config;
    let shape = shape(config, args.networks.size, None)?;
    let mut all = Vec::new();
    for network in Network::of(config, shape.sampler) {
        let weights = Weights::new(Device::CPU, source.open(network)?);
        // Matrices stay in 16 bits where the network's files have them so.
        let kept = if asked == WeightType::Floats { weights.device().storage().weights } else { asked };
        let storage = storage.with_weights(kept);
        let title = format!("{}, {storage}", network.title());
        all.push((title, rounding(&record(network, config, &shape)?, &weights, storage)?));
    }
    if args.json {
        let networks: Vec<Value> = all.iter().map(|(title, each)| as_json(title, each)).collect();
        let whole = json!({"model": config.defaults.name, "storage": storage.to_string(), "networks": networks});
        return Ok(result(&serde_json::to_string_pretty(&whole)?)?);
    }
    result(&format!("{}, rounding of weights\n", printable(&config.defaults.name)))?;
    for (title, each) in &all {
        result(&format!("{title:72} {:>11} {:>9} {:>9}", "bytes", "rel L2", "worst"))?;
        let moved = each.iter().filter(|weight| weight.moved_squares > 0.0);
        moved
            .map(|weight| line(&format!("  {}", printable(&weight.name)), weight))
            .try_for_each(|line| result(&line))?;
        let total = Rounding::of_all("", each);
        result(&format!("{}\n", line("  total, with the weights that are stored exactly", &total)))?;
    }
    let total = Rounding::of_all("", all.iter().flat_map(|(_, each)| each));
    Ok(result(&line("all", &total))?)
}

fn line(name: &str, weight: &Rounding) -> String {
    format!("{name:72} {:>11} {:>9.2e} {:>9.2e}", weight.bytes, weight.relative_l2(), weight.worst)
}

fn as_json(title: &str, each: &[Rounding]) -> Value {
    let one = |weight: &Rounding| {
        json!({"name": weight.name, "shape": weight.shape, "bytes": weight.bytes,
            "relative_l2": weight.relative_l2(), "worst": weight.worst})
    };
    let total = Rounding::of_all(title, each);
    let weights: Vec<Value> = each.iter().map(one).collect();
    json!({"name": title, "bytes": total.bytes, "relative_l2": total.relative_l2(), "worst": total.worst,
        "weights": weights})
}

/// Prints the parameters and multiply-accumulates of a model, and the paper's Table 1 beside them.
fn parts(args: &Networks) -> Result<(), Failure> {
    let config = args.source()?.config;
    let size = args.size.unwrap_or(config.defaults.image_size);
    let counted = mobilediffusion_model::info::summary(&config, size).map_err(of_size)?;
    let defaults = &config.defaults;
    result(&printable(&format!("{}: {}", defaults.name, defaults.description)))?;
    result(&format!("one image of {size}x{size} pixels, one evaluation of the UNet\n\n{counted}\n"))?;
    result(&mobilediffusion_model::info::paper::table()?.to_string())?;
    Ok(())
}

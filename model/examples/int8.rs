//! Measures how far int8 weights move the pictures of the contact sheet (seed 0, one step).
//!
//!     cargo run --release -p mobilediffusion-model --example int8 -- [ADAPTER]
//!
//! Runs on the CPU unless an adapter is named. Prints the PSNR of each picture against the same picture with the
//! checkpoint's weights in f16 on the same device, then the worst and the median.

mod sheet;

use mobilediffusion_model::{
    DeviceChoice, Floats, Flow, ModelError, Options, Picture, Pipeline, Request, Source, WeightType,
};
use sheet::PROMPTS;
use std::error::Error;
use std::io::Write;

/// Draws the sheet and returns the pictures and the number of bytes of the weights.
fn draw(device: &DeviceChoice, weights: WeightType) -> Result<(Vec<Picture>, u64), ModelError> {
    let options = Options { device: device.clone(), floats: Floats::F32, weights, ..Options::default() };
    let mut pipeline = Pipeline::load(Source::bundled()?, options)?;
    let mut pictures = Vec::new();
    for prompt in PROMPTS {
        pictures.extend(pipeline.generate(&Request::new(prompt), &mut |_| Flow::Continue)?);
    }
    Ok((pictures, pipeline.counters().weight_bytes))
}

/// Returns the PSNR in decibels; infinite for equal pictures.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let squares = a.rgba.iter().zip(&b.rgba).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    // Alpha is the same everywhere and does not count.
    let values = (a.rgba.len() / 4 * 3) as f64;
    10.0 * (255.0 * 255.0 * values / squares.sum::<f64>()).log10()
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = std::env::args().nth(1).map_or(DeviceChoice::Cpu, DeviceChoice::Named);
    let (exact, f16_bytes) = draw(&device, WeightType::Floats)?;
    let (rounded, int8_bytes) = draw(&device, WeightType::Int8)?;
    let mut out = std::io::stdout();
    let mut all: Vec<f64> = rounded.iter().zip(&exact).map(|(a, b)| psnr(a, b)).collect();
    for (prompt, psnr) in PROMPTS.iter().zip(&all) {
        writeln!(out, "{prompt:20} {psnr:6.1} dB")?;
    }
    all.sort_by(f64::total_cmp);
    writeln!(out, "worst {:.1} dB, median {:.1} dB", all[0], all[all.len() / 2])?;
    writeln!(out, "weights: {int8_bytes} bytes, {f16_bytes} in f16")?;
    Ok(())
}

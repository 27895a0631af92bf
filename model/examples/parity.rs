//! Compares the runtime with another implementation, block by block.
//!
//!     cargo run --release -p mobilediffusion-model --example parity -- FOLDER [CASE]
//!
//! Options: `--device cpu|gpu|NAME` (default `cpu`) and `--dtype f32|f16` (default `f32`).
//!
//! `FOLDER` holds `config.json`, the weights and `CASE` (default `golden.safetensors`), as `reference/full_size.py`
//! writes them. Prints one line per output with its name and its relative L2 distance.

use mobilediffusion_graph::Device;
use mobilediffusion_kernels::Storage;
use mobilediffusion_model::golden::compare;
use mobilediffusion_runtime::{Gpu, Select};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Opens the device of the command line.
fn device(name: &str, dtype: &str) -> Result<Device, Box<dyn Error>> {
    let select = match name {
        "cpu" if dtype == "f32" => return Ok(Device::CPU),
        "cpu" => return Err("--dtype: expected f32 on the CPU device, found f16".into()),
        "gpu" => Select::Best,
        name => Select::Named(name.to_owned()),
    };
    let gpu = pollster::block_on(Gpu::open(&select))?;
    let storage = match dtype {
        "f32" => Storage::F32,
        "f16" if gpu.caps().shader_f16 => Storage::F16,
        "f16" => Storage::F16_PACKED,
        other => return Err(format!("--dtype: expected f32 or f16, found {other}").into()),
    };
    Ok(Device::Gpu(Arc::new(gpu), storage))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut paths, mut name, mut dtype) = (Vec::new(), "cpu".to_owned(), "f32".to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--device" => name = value()?,
            "--dtype" => dtype = value()?,
            _ => paths.push(argument),
        }
    }
    let [folder, case @ ..] = paths.as_slice() else {
        return Err("expected a folder with config.json, weights and a case".into());
    };
    let case = case.first().map_or("golden.safetensors", String::as_str);
    let folder = Path::new(folder);
    for agreement in compare(folder, case, folder, device(&name, &dtype)?)? {
        writeln!(std::io::stdout(), "{:70} {:.3e}", agreement.output, agreement.relative_l2)?;
    }
    Ok(())
}

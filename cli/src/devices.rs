//! `devices`: what this machine has.

use crate::Failure;
use crate::terminal::result;
use mobilediffusion_runtime::{AdapterSummary, Select, adapters};

pub(crate) fn run() -> Result<(), Failure> {
    let found = pollster::block_on(adapters());
    for adapter in &found {
        result(&line(adapter))?;
    }
    let threads = rayon::current_num_threads();
    result(&format!("[cpu] {threads} threads, f32"))?;
    let taken = match Select::Hardware.choose(&found) {
        Ok(index) => format!("[{index}] {}", found[index].name),
        Err(_) => "[cpu], there is no hardware GPU".to_owned(),
    };
    result(&format!("auto takes {taken}"))?;
    Ok(())
}

fn line(adapter: &AdapterSummary) -> String {
    let AdapterSummary { index, name, backend, driver, kind, caps } = adapter;
    let f16 = if caps.shader_f16 { "f16" } else { "no f16" };
    let mib = caps.max_binding_bytes >> 20;
    format!("[{index}] {name}: {kind}, {backend}, {driver}, {f16}, bindings up to {mib} MiB")
}

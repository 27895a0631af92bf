//! `devices`: what this machine has.

use crate::Failure;
use crate::terminal::result;
use mobilediffusion_runtime::{AdapterSummary, Select, adapters};

pub(crate) fn run() -> Result<(), Failure> {
    let found = pollster::block_on(adapters());
    for adapter in &found {
        result(&lines(adapter))?;
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

/// What an adapter is, what it can do, and its limits: a line each.
fn lines(adapter: &AdapterSummary) -> String {
    let AdapterSummary { index, name, backend, driver, kind, caps } = adapter;
    let word = |has: bool, what: &str| if has { what.to_owned() } else { format!("no {what}") };
    let features = [(caps.shader_f16, "f16"), (caps.timestamps, "timestamps"), (caps.pipeline_cache, "pipelines kept")];
    let features = features.map(|(has, what)| word(has, what)).join(", ");
    format!(
        "[{index}] {name}: {kind}, {backend}, {driver}\n    {features}\n    buffers up to {} MiB, bindings up to {} MiB, \
         workgroups of {} invocations and {} KiB, {} storage buffers, {} workgroups on an axis",
        caps.max_buffer_bytes >> 20,
        caps.max_binding_bytes >> 20,
        caps.max_invocations,
        caps.max_workgroup_bytes >> 10,
        caps.max_storage_buffers,
        caps.max_groups
    )
}

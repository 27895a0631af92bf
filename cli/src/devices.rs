//! `devices`: lists the adapters of this machine and the CPU.

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

/// Describes an adapter in three lines: name and driver, features, limits.
fn lines(adapter: &AdapterSummary) -> String {
    let AdapterSummary { index, name, backend, driver, kind, vendor, units, caps } = adapter;
    let units = units.map(|units| format!(", {units} units")).unwrap_or_default();
    let word = |has: bool, what: &str| if has { what.to_owned() } else { format!("no {what}") };
    let features = [(caps.shader_f16, "f16"), (caps.timestamps, "timestamps"), (caps.pipeline_cache, "pipelines kept")];
    let features = features.map(|(has, what)| word(has, what)).join(", ");
    let matrices = match caps.matrices.as_slice() {
        [] => "no matrix units".to_owned(),
        shapes => format!("matrix units {}", shapes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    format!(
        "[{index}] {name}: {kind}, {backend}, {driver}, vendor {vendor:#06x}{units}\n    {features}, {matrices}\n    buffers up to {} MiB, bindings up to {} MiB, \
         workgroups of {} invocations and {} KiB, {} storage buffers, {} workgroups on an axis",
        caps.max_buffer_bytes >> 20,
        caps.max_binding_bytes >> 20,
        caps.max_invocations,
        caps.max_workgroup_bytes >> 10,
        caps.max_storage_buffers,
        caps.max_groups
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_runtime::{AdapterKind, Caps, MatrixShape, MatrixType};

    #[test]
    fn features_and_limits_are_told() {
        let caps = Caps {
            shader_f16: false,
            timestamps: true,
            pipeline_cache: true,
            subgroup_size: Some(32),
            matrices: vec![MatrixShape::square(16, MatrixType::F16, MatrixType::F32)],
            max_binding_bytes: 128 << 20,
            max_buffer_bytes: 2 << 30,
            max_workgroup_bytes: 32 << 10,
            max_invocations: 1024,
            max_groups: 65_535,
            max_storage_buffers: 10,
            uniform_alignment: 64,
        };
        let (name, backend, driver) = ("Iris".to_owned(), "vulkan".to_owned(), "Mesa 25".to_owned());
        let adapter = AdapterSummary {
            index: 3,
            name,
            backend,
            driver,
            kind: AdapterKind::Integrated,
            vendor: 0x8086,
            units: Some(96),
            caps,
        };
        let text = lines(&adapter);
        for words in [
            "[3] Iris: integrated GPU, vulkan, Mesa 25, vendor 0x8086, 96 units\n",
            "no f16, timestamps, pipelines kept, matrix units 16x16x16 f16 to f32\n",
            "buffers up to 2048 MiB, bindings up to 128 MiB",
            "workgroups of 1024 invocations and 32 KiB, 10 storage buffers, 65535 workgroups on an axis",
        ] {
            assert!(text.contains(words), "no {words} in: {text}");
        }
    }
}

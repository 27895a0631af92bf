//! Check of a recording against the limits of an adapter.

use crate::error::GraphError;
use crate::record::Recording;
use mobilediffusion_kernels::{Stage, Storage};
use mobilediffusion_runtime::{Gpu, RuntimeError};

/// Checks every stage against the limits of the adapter: number of workgroups, number of operands, and size of each
/// operand.
pub(super) fn check(
    gpu: &Gpu,
    (recording, stages): (&Recording, &[(usize, Stage)]),
    storage: Storage,
) -> Result<(), GraphError> {
    let caps = gpu.caps();
    for (step, Stage { program, operands }) in stages {
        let node = &recording.nodes[*step];
        let exceeded = |what, most: usize, found| {
            let (node, expected) = (node.path.clone(), format!("at most {most}"));
            Err(GraphError::Size { node, what, expected, found })
        };
        let (most, groups) = (caps.max_groups as usize, program.grid.into_iter().max().unwrap_or(0) as usize);
        if groups > most {
            return exceeded("number of workgroups along one axis", most, groups);
        }
        let (most, present) = (caps.max_storage_buffers as usize, operands.iter().filter(|o| o.present).count());
        if present > most {
            return exceeded("number of operands", most, present);
        }
        for (operand, tensor) in operands.iter().zip(&node.operands) {
            let bytes = operand.bytes(storage) as u64;
            if let Some(tensor) = tensor.filter(|_| bytes > caps.max_binding_bytes) {
                let (what, limit) = (recording.tensors[tensor].name.clone(), "adapter's largest storage binding");
                let source = RuntimeError::TooLarge { what, bytes, limit, allowed: caps.max_binding_bytes };
                return Err(GraphError::at(&node.path)(source));
            }
        }
    }
    Ok(())
}

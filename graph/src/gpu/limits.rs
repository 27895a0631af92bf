//! Check of a recording against the limits of an adapter.

use crate::error::GraphError;
use crate::record::Recording;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Stage, Storage};
use mobilediffusion_runtime::{Caps, RuntimeError};

/// Checks that shaders can count the elements of every operand: sizes are `u32` there.
pub(super) fn check_elements(recording: &Recording) -> Result<(), GraphError> {
    for node in &recording.nodes {
        let mut counts = node.present().map(|(operand, _)| elements(&operand.shape));
        if let Some(found) = counts.find(|count| u32::try_from(*count).is_err()) {
            let (node, expected) = (node.path.clone(), "fewer than 2^32 in each operand".to_owned());
            return Err(GraphError::Size { node, what: "number of elements", expected, found });
        }
    }
    Ok(())
}

/// Checks the `stages` of each step against the limits of an adapter: number of workgroups, and size of each operand.
pub(super) fn check(
    caps: &Caps,
    storage: Storage,
    recording: &Recording,
    stages: &[Vec<Stage>],
) -> Result<(), GraphError> {
    let of_nodes = recording.nodes.iter().zip(stages);
    for (node, Stage { program, operands }) in
        of_nodes.flat_map(|(node, own)| own.iter().map(move |stage| (node, stage)))
    {
        let (most, found) = (caps.max_groups as usize, program.grid.into_iter().max().unwrap_or(0) as usize);
        if found > most {
            let (node, expected) = (node.path.clone(), format!("at most {most}"));
            return Err(GraphError::Size { node, what: "number of workgroups along one axis", expected, found });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Linear};
    use mobilediffusion_kernels::variant::Machine;
    use mobilediffusion_kernels::{Activation, DType};

    #[test]
    fn what_an_adapter_cannot_take_is_named_with_both_numbers() {
        let mut graph = Graph::new();
        let x = graph.input("x", [100, 8], DType::Elem);
        let y = graph.linear(&x, "proj", Linear { cols: 8, bias: true, ..Linear::default() }).expect("it fits");
        graph.output("y", &y);
        let recording = Recording::new(graph);
        let stages = recording.stages(&recording.variants(&Machine::PORTABLE));
        let told = |caps| check(&caps, Storage::F32, &recording, &stages).map_err(|error| error.to_string());
        assert_eq!(told(Caps::PORTABLE), Ok(()), "every adapter takes it");
        let refused = |caps| told(caps).expect_err("the adapter is too small");
        let binding = "`proj`: `x`: 3200 bytes exceed the adapter's largest storage binding of 3199 bytes";
        for (caps, expected) in [
            (
                Caps { max_groups: 3, ..Caps::PORTABLE },
                "`proj`: number of workgroups along one axis is 50, expected at most 3",
            ),
            (Caps { max_binding_bytes: 3199, ..Caps::PORTABLE }, binding),
        ] {
            assert_eq!(refused(caps), expected);
        }
    }

    #[test]
    fn shaders_count_in_32_bits() {
        for (rows, fits) in [((1 << 30) - 1, true), (1 << 30, false)] {
            let mut graph = Graph::new();
            let x = graph.input("x", [rows, 4], DType::Elem);
            let y = graph.activate(&x, Activation::Relu, 1.0).expect("the CPU could do it");
            graph.output("y", &y);
            assert_eq!(check_elements(&Recording::new(graph)).is_ok(), fits, "{rows} rows");
        }
    }
}

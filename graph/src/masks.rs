//! Masks: the inputs on which the results of steps depend, one bit for each input.

use crate::graph::{Origin, TensorInfo};
use crate::node::Node;

/// Masks of a graph's tensors and steps.
pub(crate) struct Masks {
    /// Mask of each tensor; 0 for weights and constants. A part has none, but the tensor that it is a part of.
    pub(crate) tensors: Vec<u64>,
    /// Mask of each step.
    pub(crate) steps: Vec<u64>,
}

impl Masks {
    /// Finds the masks of `nodes`, which are in execution order. Steps that depend on an input of `every_run` depend on
    /// all inputs.
    pub(crate) fn of(tensors: &[TensorInfo], nodes: &[Node], every_run: u64) -> Self {
        let of_input = |tensor: &TensorInfo| if let Origin::Input(bit) = tensor.origin { 1 << bit } else { 0 };
        let mut masks =
            Self { tensors: tensors.iter().map(of_input).collect(), steps: Vec::with_capacity(nodes.len()) };
        let all = masks.tensors.iter().fold(0, |all, mask| all | mask);
        for (step, node) in nodes.iter().enumerate() {
            let operands = || node.operands.iter().flatten().map(|&tensor| owner(tensors, tensor));
            let mask = operands().fold(0, |mask, tensor| mask | masks.tensors[tensor]);
            let mask = if mask & every_run == 0 { mask } else { all };
            masks.steps.push(mask);
            operands().filter(|&t| tensors[t].origin == Origin::Step(step)).for_each(|t| masks.tensors[t] = mask);
        }
        masks
    }
}

/// Returns the tensor that is planned for `tensor`: itself, or the one that it is a part of.
pub(crate) fn owner(tensors: &[TensorInfo], tensor: usize) -> usize {
    if let Origin::Part(part) = tensors[tensor].origin { part.of } else { tensor }
}

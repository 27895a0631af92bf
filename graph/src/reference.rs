//! Reference execution: runs each kernel's f64 reference in place of a device, step by step.

use crate::error::GraphError;
use crate::graph::Origin;
use crate::record::Recording;
use crate::weights::Weights;
use mobilediffusion_kernels::check::to_f64;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Access, DType};

/// Memory of a reference execution. Every tensor has a vector of its own, and values are kept as f32 between steps.
///
/// The references are plain loops over f64: exact, and slow.
pub(crate) struct ReferenceMemory<'a> {
    weights: &'a Weights,
    values: Vec<Vec<f32>>,
}

impl<'a> ReferenceMemory<'a> {
    pub(crate) fn new(recording: &Recording, weights: &'a Weights) -> Self {
        Self { weights, values: vec![Vec::new(); recording.tensors.len()] }
    }

    pub(crate) fn write(&mut self, tensor: usize, values: &[f32]) {
        self.values[tensor] = values.to_vec();
    }

    pub(crate) fn read(&self, tensor: usize) -> Vec<f32> {
        self.values[tensor].clone()
    }

    pub(crate) fn run(&mut self, recording: &Recording, step: usize) -> Result<(), GraphError> {
        let node = &recording.nodes[step];
        let mut inputs = Vec::new();
        for (operand, tensor) in node.bound().filter(|(operand, _)| operand.access == Access::Read) {
            let Some(tensor) = tensor else {
                inputs.push(Vec::new());
                continue;
            };
            let info = &recording.tensors[tensor];
            inputs.push(match &info.origin {
                Origin::Weight(sources) => to_f64(&operand, &self.weights.values(sources, operand.dtype)?),
                Origin::Constant(values) => to_f64(&operand, values),
                Origin::Input(_) | Origin::Step(_) => to_f64(&operand, &self.values[tensor]),
                Origin::Part(part) => {
                    let first = info.elements_before(part.row);
                    to_f64(&operand, &self.values[part.of][first..][..elements(&info.shape)])
                }
            });
        }
        let outputs = node.kernel.reference(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let written = node.bound().filter(|(operand, _)| operand.access == Access::Write);
        for ((operand, tensor), values) in written.zip(outputs) {
            let narrow = |v: f64| if operand.dtype == DType::U32 { f32::from_bits(v as u32) } else { v as f32 };
            if let Some(tensor) = tensor {
                self.values[tensor] = values.into_iter().map(narrow).collect();
            }
        }
        Ok(())
    }
}

//! What a recording moves through memory, beside the least that any recording of the same network could.

use crate::graph::Origin;
use crate::record::Recording;
use mobilediffusion_kernels::Storage;

/// Dispatches and bytes of a run of all steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Dispatches.
    pub steps: usize,
    /// Those that multiply and add up: products, convolutions, attention. Each reads many values of the one before for
    /// every value of its own, so that none can be part of its neighbour, as everything else can in principle.
    pub fewest_steps: usize,
    /// Bytes read and written by all steps, every operand once, with their padding.
    pub bytes: usize,
    /// Bytes of what cannot stay inside: weights, inputs and outputs, each once.
    pub fewest_bytes: usize,
}

impl Recording {
    /// The traffic on a device that stores elements as `storage`.
    pub fn traffic(&self, storage: Storage) -> Traffic {
        let mut outside: Vec<bool> =
            self.tensors.iter().map(|tensor| !matches!(tensor.origin, Origin::Step(_))).collect();
        self.outputs.iter().for_each(|(_, tensor)| outside[*tensor] = true);
        let (mut bytes, mut fewest_bytes) = (0, 0);
        for node in &self.nodes {
            for (operand, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                let Some(tensor) = *tensor else { continue };
                let size = storage.tensor_bytes(operand.dtype, &operand.layout.packed_shape(&operand.shape));
                bytes += size;
                // Counted once: it is inside from here on.
                if std::mem::take(&mut outside[tensor]) {
                    fewest_bytes += size;
                }
            }
        }
        let fewest_steps = self.nodes.iter().filter(|node| node.kernel.cost().macs > 0).count();
        Traffic { steps: self.nodes.len(), fewest_steps, bytes, fewest_bytes }
    }
}

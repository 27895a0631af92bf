//! Memory traffic of a recording, next to a lower bound for any recording of the same network.

use crate::graph::Origin;
use crate::record::Recording;
use mobilediffusion_kernels::Storage;

/// Bytes moved by a run of all steps, and lower bounds for these and for the number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Number of steps of this recording that multiply and accumulate: products, convolutions and attention. Each of
    /// them reads many values of its predecessor for every value it writes, so none can be fused into a neighbour;
    /// everything else can, in principle.
    pub fewest_steps: usize,
    /// Bytes that all steps read and write, every operand of every step counted once, padding included.
    pub bytes: usize,
    /// Bytes of the weights, constants, inputs and outputs, each counted once: the traffic that no fusion can avoid.
    pub fewest_bytes: usize,
}

impl Recording {
    /// Computes the traffic on a device that stores tensors as `storage`.
    pub fn traffic(&self, storage: Storage) -> Traffic {
        let mut outside: Vec<bool> =
            self.tensors.iter().map(|tensor| !matches!(tensor.origin, Origin::Step(_) | Origin::Part(_))).collect();
        self.outputs.iter().for_each(|(_, tensor)| outside[*tensor] = true);
        let (mut bytes, mut fewest_bytes) = (0, 0);
        for node in &self.nodes {
            for (operand, tensor) in node.present() {
                let size = operand.bytes(storage);
                bytes += size;
                // Only the first access of an outside tensor counts towards the lower bound.
                if std::mem::take(&mut outside[tensor]) {
                    fewest_bytes += size;
                }
            }
        }
        let fewest_steps = self.nodes.iter().filter(|node| node.kernel.cost().macs > 0).count();
        Traffic { fewest_steps, bytes, fewest_bytes }
    }
}

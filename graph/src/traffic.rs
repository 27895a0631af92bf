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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Linear};
    use mobilediffusion_kernels::DType;

    /// The input is read by all three steps, and the first output by the second of them.
    #[test]
    fn what_no_fusion_avoids_is_counted_once() {
        let mut graph = Graph::new();
        let layer = Linear { cols: 8, ..Linear::default() };
        let x = graph.input("x", [4, 8], DType::Elem);
        let first = graph.linear(&x, "first", layer).expect("it fits");
        let within = graph.linear(&first, "within", Linear { residual: Some(&x), ..layer }).expect("it fits");
        let last = graph.linear(&within, "last", Linear { residual: Some(&x), ..layer }).expect("it fits");
        [("first", &first), ("last", &last)].into_iter().for_each(|(name, tensor)| graph.output(name, tensor));
        let (map, weight) = (4 * 4 * 8, 4 * 8 * 8);
        let expected = Traffic { fewest_steps: 3, bytes: 8 * map + 3 * weight, fewest_bytes: 3 * map + 3 * weight };
        assert_eq!(Recording::new(graph).traffic(Storage::F32), expected);
    }
}

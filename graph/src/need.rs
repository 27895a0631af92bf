//! Memory that a recording needs on a device.

use crate::graph::{Origin, WeightRows};
use crate::node::Node;
use crate::plan::lower_bound;
use crate::record::Recording;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Device, Operand, Storage};

/// Number of bytes that a recording needs on a device, or several recordings together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of weights, which the plans of one network share.
    pub weights: u64,
    /// Bytes of everything else, at least.
    pub plan: u64,
    /// Bytes of the largest operand; 0 on the CPU device, which does not limit operands.
    pub largest: u64,
}

impl Need {
    /// Returns the bytes of weights and plans together.
    pub fn total(self) -> u64 {
        self.weights + self.plan
    }
}

impl Recording {
    /// Returns a lower bound of what the recording needs on a device. A real plan takes a few per cent more than its
    /// most crowded step, and the stages of a step may need memory of their own.
    pub fn need(&self, device: &Device) -> Need {
        let (weights, plan, largest) = match *device {
            Device::Cpu(types) => {
                let weight = |(_, o): (_, Operand)| 4 * elements(&o.host_layout(types).packed_shape(&o.shape));
                let plan = lower_bound(&self.lifetimes(|tensor| 4 * elements(&tensor.shape)).1);
                (self.weights().map(weight).sum(), plan, 0)
            }
            // Rows are padded, and outputs may overwrite operands.
            Device::Gpu(_, storage) => {
                let operands = self.nodes().iter().flat_map(|node| node.kernel.operands());
                let largest = operands.map(|operand| operand.bytes(storage)).max().unwrap_or(0);
                (self.weight_bytes(storage), self.lower_bound_in_place(|tensor| tensor.bytes(storage)), largest)
            }
        };
        Need { weights: weights as u64, plan: plan as u64, largest: largest as u64 }
    }

    /// Returns the bytes of all weights as they are packed on a GPU that stores tensors as `storage`, each counted
    /// once.
    pub(crate) fn weight_bytes(&self, storage: Storage) -> usize {
        self.weights().map(|(_, operand)| operand.bytes(storage)).sum()
    }

    /// Returns every weight in order of first use, with the operand that reads it first.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (&[WeightRows], Operand)> {
        let mut known = vec![false; self.tensors.len()];
        let all = self.nodes.iter().flat_map(Node::present);
        all.filter_map(move |(operand, tensor)| match &self.tensors[tensor].origin {
            Origin::Weight(sources) => {
                (!std::mem::replace(&mut known[tensor], true)).then_some((&sources[..], operand))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, Linear};
    use mobilediffusion_kernels::DType;

    #[test]
    fn a_weight_of_two_steps_is_needed_once() {
        let bytes = |second: &str| {
            let mut graph = Graph::new();
            let layer = Linear { cols: 8, ..Linear::default() };
            let mut x = graph.input("x", [4, 8], DType::Elem);
            for name in ["first", second] {
                x = graph.linear(&x, name, layer).expect("it fits");
            }
            graph.output("y", &x);
            let recording = Recording::new(graph);
            [recording.weight_bytes(Storage::F32) as u64, recording.need(&Device::CPU).weights]
        };
        let (one, two) = (bytes("first"), bytes("second"));
        assert_eq!((one[0], two), (4 * 64, one.map(|bytes| 2 * bytes)));
    }
}

//! Taking apart: a step that reads a concatenation, and treats every channel by itself, becomes two.
//!
//! Each of the two reads one of the concatenated tensors and can overwrite it where nothing else needs it, so that they
//! need no further memory. The readers of the result take in the concatenation.

use super::{Fused, Pass, held, output};
use crate::graph::Origin;
use crate::node::Node;
use mobilediffusion_kernels::fold::PrologueOp;
use mobilediffusion_kernels::names;

impl Pass<'_> {
    /// Takes all steps apart that can be.
    pub(super) fn take_apart(&mut self) {
        let mut slot = 0;
        while slot < self.nodes.len() {
            // If a reader cannot take in the concatenation, the step stays as it is.
            let _ = self.apart(slot);
            slot += 1;
        }
    }

    /// Takes the step in `slot` apart. Its second half comes into a new slot behind it.
    fn apart(&mut self, slot: usize) -> Option<()> {
        let node = self.nodes[slot].as_ref()?;
        let [first, second] = node.kernel.by_source()?;
        let (x2, written) = (held(node, names::X2)?, output(node)?);
        let op = PrologueOp::Concat { channels: *self.graph.tensors[x2].shape.last()? };
        let first = self.part_of(slot, first, &[])?;
        let second = self.part_of(slot, second, &[(names::X, x2)])?;
        let parts = (output(&first)?, output(&second)?);
        let readers = self.readers_with(written, &op, Some(parts.0), &[(names::X2, parts.1)])?;
        let concats = self.fused.extract_if(.., |fused| fused.step == slot && fused.what == op.name());
        let paths: Vec<String> = concats.map(|fused| fused.path).collect();
        for (reader, node) in readers {
            self.nodes[reader] = Some(node);
            self.fused.extend(paths.iter().map(|path| Fused { step: reader, what: op.name(), path: path.clone() }));
        }
        self.nodes[slot] = Some(first);
        self.insert(slot + 1, second);
        self.graph.tensors[parts.1].origin = Origin::Step(slot + 1);
        Some(())
    }

    /// Puts a step into a new slot. Those from there on move by one.
    fn insert(&mut self, slot: usize, node: Node) {
        self.nodes.insert(slot, Some(node));
        for tensor in &mut self.graph.tensors {
            if let Origin::Step(step) = &mut tensor.origin {
                *step += usize::from(*step >= slot);
            }
        }
        self.fused.iter_mut().for_each(|fused| fused.step += usize::from(fused.step >= slot));
    }
}

//! Stacking: layers of the same sizes that read the same tensor become one step.
//!
//! An attention's projections are such layers, and so are the projections of a text for all attentions of a network. One
//! large product keeps a GPU busier than several small ones, and reads its input once. The weights of the layers are
//! brought to the device one below the other, and every layer's result is a [`Part`] of the step's output.

use super::{Fused, Pass, output};
use crate::graph::{Origin, Part, TensorInfo, WeightRows};
use crate::node::Node;
use mobilediffusion_kernels::kernel::{LARGEST_BINDING, elements};
use mobilediffusion_kernels::{Access, DType, Kernel, Operand, Storage};

/// Name of a layer that was stacked, as an operation that a step took in.
pub(crate) const LAYER: &str = "layer";

impl Pass<'_> {
    /// Stacks all layers that can be stacked.
    ///
    /// Results that do not outlive a run are stacked only if the steps follow each other and one step is the last to read
    /// all of them, so that none of them lies in memory any earlier or longer than before.
    pub(super) fn stack(&mut self) {
        for slot in 0..self.nodes.len() {
            let slots = self.like(slot);
            if slots.len() > 1 {
                // If the kernel has no such form, the steps stay as they are.
                let _ = self.stack_all(&slots);
            }
        }
    }

    /// Returns `slot` and the later slots that can be stacked with it.
    fn like(&self, slot: usize) -> Vec<usize> {
        let mut slots = vec![slot];
        let Some((node, most)) = self.nodes[slot].as_ref().and_then(|node| Some((node, self.most_layers(node)?)))
        else {
            return slots;
        };
        let outlives = |node: &Node| output(node).is_some_and(|tensor| self.outlives_run(tensor));
        let kept = outlives(node);
        let params = node.kernel.params_json();
        for (later, other) in self.nodes.iter().enumerate().skip(slot + 1) {
            let Some(other) = other else { continue };
            let is_like = node.kernel.name() == other.kernel.name()
                && same_inputs(node, other)
                && self.most_layers(other).is_some()
                && outlives(other) == kept
                && (kept || self.last_reader(node) == self.last_reader(other))
                && params == other.kernel.params_json();
            match is_like {
                true if slots.len() < most => slots.push(later),
                false if kept => {}
                _ => break,
            }
        }
        slots
    }

    /// Returns for how many layers like `node` the weights fit into bindings that every device supports; `None` if it cannot
    /// be stacked: its weights must be read by nothing else, and its result must neither be an output nor be overwritten
    /// in place. The weights alone decide, so that recordings of a network at all sizes stack them alike and share them.
    fn most_layers(&self, node: &Node) -> Option<usize> {
        let stacked = node.kernel.stacked(2)?;
        let result = output(node)?;
        let own = |(operand, tensor): (&Operand, &Option<usize>)| match (operand.access, tensor) {
            (Access::Read, Some(tensor)) => {
                matches!(self.graph.tensors[*tensor].origin, Origin::Weight(_)) && self.readers(*tensor).len() == 1
            }
            (access, tensor) => tensor.is_none() || access == Access::Write,
        };
        let of_layers = layered(node.kernel.as_ref(), stacked.as_ref());
        let mut operands =
            of_layers.iter().zip(&node.operands).filter_map(|(layers, held)| Some((layers.as_ref()?, held)));
        let single = node.kernel.operands().into_iter().zip(&of_layers);
        let weights = single.filter(|(one, layers)| layers.is_some() && one.access == Access::Read);
        let largest = weights.map(|(one, _)| Storage::F32.tensor_bytes(one.dtype, &one.shape)).max()?;
        let may_be_part = !self.is_output(result) && !self.is_taken_over(result);
        (may_be_part && operands.all(own)).then_some(LARGEST_BINDING / largest)
    }

    /// Returns whether a step may write its output over a tensor.
    fn is_taken_over(&self, tensor: usize) -> bool {
        let in_place = |slot: usize| self.nodes[slot].as_ref().and_then(|node| node.kernel.in_place());
        self.readers(tensor).into_iter().any(|(slot, operand)| in_place(slot) == Some(operand))
    }

    /// Returns the slot of the last step that reads the result of `node`.
    fn last_reader(&self, node: &Node) -> Option<usize> {
        self.readers(output(node)?).into_iter().map(|(slot, _)| slot).max()
    }

    /// Returns whether a tensor has to be kept from one run to the next: steps read it that depend on other inputs.
    fn outlives_run(&self, tensor: usize) -> bool {
        let mask = self.masks[tensor];
        let of_reader = |(slot, _): (usize, &str)| self.nodes[slot].as_ref().map_or(0, |node| self.mask_of(node));
        self.readers(tensor).into_iter().any(|reader| of_reader(reader) != mask)
    }

    fn mask_of(&self, node: &Node) -> u64 {
        node.operands.iter().flatten().fold(0, |mask, &tensor| mask | self.masks[tensor])
    }

    /// Stacks the steps in `slots`; the step in the first takes the place of all.
    fn stack_all(&mut self, slots: &[usize]) -> Option<()> {
        let slot = slots[0];
        let nodes: Vec<&Node> = slots.iter().filter_map(|&slot| self.nodes[slot].as_ref()).collect();
        let kernel = nodes[0].kernel.stacked(slots.len())?;
        let results: Vec<usize> = nodes.iter().filter_map(|node| output(node)).collect();
        let path = nodes[0].path.clone();
        let mut operands = nodes[0].operands.clone();
        let made = self.tensors_of_layers(&nodes, kernel.as_ref(), slot)?;
        for (at, info) in made {
            let tensor = self.graph.tensors.len();
            operands[at] = Some(tensor);
            let is_result = info.origin == Origin::Step(slot);
            self.masks.push(if is_result { self.masks[results[0]] } else { 0 });
            for (layer, &result) in results.iter().enumerate().filter(|_| is_result) {
                let rows = elements(&info.shape[..info.shape.len() - 1]) / slots.len();
                self.graph.tensors[result].origin = Origin::Part(Part { of: tensor, row: layer * rows });
            }
            self.graph.tensors.push(info);
        }
        for &other in &slots[1..] {
            let node = self.nodes[other].take()?;
            // What is folded into a layer is folded into all of them.
            self.fused.retain(|fused| fused.step != other);
            self.fused.push(Fused { step: slot, what: LAYER, path: node.path });
        }
        self.nodes[slot] = Some(Node { path, kernel, operands });
        Some(())
    }

    /// Returns the tensors that hold all layers, weights and the output, each with the place of its operand. `nodes` are the
    /// layers, and `slot` is that of their common step.
    fn tensors_of_layers(&self, nodes: &[&Node], kernel: &dyn Kernel, slot: usize) -> Option<Vec<(usize, TensorInfo)>> {
        let of_layers = layered(nodes[0].kernel.as_ref(), kernel).into_iter().enumerate();
        let made = of_layers.filter_map(|(at, operand)| Some((at, operand?))).map(|(at, operand)| {
            let (name, dtype, origin) = match operand.access {
                Access::Write => (nodes[0].path.clone(), operand.dtype, Origin::Step(slot)),
                Access::Read => {
                    let held = nodes.iter().filter_map(|node| node.operands[at]);
                    let sources: Vec<WeightRows> =
                        held.flat_map(|tensor| self.graph.tensors[tensor].sources()).cloned().collect();
                    (sources.first()?.name.clone(), DType::Elem, Origin::Weight(sources))
                }
            };
            Some((at, TensorInfo { name, shape: operand.shape, dtype, origin }))
        });
        made.collect()
    }
}

/// Returns the operands of `stacked` that hold all layers, at the places of all operands, whose others are `None`.
fn layered(single: &dyn Kernel, stacked: &dyn Kernel) -> Vec<Option<Operand>> {
    let pairs = single.operands().into_iter().zip(stacked.operands());
    pairs.map(|(one, all)| (all.present && one.shape != all.shape).then_some(all)).collect()
}

/// Returns whether two steps of the same kernel read the same tensors, apart from weights of their own.
fn same_inputs(a: &Node, b: &Node) -> bool {
    let Some(stacked) = a.kernel.stacked(2) else { return false };
    let shared = layered(a.kernel.as_ref(), stacked.as_ref()).into_iter().map(|operand| operand.is_none());
    a.operands.len() == b.operands.len()
        && shared.zip(a.operands.iter().zip(&b.operands)).all(|(shared, (a, b))| !shared || a == b)
}

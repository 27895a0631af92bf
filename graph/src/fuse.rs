//! The fusion pass, which folds steps into neighbouring kernels when a graph is recorded.
//!
//! The builder emits unfused steps. This pass asks kernels for the fusions they offer and accept, through the interface
//! in [`fold`](mobilediffusion_kernels::fold); it knows no kernel by name. There are two kinds:
//!
//! * An *epilogue* (activation, residual, moments of channels or rows) moves into the step that writes its operand. That step then writes
//!   the result of the epilogue.
//! * A *prologue* (concatenation, upsampling, norm, cast) moves into all steps that read its result. They then read the
//!   operands of the prologue.
//!
//! Afterwards, the norm of a concatenation becomes two steps if its readers can take in the concatenation, and layers of
//! the same sizes that read the same tensor become one; see `apart` and `stack`.
//!
//! Outputs always stay tensors of their own. A step is not fused into a producer that depends on fewer inputs: a
//! product that is computed once per prompt stays separate from a sum that is needed in every run.

mod apart;
mod stack;

pub(crate) use stack::LAYER;

use crate::graph::{Graph, Origin, Part, TensorInfo};
use crate::masks::Masks;
use crate::node::Node;
use mobilediffusion_kernels::fold::{EpilogueOffer, OperandSource, PrologueOffer, PrologueOp};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Access, Kernel};
use std::fmt;

/// Whether a recording fuses steps into their neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fusion {
    /// Makes every fusion that the kernels support.
    #[default]
    All,
    /// Makes no fusion: every step stays as the builder emitted it. Tests compare fused recordings with these.
    None,
}

/// Record of one fusion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Number of the step that took the operation in.
    pub step: usize,
    /// Name of the operation, such as `activation`.
    pub what: &'static str,
    /// Path of the step that performed the operation before.
    pub path: String,
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of `{}` into step {}", self.what, self.path, self.step)
    }
}

/// Makes all possible fusions and returns a record of each. Steps and tensors are renumbered.
pub(crate) fn fuse(graph: &mut Graph) -> Vec<Fused> {
    let masks = Masks::of(&graph.tensors, &graph.nodes, graph.every_run).tensors;
    let nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    let mut pass = Pass { graph, nodes, masks, fused: Vec::new() };
    for slot in 0..pass.nodes.len() {
        pass.fold_back(slot);
    }
    // In reverse order, so that the norm of a concatenation moves into its reader before the concatenation does.
    for slot in (0..pass.nodes.len()).rev() {
        // If a fusion is not possible, the step stays as it is.
        let _ = pass.fold_forward(slot);
    }
    // The forward folds have introduced steps that compute moments; those can move into their producers now.
    for slot in 0..pass.nodes.len() {
        pass.fold_back(slot);
    }
    pass.take_apart();
    pass.stack();
    pass.finish()
}

/// State of the pass. A step that was folded away leaves its slot in `nodes` empty.
struct Pass<'a> {
    graph: &'a mut Graph,
    nodes: Vec<Option<Node>>,
    /// Mask of the inputs that each tensor depends on.
    masks: Vec<u64>,
    /// Fusions made so far; `step` is a slot until [`Pass::finish`] renumbers the steps.
    fused: Vec<Fused>,
}

impl Pass<'_> {
    /// Returns slot and operand name of every read of a tensor; a step that reads it twice is listed twice.
    fn readers(&self, tensor: usize) -> Vec<(usize, &'static str)> {
        let mut found = Vec::new();
        let nodes = self.nodes.iter().enumerate().filter_map(|(slot, node)| Some((slot, node.as_ref()?)));
        // Asking a kernel for its operands takes longer than looking whether the step holds the tensor at all.
        for (slot, node) in nodes.filter(|(_, node)| node.operands.contains(&Some(tensor))) {
            let reads = node.present().filter(|(o, held)| *held == tensor && o.access == Access::Read);
            found.extend(reads.map(|(operand, _)| (slot, operand.name)));
        }
        found
    }

    fn is_output(&self, tensor: usize) -> bool {
        self.graph.outputs.iter().any(|(_, output)| *output == tensor)
    }

    /// Returns `node` with another kernel. Operands named in `others` get the tensors given there; all others keep the
    /// tensor of the node's operand of the same name. Returns `None` if an operand has no tensor or one that does not
    /// fit, or if the kernel refuses the problem.
    fn with_kernel(&self, node: &Node, kernel: Box<dyn Kernel>, others: &[(&'static str, usize)]) -> Option<Node> {
        if kernel.refusal().is_some() {
            return None;
        }
        let declared = kernel.operands();
        let mut operands = Vec::with_capacity(declared.len());
        for operand in declared {
            if !operand.present {
                operands.push(None);
                continue;
            }
            let other = others.iter().find(|(name, _)| *name == operand.name).map(|(_, tensor)| *tensor);
            let tensor = other.or_else(|| held(node, operand.name))?;
            let info = &self.graph.tensors[tensor];
            if elements(&info.shape) != elements(&operand.shape) || !info.is_of(operand.dtype) {
                return None;
            }
            operands.push(Some(tensor));
        }
        Some(Node { path: node.path.clone(), kernel, operands })
    }

    /// Folds the step in `slot` into the producer of its operand, if possible.
    fn fold_back(&mut self, slot: usize) {
        let Some(node) = &self.nodes[slot] else { return };
        let path = node.path.clone();
        let offers = node.kernel.epilogue_offers();
        let made = offers.iter().find_map(|offer| Some((self.stored(slot, offer)?, offer.op)));
        let Some(((from, fused), op)) = made else { return };
        // If the fused kernel keeps the producer's output beside the step's, it has to run at the producer's slot. If
        // the step's output replaces it, the kernel runs at the step's slot, where the step's other operands are
        // available.
        let (empty, at) = if op.extra_output().is_some() { (slot, from) } else { (from, slot) };
        self.nodes[empty] = None;
        self.nodes[at] = Some(fused);
        self.fused.iter_mut().filter(|f| f.step == empty).for_each(|f| f.step = at);
        self.fused.push(Fused { step: at, what: op.name(), path });
    }

    /// Returns the slot of the producer, and the producer with the step in `slot` folded in as `offer` says.
    fn stored(&self, slot: usize, offer: &EpilogueOffer) -> Option<(usize, Node)> {
        let node = self.nodes[slot].as_ref()?;
        let (main, written) = (held(node, offer.main)?, output(node)?);
        let Origin::Step(from) = self.graph.tensors[main].origin else { return None };
        let producer = self.nodes[from].as_ref()?;
        if self.masks[main] != self.masks[written] {
            return None;
        }
        let name = match offer.op.extra_output() {
            Some(name) => name,
            None if self.readers(main).len() == 1 && !self.is_output(main) => output_name(producer)?,
            None => return None,
        };
        let mut others = vec![(name, written)];
        for (name, own) in &offer.operands {
            others.push((name, held(node, own)?));
        }
        Some((from, self.with_kernel(producer, producer.kernel.with_epilogue(&offer.op)?, &others)?))
    }

    /// Folds the step in `slot` into all steps that read its result. Returns `None` and folds nothing if one of them
    /// does not support it.
    fn fold_forward(&mut self, slot: usize) -> Option<()> {
        let node = self.nodes[slot].as_ref()?;
        let PrologueOffer { op, main, operands, remainder } = node.kernel.prologue_offer()?;
        let (path, written) = (node.path.clone(), output(node)?);
        let main = main.and_then(|main| held(node, main));
        let remainder = match remainder {
            None => None,
            Some(kernel) => Some(self.part_of(slot, kernel, &[])?),
        };
        let node = self.nodes[slot].as_ref()?;
        let mut others = Vec::new();
        for (name, from) in operands {
            let tensor = match from {
                OperandSource::Folded(own) => held(node, own)?,
                OperandSource::Remainder => output(remainder.as_ref()?)?,
            };
            others.push((name, tensor));
        }
        for (reader, fused) in self.readers_with(written, &op, main, &others)? {
            self.nodes[reader] = Some(fused);
            self.fused.push(Fused { step: reader, what: op.name(), path: path.clone() });
        }
        self.nodes[slot] = remainder;
        Some(())
    }

    /// Returns the steps that read `tensor`, each with its slot, as they are with the prologue `op`: they read `main`, if
    /// given, in place of the tensor, and gain the operands `others`. Returns `None` if one of them does not support it, or
    /// none reads the tensor.
    fn readers_with(
        &self,
        tensor: usize,
        op: &PrologueOp,
        main: Option<usize>,
        others: &[(&'static str, usize)],
    ) -> Option<Vec<(usize, Node)>> {
        let readers = self.readers(tensor);
        let twice = readers.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if self.is_output(tensor) || readers.is_empty() || twice {
            return None;
        }
        let mut changed = Vec::with_capacity(readers.len());
        for (reader, operand) in readers {
            let old = self.nodes[reader].as_ref()?;
            let others = others.iter().copied().chain(main.map(|main| (operand, main))).collect::<Vec<_>>();
            changed.push((reader, self.with_kernel(old, old.kernel.with_prologue(operand, op)?, &others)?));
        }
        Some(changed)
    }

    /// Returns a part of the step in `slot`, as a node that writes a new tensor. Operands named in `others` get the
    /// tensors given there. If the caller does not use the node, [`finish`](Self::finish) removes the tensor.
    fn part_of(&mut self, slot: usize, kernel: Box<dyn Kernel>, others: &[(&'static str, usize)]) -> Option<Node> {
        let node = self.nodes[slot].as_ref()?;
        let written = kernel.operands().into_iter().find(|operand| operand.access == Access::Write)?;
        let (name, mask) = (node.path.clone(), self.masks[output(node)?]);
        let info = TensorInfo { name, shape: written.shape, dtype: written.dtype, origin: Origin::Step(slot) };
        self.graph.tensors.push(info);
        self.masks.push(mask);
        let tensor = self.graph.tensors.len() - 1;
        self.with_kernel(self.nodes[slot].as_ref()?, kernel, &[others, &[(written.name, tensor)]].concat())
    }

    /// Removes empty slots and the tensors that no step reads or writes any more, and renumbers steps and tensors.
    fn finish(mut self) -> Vec<Fused> {
        let step_of: Vec<usize> = self
            .nodes
            .iter()
            .scan(0, |next, node| {
                let step = *next;
                *next += usize::from(node.is_some());
                Some(step)
            })
            .collect();
        self.graph.nodes = self.nodes.into_iter().flatten().collect();
        let mut kept: Vec<bool> = self.graph.tensors.iter().map(|t| matches!(t.origin, Origin::Input(_))).collect();
        for (step, node) in self.graph.nodes.iter().enumerate() {
            for (operand, tensor) in node.present() {
                kept[tensor] = true;
                if operand.access == Access::Write {
                    self.graph.tensors[tensor].origin = Origin::Step(step);
                }
            }
        }
        let mut number = 0..;
        let number_of: Vec<usize> = kept.iter().map(|k| if *k { number.next().unwrap_or(0) } else { 0 }).collect();
        let mut keep = kept.iter();
        self.graph.tensors.retain(|_| keep.next() == Some(&true));
        let renumber = |tensor: &mut usize| *tensor = number_of[*tensor];
        self.graph.nodes.iter_mut().flat_map(|node| node.operands.iter_mut().flatten()).for_each(renumber);
        self.graph.outputs.iter_mut().for_each(|(_, tensor)| *tensor = number_of[*tensor]);
        for tensor in &mut self.graph.tensors {
            if let Origin::Part(Part { of, .. }) = &mut tensor.origin {
                *of = number_of[*of];
            }
        }
        self.fused.iter_mut().for_each(|fused| fused.step = step_of[fused.step]);
        self.fused.sort_by_key(|fused| fused.step);
        self.fused
    }
}

/// Returns the tensor of the operand `name` of a node.
fn held(node: &Node, name: &str) -> Option<usize> {
    let declared = node.kernel.operands();
    let at = declared.iter().position(|operand| operand.name == name)?;
    node.operands[at]
}

/// Returns the tensor that a node writes; `None` if it writes several.
fn output(node: &Node) -> Option<usize> {
    held(node, output_name(node)?)
}

/// Returns the name of the only operand that a node writes; `None` if it writes several.
fn output_name(node: &Node) -> Option<&'static str> {
    let declared = node.kernel.operands();
    let mut written = declared.iter().filter(|operand| operand.access == Access::Write && operand.present);
    let name = written.next()?.name;
    written.next().is_none().then_some(name)
}

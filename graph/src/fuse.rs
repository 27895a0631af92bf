//! Fusion: steps that a neighbour can do on its way in or out are folded into it, in one pass over a recorded graph.
//!
//! The builder writes down plain steps. This pass asks kernels what they offer ([`fold`](mobilediffusion_kernels::fold))
//! and knows none by name. A step goes into the one before it (activation, residual, statistics), which then writes
//! what the step wrote; or into all that read it (concat, upsampling, norms, casts), which then read what the step read.
//! What a caller may read stays a tensor of its own, and a product that a run computes only once stays apart from a sum that
//! it needs every time.

use crate::graph::{Graph, Node, Origin, TensorInfo};
use mobilediffusion_kernels::fold::{EpilogueOffer, EpilogueOp, OperandSource, PrologueOffer, PrologueOp};
use mobilediffusion_kernels::kernel::{MAX_BUFFERS, elements};
use mobilediffusion_kernels::{Access, Kernel};
use std::fmt;

/// Which folds are made: plain data, decided when a graph is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// Activations and residuals, into what writes their operand.
    pub epilogues: bool,
    /// Nearest upsampling, into what reads it.
    pub upsampling: bool,
    /// Concatenations, into what reads them.
    pub concats: bool,
    /// Normalisations with given statistics, into what reads them.
    pub norms: bool,
    /// Casts of f32, into what reads them.
    pub casts: bool,
    /// Moments of a tensor, into what writes it.
    pub moments: bool,
}

impl Fusion {
    /// Everything.
    pub const ALL: Self =
        Self { epilogues: true, upsampling: true, concats: true, norms: true, casts: true, moments: true };
    /// Nothing: every step as the builder wrote it down.
    pub const NONE: Self =
        Self { epilogues: false, upsampling: false, concats: false, norms: false, casts: false, moments: false };

    fn prologue(&self, op: &PrologueOp) -> bool {
        match op {
            PrologueOp::Concat { .. } => self.concats,
            PrologueOp::Upsample => self.upsampling,
            PrologueOp::CastF32 => self.casts,
            PrologueOp::Normalise(_) | PrologueOp::MergeMoments { .. } => self.norms,
        }
    }

    fn epilogue(&self, op: &EpilogueOp) -> bool {
        match op {
            EpilogueOp::Activate(_) | EpilogueOp::AddResidual => self.epilogues,
            EpilogueOp::Moments { .. } => self.moments,
        }
    }
}

impl Default for Fusion {
    fn default() -> Self {
        Self::ALL
    }
}

/// One fold that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// The step that took something in.
    pub step: usize,
    /// What it took in.
    pub what: &'static str,
    /// Path of the step that was that.
    pub path: String,
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of `{}` into step {}", self.what, self.path, self.step)
    }
}

/// Folds what `fusion` allows and returns what was folded. Steps and tensors are renumbered.
pub(crate) fn fuse(graph: &mut Graph, fusion: &Fusion) -> Vec<Fused> {
    let nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    let masks = masks(&graph.tensors, &nodes);
    let mut pass = Pass { graph, nodes, masks, fusion: *fusion, fused: Vec::new() };
    for slot in 0..pass.nodes.len() {
        pass.fold_back(slot);
    }
    // The last first: what normalises a concatenation goes into its reader before the concatenation does.
    for slot in (0..pass.nodes.len()).rev() {
        // Not made, no matter: the step stays.
        let _ = pass.fold_forward(slot);
    }
    // Only now it is known which moments are wanted.
    for slot in 0..pass.nodes.len() {
        pass.fold_back(slot);
    }
    pass.finish()
}

/// The inputs each tensor depends on.
fn masks(tensors: &[TensorInfo], nodes: &[Option<Node>]) -> Vec<u64> {
    let of_input = |t: &TensorInfo| if let Origin::Input(bit) = t.origin { 1 << bit } else { 0 };
    let mut masks: Vec<u64> = tensors.iter().map(of_input).collect();
    for (slot, node) in nodes.iter().enumerate() {
        let tensors_of = || node.iter().flat_map(|node| node.operands.iter().flatten().copied());
        let mask = tensors_of().fold(0, |mask, tensor| mask | masks[tensor]);
        tensors_of().filter(|t| tensors[*t].origin == Origin::Step(slot)).for_each(|t| masks[t] = mask);
    }
    masks
}

/// A graph on the way; a step that was folded away leaves its slot empty.
struct Pass<'a> {
    graph: &'a mut Graph,
    nodes: Vec<Option<Node>>,
    /// Inputs each tensor depends on.
    masks: Vec<u64>,
    fusion: Fusion,
    /// `step` is a slot until the end.
    fused: Vec<Fused>,
}

impl Pass<'_> {
    /// The steps that read a tensor, with the operand; twice if they read it twice.
    fn readers(&self, tensor: usize) -> Vec<(usize, &'static str)> {
        let mut found = Vec::new();
        for (slot, node) in self.nodes.iter().enumerate().filter_map(|(slot, node)| Some((slot, node.as_ref()?))) {
            for (operand, held) in node.kernel.operands().iter().zip(&node.operands) {
                if *held == Some(tensor) && operand.access == Access::Read {
                    found.push((slot, operand.name));
                }
            }
        }
        found
    }

    fn is_output(&self, tensor: usize) -> bool {
        self.graph.outputs.iter().any(|(_, output)| *output == tensor)
    }

    /// `node` with another kernel: operands that both have keep their tensors, but for those in `others`.
    fn with_kernel(&self, node: &Node, kernel: Box<dyn Kernel>, others: &[(&'static str, usize)]) -> Option<Node> {
        let declared = kernel.operands();
        if declared.iter().filter(|operand| operand.present).count() > MAX_BUFFERS {
            return None;
        }
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

    /// Folds the step in `slot` into the one that writes what it reads, if that can be.
    fn fold_back(&mut self, slot: usize) {
        let Some(node) = &self.nodes[slot] else { return };
        let path = node.path.clone();
        let offers = node.kernel.epilogue_offers();
        let made = offers.iter().find_map(|offer| Some((self.stored(slot, offer)?, offer.op)));
        let Some(((from, fused), op)) = made else { return };
        // Where the step's output takes the place of the producer's, the producer also waits for what the step reads.
        let (empty, at) = if op.extra_output().is_some() { (slot, from) } else { (from, slot) };
        self.nodes[empty] = None;
        self.nodes[at] = Some(fused);
        self.fused.iter_mut().filter(|f| f.step == empty).for_each(|f| f.step = at);
        self.fused.push(Fused { step: at, what: op.name(), path });
    }

    /// The slot of the producer, and the producer with the step folded in.
    fn stored(&self, slot: usize, offer: &EpilogueOffer) -> Option<(usize, Node)> {
        let node = self.nodes[slot].as_ref()?;
        let (main, written) = (held(node, offer.main)?, output(node)?);
        let Origin::Step(from) = self.graph.tensors[main].origin else { return None };
        let producer = self.nodes[from].as_ref()?;
        if self.masks[main] != self.masks[written] || !self.fusion.epilogue(&offer.op) {
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

    /// Folds the step in `slot` into all that read what it writes, if all of them can; none if not.
    fn fold_forward(&mut self, slot: usize) -> Option<()> {
        let node = self.nodes[slot].as_ref()?;
        let PrologueOffer { op, main, operands, remainder } =
            node.kernel.prologue_offer().filter(|o| self.fusion.prologue(&o.op))?;
        let (path, written) = (node.path.clone(), output(node)?);
        let main = main.and_then(|main| held(node, main));
        let remainder = match remainder {
            None => None,
            Some(kernel) => Some(self.remainder(slot, kernel)?),
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
        let readers = self.readers(written);
        let twice = readers.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if self.is_output(written) || readers.is_empty() || twice {
            return None;
        }
        let mut consumers = Vec::with_capacity(readers.len());
        for (consumer, operand) in readers {
            let old = self.nodes[consumer].as_ref()?;
            let others = others.iter().copied().chain(main.map(|main| (operand, main))).collect::<Vec<_>>();
            consumers.push((consumer, self.with_kernel(old, old.kernel.with_prologue(operand, &op)?, &others)?));
        }
        for (consumer, fused) in consumers {
            self.nodes[consumer] = Some(fused);
            self.fused.push(Fused { step: consumer, what: op.name(), path: path.clone() });
        }
        self.nodes[slot] = remainder;
        Some(())
    }

    /// What is left of the step in `slot`, writing a new tensor. If the fold is not made after all, nobody reads that,
    /// and it goes with the others that nobody writes.
    fn remainder(&mut self, slot: usize, kernel: Box<dyn Kernel>) -> Option<Node> {
        let node = self.nodes[slot].as_ref()?;
        let written = kernel.operands().into_iter().find(|operand| operand.access == Access::Write)?;
        let (name, mask) = (node.path.clone(), self.masks[output(node)?]);
        let info = TensorInfo { name, shape: written.shape, dtype: written.dtype, origin: Origin::Step(slot) };
        self.graph.tensors.push(info);
        self.masks.push(mask);
        let tensor = self.graph.tensors.len() - 1;
        self.with_kernel(self.nodes[slot].as_ref()?, kernel, &[(written.name, tensor)])
    }

    /// Closes the gaps: numbers steps and tensors anew and drops the tensors that no step writes any more.
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
        let mut kept: Vec<bool> = self.graph.tensors.iter().map(|t| !matches!(t.origin, Origin::Step(_))).collect();
        for (step, node) in self.graph.nodes.iter().enumerate() {
            for (operand, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                if let (Access::Write, Some(tensor)) = (operand.access, *tensor) {
                    kept[tensor] = true;
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
        self.fused.iter_mut().for_each(|fused| fused.step = step_of[fused.step]);
        self.fused.sort_by_key(|fused| fused.step);
        self.fused
    }
}

/// The tensor of a node's operand.
fn held(node: &Node, name: &str) -> Option<usize> {
    let declared = node.kernel.operands();
    let at = declared.iter().position(|operand| operand.name == name)?;
    node.operands[at]
}

/// The one tensor a node writes; none if it writes several.
fn output(node: &Node) -> Option<usize> {
    held(node, output_name(node)?)
}

fn output_name(node: &Node) -> Option<&'static str> {
    let declared = node.kernel.operands();
    let mut written = declared.iter().filter(|operand| operand.access == Access::Write && operand.present);
    let name = written.next()?.name;
    written.next().is_none().then_some(name)
}

//! A graph as plain data: steps, lifetimes and what each step depends on. Printable, and all that a run needs.

use crate::fuse::{Fused, Fusion, fuse};
use crate::gpu_plan::GpuPlan;
use crate::graph::{Graph, Node, Origin, TensorInfo};
use crate::plan::{Lifetime, Packing, Sharing, lower_bound, pack};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Access, Cost, Operand, Stage, Storage, Variant, WeightType};
use std::fmt;

/// A recorded graph.
///
/// A step's *mask* has a bit for every input its result depends on. A run executes only the steps that depend on an
/// input written since the last run: keys and values of a text are computed once per prompt, the time embedding once
/// per timestep. What depends on an input of every run counts as depending on all of them. What that asks of lifetimes
/// stands at `steps_alive`.
#[derive(Debug)]
pub struct Recording {
    /// Steps in order.
    pub nodes: Vec<Node>,
    /// Tensors by number.
    pub tensors: Vec<TensorInfo>,
    /// Names and tensors a caller may read.
    pub outputs: Vec<(String, usize)>,
    /// Inputs that each step depends on.
    pub masks: Vec<u64>,
    /// What was folded into steps, by step.
    pub fused: Vec<Fused>,
    /// First and last step of each tensor that is planned; none for weights and constants. Bytes depend on how the device
    /// stores elements.
    steps_alive: Vec<Option<(usize, usize)>>,
}

impl Recording {
    /// Records a graph with everything folded that can be.
    pub fn new(graph: Graph) -> Self {
        Self::with_fusion(graph, &Fusion::ALL)
    }

    /// Records a graph with those steps folded that `fusion` allows.
    pub fn with_fusion(mut graph: Graph, fusion: &Fusion) -> Self {
        let fused = fuse(&mut graph, fusion);
        let Graph { tensors, nodes, outputs, every_run, .. } = graph;
        let mut tensor_masks = vec![0_u64; tensors.len()];
        for (mask, tensor) in tensor_masks.iter_mut().zip(&tensors) {
            if let Origin::Input(bit) = tensor.origin {
                *mask = 1 << bit;
            }
        }
        let all = tensor_masks.iter().fold(0, |all, mask| all | mask);
        let mut masks = Vec::with_capacity(nodes.len());
        for (step, node) in nodes.iter().enumerate() {
            let mask: u64 = node.operands.iter().flatten().fold(0, |mask, &tensor| mask | tensor_masks[tensor]);
            let mask = if mask & every_run == 0 { mask } else { all };
            masks.push(mask);
            for &tensor in node.operands.iter().flatten() {
                if tensors[tensor].origin == Origin::Step(step) {
                    tensor_masks[tensor] = mask;
                }
            }
        }
        let steps_alive = steps_alive(&nodes, &tensors, &outputs, &masks);
        Self { nodes, tensors, outputs, masks, fused, steps_alive }
    }

    /// Tensors that are planned, with their lifetimes when every element takes what `bytes_of` says.
    pub fn lifetimes(&self, bytes_of: impl Fn(&TensorInfo) -> usize) -> Vec<(usize, Lifetime)> {
        let planned = self.steps_alive.iter().enumerate();
        let lifetime = |(tensor, alive): (usize, &Option<(usize, usize)>)| {
            alive.map(|(first, last)| (tensor, Lifetime { first, last, bytes: bytes_of(&self.tensors[tensor]) }))
        };
        planned.filter_map(lifetime).collect()
    }

    /// Offset of every tensor in one arena (none for weights and constants), and bytes of the arena.
    pub fn packing(&self, bytes_of: impl Fn(&TensorInfo) -> usize, sharing: Sharing) -> (Vec<Option<usize>>, usize) {
        let (tensors, lifetimes): (Vec<usize>, Vec<Lifetime>) = self.lifetimes(bytes_of).into_iter().unzip();
        let packing = match sharing {
            Sharing::Planned => pack(&lifetimes),
            Sharing::Private => lifetimes.iter().fold(Packing::default(), |mut packing, lifetime| {
                packing.offsets.push(packing.total);
                packing.total += lifetime.bytes;
                packing
            }),
        };
        (self.by_tensor(&tensors, &packing.offsets), packing.total)
    }

    pub(crate) fn by_tensor<P: Copy>(&self, tensors: &[usize], places: &[P]) -> Vec<Option<P>> {
        let mut all = vec![None; self.tensors.len()];
        tensors.iter().zip(places).for_each(|(&tensor, &place)| all[tensor] = Some(place));
        all
    }

    /// What was folded into a step: what would be steps of their own otherwise.
    pub fn folded(&self, step: usize) -> Vec<&'static str> {
        self.fused.iter().filter(|fused| fused.step == step).map(|fused| fused.what).collect()
    }

    /// The variant of every step's kernel that such a device runs.
    pub fn variants(&self, machine: &Machine) -> Vec<Variant> {
        self.nodes.iter().map(|node| choose(node.kernel.as_ref(), machine)).collect()
    }

    /// What a GPU runs by these variants, in order: each stage with its step.
    pub fn stages(&self, variants: &[Variant]) -> Vec<(usize, Stage)> {
        let of = |(step, (node, variant)): (usize, (&Node, &Variant))| {
            node.kernel.stages(variant).into_iter().map(move |stage| (step, stage))
        };
        self.nodes.iter().zip(variants).enumerate().flat_map(of).collect()
    }

    /// Bytes that stages leave for the next of the same step, where that takes most of them.
    pub fn shared_bytes(&self, stages: &[(usize, Stage)], storage: Storage) -> usize {
        let shared = stages.iter().filter_map(|(step, stage)| stage.shared(self.nodes[*step].operands.len()));
        shared.map(|operand| storage.tensor_bytes(operand.dtype, &operand.shape)).max().unwrap_or(0)
    }

    /// Multiply-accumulates and operations of a run of all steps.
    pub fn cost(&self) -> Cost {
        self.nodes
            .iter()
            .map(|node| node.kernel.cost())
            .fold(Cost::default(), |sum, cost| Cost { macs: sum.macs + cost.macs, flops: sum.flops + cost.flops })
    }

    /// The plan as numbers, for a device that stores elements as `storage` and whose buffers have no limit.
    pub fn summary(&self, storage: Storage) -> PlanSummary {
        let bytes_of = |t: &TensorInfo| storage.tensor_bytes(t.dtype, &t.shape);
        let planned: Vec<Lifetime> = self.lifetimes(bytes_of).into_iter().map(|(_, lifetime)| lifetime).collect();
        let GpuPlan { arenas, .. } = self.arenas(storage, Sharing::Planned, usize::MAX / 8).unwrap_or_default();
        PlanSummary {
            steps: self.nodes.len(),
            tensors: planned.len(),
            buffers: arenas.len(),
            arena_bytes: pack(&planned).total,
            activation_bytes: arenas.iter().sum(),
            lower_bound_bytes: lower_bound(&planned),
            lower_bound_in_place_bytes: self.lower_bound_in_place(bytes_of),
            weight_bytes: self.weight_bytes(storage),
        }
    }
}

impl Recording {
    /// Bytes of the weights as the kernels want them packed on a GPU, each counted once.
    pub fn weight_bytes(&self, storage: Storage) -> usize {
        self.weights(|o| storage.tensor_bytes(o.dtype, &o.layout.packed_shape(&o.shape)))
    }

    /// Bytes of the weights as the CPU forms want them packed, matrices of them stored like this, each counted once.
    pub fn host_weight_bytes(&self, weights: WeightType) -> usize {
        self.weights(|o| 4 * elements(&o.host_layout(weights).packed_shape(&o.shape)))
    }

    /// The sum over the weights of something of the operand that first reads each.
    fn weights(&self, of: impl Fn(&Operand) -> usize) -> usize {
        let mut counted = vec![false; self.tensors.len()];
        let mut sum = 0;
        for node in &self.nodes {
            for (operand, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                let Some(tensor) = *tensor else { continue };
                if matches!(self.tensors[tensor].origin, Origin::Weight(_)) && !counted[tensor] {
                    counted[tensor] = true;
                    sum += of(operand);
                }
            }
        }
        sum
    }
}

/// First and last step at which each tensor's bytes have to be there; none for weights and constants.
///
/// A tensor that only steps of its own mask read is alive from the step that writes it to the last that reads it. One
/// that is read by other steps or by the caller is *kept*: it lives to the end, and at every step that can run without
/// it being written again, which is every step that depends on an input it does not depend on.
fn steps_alive(
    nodes: &[Node],
    tensors: &[TensorInfo],
    outputs: &[(String, usize)],
    masks: &[u64],
) -> Vec<Option<(usize, usize)>> {
    let end = nodes.len().saturating_sub(1);
    let mut alive: Vec<Option<(usize, usize)>> = vec![None; tensors.len()];
    let mut kept = vec![false; tensors.len()];
    outputs.iter().for_each(|(_, tensor)| kept[*tensor] = true);
    for (tensor, info) in tensors.iter().enumerate() {
        match info.origin {
            Origin::Input(_) => alive[tensor] = Some((0, end)),
            Origin::Step(step) => alive[tensor] = Some((step, step)),
            Origin::Weight(_) | Origin::Constant(_) => {}
        }
    }
    for (step, node) in nodes.iter().enumerate() {
        for &tensor in node.operands.iter().flatten() {
            if let (Origin::Step(writer), Some((_, last))) = (&tensors[tensor].origin, &mut alive[tensor]) {
                *last = step.max(*last);
                kept[tensor] |= masks[*writer] != masks[step];
            }
        }
    }
    for (tensor, info) in tensors.iter().enumerate().filter(|(tensor, _)| kept[*tensor]) {
        if let (Origin::Step(writer), Some(alive)) = (&info.origin, &mut alive[tensor]) {
            let without = masks.iter().position(|mask| mask & !masks[*writer] != 0);
            *alive = (without.map_or(alive.0, |step| step.min(alive.0)), end);
        }
    }
    alive
}

/// What a plan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// Dispatches of a run of all steps.
    pub steps: usize,
    /// Tensors that are placed.
    pub tensors: usize,
    /// Buffers they are placed in on a GPU.
    pub buffers: usize,
    /// Bytes of these buffers.
    pub activation_bytes: usize,
    /// Bytes of one arena with offsets, which is how the CPU device places the tensors.
    pub arena_bytes: usize,
    /// Most bytes alive at any step, all that it reads and writes beside each other.
    pub lower_bound_bytes: usize,
    /// The same where outputs take the place of residuals, which a GPU's plan may do: no plan takes less.
    pub lower_bound_in_place_bytes: usize,
    /// Bytes of the weights.
    pub weight_bytes: usize,
}

impl fmt::Display for PlanSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{} steps, {} tensors in {} buffers: {:.2} MiB of activations ({:.2} alive at once, ratio {:.3}; \
             at least {:.2} in place), {:.2} MiB of weights",
            self.steps,
            self.tensors,
            self.buffers,
            mib(self.activation_bytes),
            mib(self.lower_bound_bytes),
            self.activation_bytes as f64 / self.lower_bound_bytes.max(1) as f64,
            mib(self.lower_bound_in_place_bytes),
            mib(self.weight_bytes),
        )
    }
}

impl Recording {
    /// One line per step: number, kernel and, given those of a GPU, variant; path, the mask of inputs, operands with
    /// their shapes, and what is folded in.
    pub fn listing(&self, variants: Option<&[Variant]>) -> String {
        let mut text = String::new();
        for (step, node) in self.nodes.iter().enumerate() {
            let variant = variants.map_or(String::new(), |all| format!("{:10} ", all[step].name));
            let (kernel, mask) = (node.kernel.name(), self.masks[step]);
            text += &format!("{step:4} {kernel:20} {variant}{:64} inputs {mask:#06b}", node.path);
            for (operand, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                let arrow = if operand.access == Access::Write { "-> " } else { "" };
                text += &match tensor {
                    Some(tensor) => format!("  {arrow}{}: {:?}", operand.name, self.tensors[*tensor].shape),
                    None => format!("  {}: none", operand.name),
                };
            }
            let folded = self.folded(step);
            text += if folded.is_empty() { "" } else { "  + " };
            text += &folded.join(" + ");
            text += "\n";
        }
        text
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listing(None))
    }
}

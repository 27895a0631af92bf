//! Recordings: a graph as plain, printable data with steps, lifetimes and dependencies on inputs.

use crate::error::GraphError;
use crate::fuse::{Fused, Fusion, LAYER, fuse};
use crate::gpu_plan::GpuPlan;
use crate::graph::{Graph, Origin, Part, TensorInfo};
use crate::masks::{Masks, owner};
use crate::node::Node;
use crate::plan::{Lifetime, NO_LIMIT, lower_bound, pack};
use mobilediffusion_kernels::variant::{Machine, choose};
use mobilediffusion_kernels::{Access, Stage, Storage, Variant};
use std::fmt;

/// Recorded graph: everything a [`Session`](crate::Session) needs to plan memory and to run.
///
/// The *mask* of a step has one bit for every input that its result depends on. A run executes only the steps that
/// depend on an input written since the last run: keys and values of a text are computed once per prompt, the time
/// embedding once per timestep. A step that depends on an [`input_of_every_run`](Graph::input_of_every_run) has the
/// bits of all inputs. A result that a later run still reads has to stay in memory between runs; lifetimes account for
/// that.
#[derive(Debug)]
pub struct Recording {
    // Shaders run without bounds checks, and a session trusts what the graph has checked: nobody else may change it.
    pub(crate) nodes: Vec<Node>,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) outputs: Vec<(String, usize)>,
    pub(crate) masks: Vec<u64>,
    fused: Vec<Fused>,
    /// First and last step of each planned tensor; `None` for weights, constants and parts. Sizes are not stored, because they
    /// depend on how the device stores elements.
    steps_alive: Vec<Option<(usize, usize)>>,
    /// Whether each tensor is kept for other runs than the one that writes it.
    pub(crate) kept: Vec<bool>,
}

impl Recording {
    /// Records a graph with all possible fusions.
    pub fn new(graph: Graph) -> Self {
        Self::with_fusion(graph, Fusion::All)
    }

    /// Records a graph, with or without fusion.
    pub fn with_fusion(mut graph: Graph, fusion: Fusion) -> Self {
        let fused = match fusion {
            Fusion::All => fuse(&mut graph),
            Fusion::None => Vec::new(),
        };
        let Graph { tensors, nodes, outputs, every_run, .. } = graph;
        let masks = Masks::of(&tensors, &nodes, every_run).steps;
        let kept = kept(&nodes, &tensors, &outputs, &masks);
        let steps_alive = steps_alive(&nodes, &tensors, &kept, &masks);
        Self { nodes, tensors, outputs, masks, fused, steps_alive, kept }
    }

    /// Gives every tensor memory of its own, by a lifetime of the whole run. Tests compare planned memory with this.
    #[must_use]
    pub fn unshared(mut self) -> Self {
        let end = self.nodes.len().saturating_sub(1);
        self.steps_alive.iter_mut().flatten().for_each(|alive| *alive = (0, end));
        self
    }

    /// Returns the steps in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the tensors. Operands refer to them by index.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the tensor number and the bit of every input, and the tensor itself.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = (usize, u32, &TensorInfo)> {
        let tensors = self.tensors.iter().enumerate();
        tensors.filter_map(|(i, t)| if let Origin::Input(bit) = t.origin { Some((i, bit, t)) } else { None })
    }

    /// Returns the tensor number and the bit of an input.
    ///
    /// # Errors
    /// If there is no input of this name.
    pub(crate) fn input(&self, name: &str) -> Result<(usize, u32), GraphError> {
        let found = self.inputs().find(|(_, _, info)| info.name == name).map(|(tensor, bit, _)| (tensor, bit));
        found.ok_or_else(|| GraphError::unknown("input", name, self.inputs().map(|(_, _, info)| &info.name)))
    }

    /// Returns name and tensor number of every output.
    pub fn outputs(&self) -> &[(String, usize)] {
        &self.outputs
    }

    /// Returns the mask of the inputs that each step depends on. Bit `i` stands for the input with
    /// [`Origin::Input`]`(i)`.
    pub fn masks(&self) -> &[u64] {
        &self.masks
    }

    /// Returns the fusions that were made, ordered by the step that took something in.
    pub fn fused(&self) -> &[Fused] {
        &self.fused
    }

    /// Returns numbers and lifetimes of all planned tensors (inputs, and results of steps as they are written), ordered by
    /// number. `bytes_of` gives the size of a tensor on the device.
    pub fn lifetimes(&self, bytes_of: impl Fn(&TensorInfo) -> usize) -> (Vec<usize>, Vec<Lifetime>) {
        let planned = self.steps_alive.iter().enumerate();
        let lifetime = |(tensor, alive): (usize, &Option<(usize, usize)>)| {
            alive.map(|(first, last)| (tensor, Lifetime { first, last, bytes: bytes_of(&self.tensors[tensor]) }))
        };
        planned.filter_map(lifetime).unzip()
    }

    /// Places all planned tensors in one arena, as the CPU device does. Returns the offset of every tensor in bytes
    /// (`None` for weights and constants) and the size of the arena.
    pub fn packing(&self, bytes_of: impl Fn(&TensorInfo) -> usize) -> (Vec<Option<usize>>, usize) {
        let (tensors, lifetimes) = self.lifetimes(bytes_of);
        let packing = pack(&lifetimes);
        let shifted = |offset, tensor: &TensorInfo, row| offset + 4 * tensor.elements_before(row);
        (self.by_tensor(&tensors, &packing.offsets, shifted), packing.total)
    }

    /// Spreads the places of the planned `tensors` over all tensors. Parts lie within the places of their tensors, where
    /// `shifted` finds the place of a row; weights and constants get `None`.
    pub(crate) fn by_tensor<P: Copy>(
        &self,
        tensors: &[usize],
        places: &[P],
        shifted: impl Fn(P, &TensorInfo, usize) -> P,
    ) -> Vec<Option<P>> {
        let mut all = vec![None; self.tensors.len()];
        tensors.iter().zip(places).for_each(|(&tensor, &place)| all[tensor] = Some(place));
        for (tensor, info) in self.tensors.iter().enumerate() {
            if let Origin::Part(Part { of, row }) = info.origin {
                all[tensor] = all[of].map(|place| shifted(place, info, row));
            }
        }
        all
    }

    /// Returns the tensor that is planned for `tensor`: itself, or the one that it is a part of.
    pub(crate) fn owner(&self, tensor: usize) -> usize {
        owner(&self.tensors, tensor)
    }

    /// Returns the names of the operations that were fused into a step, such as `activation` or `residual`.
    pub fn folded(&self, step: usize) -> Vec<&'static str> {
        self.fused.iter().filter(|fused| fused.step == step).map(|fused| fused.what).collect()
    }

    /// Returns the kernel variant that `machine` runs for every step.
    pub fn variants(&self, machine: &Machine) -> Vec<Variant> {
        self.nodes.iter().map(|node| choose(node.kernel.as_ref(), machine)).collect()
    }

    /// Returns the stages of each step on a GPU, with the given variants.
    pub(crate) fn stages(&self, variants: &[Variant]) -> Vec<Vec<Stage>> {
        self.nodes.iter().zip(variants).map(|(node, variant)| node.kernel.stages(variant)).collect()
    }

    /// Returns the multiply-accumulates of a run of all steps.
    pub fn macs(&self) -> u64 {
        self.nodes.iter().fold(0, |all, node| all.saturating_add(node.kernel.cost().macs))
    }

    /// Plans memory for a device that stores tensors as `storage` and has no limit on buffer sizes, and returns the
    /// totals.
    ///
    /// # Errors
    /// If no placement was found: the tensors are larger than any memory.
    pub fn summary(&self, storage: Storage) -> Result<PlanSummary, GraphError> {
        let bytes_of = |tensor: &TensorInfo| tensor.bytes(storage);
        let (_, planned) = self.lifetimes(bytes_of);
        let GpuPlan { arenas, .. } = self.arenas(storage, NO_LIMIT)?;
        Ok(PlanSummary {
            steps: self.nodes.len(),
            tensors: planned.len(),
            buffers: arenas.len(),
            arena_bytes: pack(&planned).total,
            activation_bytes: arenas.iter().sum(),
            lower_bound_bytes: lower_bound(&planned),
            lower_bound_in_place_bytes: self.lower_bound_in_place(bytes_of),
            weight_bytes: self.weight_bytes(storage),
        })
    }
}

/// Returns whether each tensor is *kept*: whether the caller reads it, or a step with another mask than its writer's, which
/// may run without the writer.
fn kept(nodes: &[Node], tensors: &[TensorInfo], outputs: &[(String, usize)], masks: &[u64]) -> Vec<bool> {
    let mut kept = vec![false; tensors.len()];
    outputs.iter().for_each(|(_, tensor)| kept[*tensor] = true);
    for (node, mask) in nodes.iter().zip(masks) {
        for tensor in node.operands.iter().flatten().map(|&tensor| owner(tensors, tensor)) {
            if let Origin::Step(writer) = tensors[tensor].origin {
                kept[tensor] |= masks[writer] != *mask;
            }
        }
    }
    kept
}

/// Returns the first and last step at which each tensor's bytes have to be preserved; `None` for weights, constants, and
/// parts of other tensors.
///
/// A tensor that is not kept is alive from the step that writes it to the last step that reads it. One that is kept is
/// alive to the end, and also during every step that can run without the tensor being written again, that is, every step
/// that depends on an input which the tensor does not depend on.
fn steps_alive(nodes: &[Node], tensors: &[TensorInfo], kept: &[bool], masks: &[u64]) -> Vec<Option<(usize, usize)>> {
    let end = nodes.len().saturating_sub(1);
    let mut alive: Vec<Option<(usize, usize)>> = vec![None; tensors.len()];
    for (tensor, info) in tensors.iter().enumerate() {
        match info.origin {
            Origin::Input(_) => alive[tensor] = Some((0, end)),
            Origin::Step(step) => alive[tensor] = Some((step, step)),
            Origin::Weight(_) | Origin::Constant(_) | Origin::Part(_) => {}
        }
    }
    for (step, node) in nodes.iter().enumerate() {
        for tensor in node.operands.iter().flatten().map(|&tensor| owner(tensors, tensor)) {
            if let (Origin::Step(_), Some((_, last))) = (&tensors[tensor].origin, &mut alive[tensor]) {
                *last = step.max(*last);
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

/// Memory needs of a plan. All sizes refer to the storage type that [`Recording::summary`] was called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// Number of steps in a run of all steps.
    pub steps: usize,
    /// Number of tensors that the planner places.
    pub tensors: usize,
    /// Number of buffers that hold them on a GPU.
    pub buffers: usize,
    /// Total size of these buffers in bytes.
    pub activation_bytes: usize,
    /// Size in bytes of a single arena that holds all tensors at offsets, which is how the CPU device places them.
    pub arena_bytes: usize,
    /// Most bytes alive at any step, where no step writes over what it reads.
    pub lower_bound_bytes: usize,
    /// Most bytes alive at any step, where outputs may overwrite operands as on a GPU. No plan needs less.
    pub lower_bound_in_place_bytes: usize,
    /// Bytes of the weights on a GPU.
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
    /// Formats the recording with one line per step: number, kernel, variant (if `variants` are given), path, mask of
    /// inputs, operands with their shapes, and fused operations.
    pub fn listing(&self, variants: Option<&[Variant]>) -> String {
        let mut text = String::new();
        for (step, node) in self.nodes.iter().enumerate() {
            let variant = variants.map_or(String::new(), |all| format!("{:10} ", all[step].name));
            let (kernel, mask) = (node.kernel.name(), self.masks[step]);
            text += &format!("{step:4} {kernel:20} {variant}{:64} inputs {mask:#06b}", node.path);
            for (operand, tensor) in node.bound() {
                let arrow = if operand.access == Access::Write { "-> " } else { "" };
                text += &match tensor {
                    Some(tensor) => format!("  {arrow}{}: {:?}", operand.name, self.tensors[tensor].shape),
                    None => format!("  {}: none", operand.name),
                };
            }
            let (layers, folded): (Vec<&Fused>, Vec<&Fused>) =
                self.fused.iter().filter(|fused| fused.step == step).partition(|fused| fused.what == LAYER);
            let mut folded: Vec<String> = folded.iter().map(|fused| fused.what.to_owned()).collect();
            if let Some(last) = layers.last() {
                folded.push(format!("{} {LAYER}s, the last is {}", layers.len(), last.path));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::DType;

    #[test]
    fn a_summary_is_told_in_mebibytes() {
        let summary = PlanSummary {
            steps: 7,
            tensors: 5,
            buffers: 2,
            activation_bytes: 3 << 20,
            arena_bytes: 0,
            lower_bound_bytes: 2 << 20,
            lower_bound_in_place_bytes: 1 << 20,
            weight_bytes: 9 << 19,
        };
        let text = "7 steps, 5 tensors in 2 buffers: 3.00 MiB of activations (2.00 alive at once, ratio 1.500; \
                    at least 1.00 in place), 4.50 MiB of weights";
        assert_eq!(summary.to_string(), text);
    }

    #[test]
    fn a_plan_that_no_memory_holds_has_no_summary() {
        let mut graph = Graph::new();
        graph.input("x", [1 << 59, 4], DType::F32);
        let error = Recording::new(graph).summary(Storage::F32).expect_err("it is too large");
        assert!(matches!(error, GraphError::NoPlacement { limit: NO_LIMIT, .. }), "{error}");
    }
}

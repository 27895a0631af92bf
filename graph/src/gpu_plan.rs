//! Memory plan of a recording on a GPU: collects which tensors must not share a buffer and which may alias, and calls
//! the planner.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::plan::{Alias, Arenas, Lifetime, Place, Satellite, Tensors, arenas, lower_bound, lower_bound_in_place};
use crate::record::Recording;
use mobilediffusion_kernels::Storage;
use mobilediffusion_kernels::kernel::{BINDING_ALIGNMENT, elements};

/// Memory plan of a recording on a GPU; see [`Recording::arenas`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuPlan {
    /// Place of every tensor; `None` for weights and constants.
    pub places: Vec<Option<Place>>,
    /// Size of every arena in bytes.
    pub arenas: Vec<usize>,
    /// For every step, whether its first output is written over the operand of
    /// [`Kernel::in_place`](mobilediffusion_kernels::Kernel::in_place).
    pub in_place: Vec<bool>,
}

impl Recording {
    /// Places all planned tensors in a few arenas of at most `limit` bytes each, for a GPU that stores tensors as
    /// `storage`.
    ///
    /// An output is written over an operand of its step, such as the residual, where that makes the plan smaller. Without
    /// a limit on sizes, `limit` is [`NO_LIMIT`](crate::plan::NO_LIMIT).
    ///
    /// # Errors
    /// If no placement in arenas of at most `limit` bytes was found.
    pub fn arenas(&self, storage: Storage, limit: usize) -> Result<GpuPlan, GraphError> {
        let bytes_of = |t: &TensorInfo| t.bytes(storage).next_multiple_of(BINDING_ALIGNMENT);
        let (tensors, lifetimes) = self.lifetimes(bytes_of);
        let shifted = |place: Place, tensor: &TensorInfo, row| {
            let offset = place.offset + tensor.bytes_before(row, storage);
            Place { offset, ..place }
        };
        let (steps, aliases): (Vec<usize>, Vec<Alias>) = self.aliases(&tensors, &lifetimes).into_iter().unzip();
        let mut conflicts = self.conflicts(&tensors);
        conflicts.retain(|pair| !aliases.contains(pair));
        let satellites = self.satellites((&tensors, &lifetimes), &conflicts, &aliases);
        conflicts.retain(|(a, b)| !satellites.iter().any(|(_, satellite)| satellite == a || satellite == b));
        let all = Tensors { lifetimes: &lifetimes, conflicts: &conflicts, aliases: &aliases, satellites: &satellites };
        let best = arenas(&all, limit);
        let Arenas { places, bytes, aliased } =
            best.ok_or_else(|| GraphError::NoPlacement { bytes: lower_bound(&lifetimes), limit })?;
        let mut in_place = vec![false; self.nodes.len()];
        steps.into_iter().zip(aliased).for_each(|(step, aliased)| in_place[step] = aliased);
        Ok(GpuPlan { places: self.by_tensor(&tensors, &places, shifted), arenas: bytes, in_place })
    }

    /// Returns the most bytes alive at any step on a GPU, where outputs may overwrite operands. No plan needs less.
    pub(crate) fn lower_bound_in_place(&self, bytes_of: impl Fn(&TensorInfo) -> usize) -> usize {
        let (tensors, lifetimes) = self.lifetimes(bytes_of);
        let aliases: Vec<Alias> = self.aliases(&tensors, &lifetimes).into_iter().map(|(_, alias)| alias).collect();
        lower_bound_in_place(&lifetimes, &aliases)
    }

    /// Returns the pairs of planned tensors, as indices into `tensors`, that must not lie in one buffer of a GPU: the
    /// tensors that a step reads and those it writes, and outputs and inputs that may be copied to each other between
    /// runs.
    fn conflicts(&self, tensors: &[usize]) -> Vec<(usize, usize)> {
        let number = |tensor: &usize| tensors.binary_search(tensor).ok();
        let mut pairs = Vec::new();
        for (step, node) in self.nodes.iter().enumerate() {
            let (written, read): (Vec<usize>, Vec<usize>) =
                node.operands.iter().flatten().partition(|&&tensor| self.tensors[tensor].origin == Origin::Step(step));
            for written in written.iter().filter_map(number) {
                let read = read.iter().filter_map(|tensor| number(&self.owner(*tensor)));
                pairs.extend(read.map(|read| (read, written)));
            }
        }
        for (_, output) in &self.outputs {
            let to = &self.tensors[*output];
            let can_be_fed = |&input: &usize| {
                let from = &self.tensors[input];
                let same = elements(&from.shape) == elements(&to.shape) && from.dtype == to.dtype;
                matches!(from.origin, Origin::Input(_)) && same && input != *output
            };
            let inputs = (0..self.tensors.len()).filter(can_be_fed);
            pairs.extend(inputs.filter_map(|input| Some((number(&input)?, number(output)?))));
        }
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Returns the further outputs of steps that can follow the first to its arena: they are much smaller, and what
    /// conflicts with them conflicts with the first as well, or is what the first may overwrite.
    fn satellites(
        &self,
        (tensors, lifetimes): (&[usize], &[Lifetime]),
        conflicts: &[(usize, usize)],
        aliases: &[Alias],
    ) -> Vec<Satellite> {
        let number = |tensor: usize| tensors.binary_search(&tensor).ok();
        let conflicts_of = |tensor: usize| {
            let other = move |&(a, b): &(usize, usize)| (a == tensor).then_some(b).or((b == tensor).then_some(a));
            conflicts.iter().filter_map(other)
        };
        let mut found = Vec::new();
        for (step, node) in self.nodes.iter().enumerate() {
            let written = node.operands.iter().flatten().filter(|t| self.tensors[**t].origin == Origin::Step(step));
            let mut written = written.filter_map(|&tensor| number(tensor));
            let Some(first) = written.next() else { continue };
            let follows = |second: &usize| {
                let is_small = 4 * lifetimes[*second].bytes <= lifetimes[first].bytes;
                let is_alias = aliases.iter().any(|(a, b)| a == second || b == second);
                let fits = |other| conflicts_of(first).any(|of| of == other) || aliases.contains(&(other, first));
                is_small && !is_alias && conflicts_of(*second).all(fits)
            };
            found.extend(written.filter(follows).map(|second| (first, second)));
        }
        found
    }

    /// Returns the steps whose output may be written over an operand, with the pair of tensors: no other operand of the
    /// step and no later step reads what is overwritten.
    fn aliases(&self, tensors: &[usize], lifetimes: &[Lifetime]) -> Vec<(usize, Alias)> {
        let alias = |(step, node): (usize, &crate::Node)| {
            let name = node.kernel.in_place()?;
            let (_, input) = node.present().find(|(operand, _)| operand.name == name)?;
            let output = node.written().next()?;
            if self.kept[input] || !matches!(self.tensors[input].origin, Origin::Step(_)) {
                return None;
            }
            let read_once = node.operands.iter().flatten().filter(|tensor| **tensor == input).count() == 1;
            let [input, output] = [input, output].map(|tensor| tensors.binary_search(&tensor).ok());
            let (input, output) = (input?, output?);
            let (before, after) = (&lifetimes[input], &lifetimes[output]);
            let fits = before.last == step && after.first == step && before.bytes == after.bytes;
            (fits && read_once).then_some((step, (input, output)))
        };
        self.nodes.iter().enumerate().filter_map(alias).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NO_LIMIT;
    use crate::{Graph, Linear};
    use mobilediffusion_kernels::{Activation, DType};

    #[test]
    fn what_may_be_copied_to_an_input_lies_apart_from_it() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 4, 4, 8], DType::Elem);
        graph.input("wide", [1, 4, 4, 12], DType::Elem);
        graph.input("numbers", [1, 4, 4, 8], DType::U32);
        let made = graph.activate(&x, Activation::Relu, 1.0).expect("it fits");
        let y = graph.activate(&made, Activation::Relu, 1.0).expect("it fits");
        graph.output("x", &x);
        graph.output("y", &y);
        // Tensors in order: the three inputs, what is made of `x`, and `y`.
        assert_eq!(Recording::new(graph).conflicts(&[0, 1, 2, 3, 4]), [(0, 3), (0, 4), (3, 4)]);
    }

    /// Records a product with a residual that it may overwrite, and the norm of its result before a small product.
    fn normed(rows: usize) -> Recording {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, rows, 64], DType::Elem);
        let own = graph.linear(&x, "own", Linear { cols: 64, ..Linear::default() }).expect("it fits");
        let layer = Linear { cols: 64, residual: Some(&own), ..Linear::default() };
        let sum = graph.linear(&x, "sum", layer).expect("it fits");
        let norm = graph.layer_norm(&sum, "norm", 1e-5).expect("it fits");
        let y = graph.linear(&norm, "y", Linear { cols: 4, ..Linear::default() }).expect("it fits");
        graph.output("y", &y);
        Recording::new(graph)
    }

    #[test]
    fn moments_follow_their_tensor_only_if_they_are_much_smaller() {
        for (rows, expected) in [(64, 1), (2, 0)] {
            let recording = normed(rows);
            let bytes_of = |t: &TensorInfo| t.bytes(Storage::F32).next_multiple_of(BINDING_ALIGNMENT);
            let (tensors, lifetimes) = recording.lifetimes(bytes_of);
            let aliases: Vec<Alias> = recording.aliases(&tensors, &lifetimes).into_iter().map(|(_, a)| a).collect();
            let mut conflicts = recording.conflicts(&tensors);
            conflicts.retain(|pair| !aliases.contains(pair));
            let found = recording.satellites((&tensors, &lifetimes), &conflicts, &aliases);
            assert_eq!((found.len(), aliases.len()), (expected, 1), "{rows} rows: {found:?} in {recording}");
            assert!(found.iter().all(|(sum, _)| *sum == aliases[0].1), "{found:?}, {aliases:?} in {recording}");
        }
    }

    #[test]
    fn unshared_tensors_have_memory_of_their_own() {
        let recording = normed(64).unshared();
        let bytes_of = |t: &TensorInfo| t.bytes(Storage::F32).next_multiple_of(BINDING_ALIGNMENT);
        let all: usize = recording.lifetimes(bytes_of).1.iter().map(|lifetime| lifetime.bytes).sum();
        let plan = recording.arenas(Storage::F32, NO_LIMIT).expect("there is no limit");
        assert_eq!((recording.packing(bytes_of).1, plan.arenas.iter().sum::<usize>()), (all, all), "{recording}");
        assert!(!plan.in_place.contains(&true), "nothing is overwritten: {:?}", plan.in_place);
    }

    #[test]
    fn a_residual_that_is_overwritten_counts_once() {
        let recording = normed(64);
        let summary = recording.summary(Storage::F32).expect("it is small");
        let map = 4 * 64 * 64;
        // The input lives on. In place, the sum lies where the residual lay.
        assert_eq!((summary.lower_bound_bytes / map, summary.lower_bound_in_place_bytes / map), (3, 2), "{summary}");
    }
}

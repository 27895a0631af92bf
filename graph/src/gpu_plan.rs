//! A recording's memory on a GPU: which tensors have to lie apart, which may take each other's place, and the choice.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::plan::{ARENA_ALIGNMENT, Arenas, Join, Lifetime, Sharing, arenas, lower_bound, lower_bound_in_place};
use crate::record::Recording;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Access, Storage, names};

/// A recording's memory on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuPlan {
    /// Arena and first byte of every tensor; none for weights and constants.
    pub places: Vec<Option<(usize, usize)>>,
    /// Bytes of every arena.
    pub arenas: Vec<usize>,
    /// Whether a step's first output takes the place of its residual.
    pub in_place: Vec<bool>,
}

impl Recording {
    /// Where every tensor lies on a GPU. Outputs take the place of residuals where that makes the plan smaller: it
    /// also keeps a tensor in one arena for long, which is in the way of others.
    ///
    /// # Errors
    /// If no arenas of at most `limit` bytes were found.
    pub fn arenas(&self, storage: Storage, sharing: Sharing, limit: usize) -> Result<GpuPlan, GraphError> {
        let bytes_of = |t: &TensorInfo| storage.tensor_bytes(t.dtype, &t.shape).next_multiple_of(ARENA_ALIGNMENT);
        let (tensors, lifetimes): (Vec<usize>, Vec<Lifetime>) = self.lifetimes(bytes_of).into_iter().unzip();
        let mut in_place = vec![false; self.nodes.len()];
        if sharing == Sharing::Private {
            let places: Vec<_> = (0..lifetimes.len()).map(|arena| (arena, 0)).collect();
            let arenas = lifetimes.iter().map(|lifetime| lifetime.bytes).collect();
            return Ok(GpuPlan { places: self.by_tensor(&tensors, &places), arenas, in_place });
        }
        let bound = lower_bound(&lifetimes);
        let (steps, joins): (Vec<usize>, Vec<Join>) = self.joins(&tensors, &lifetimes).into_iter().unzip();
        let mut apart = self.apart(&tensors);
        apart.retain(|pair| !joins.contains(pair));
        let mut best = arenas(&lifetimes, &apart, &joins, limit);
        let near = |plan: &Arenas| plan.total() <= bound + bound / 30;
        if !best.as_ref().is_some_and(near) {
            // The search seldom comes across a plan in which all of them are joined.
            let all = all_joined(&lifetimes, &apart, &joins, limit);
            let better = |plan: &Arenas| best.as_ref().is_none_or(|best| plan.total() < best.total());
            best = all.filter(better).or(best);
        }
        let Arenas { places, bytes, joined } = best.ok_or(GraphError::Buffers { bytes: bound, limit })?;
        steps.into_iter().zip(joined).for_each(|(step, joined)| in_place[step] = joined);
        Ok(GpuPlan { places: self.by_tensor(&tensors, &places), arenas: bytes, in_place })
    }

    /// Most bytes alive at any step on a GPU, where an output may take the place of its residual: no plan takes less.
    pub(crate) fn lower_bound_in_place(&self, bytes_of: impl Fn(&TensorInfo) -> usize) -> usize {
        let (tensors, lifetimes): (Vec<usize>, Vec<Lifetime>) = self.lifetimes(bytes_of).into_iter().unzip();
        let joins: Vec<Join> = self.joins(&tensors, &lifetimes).into_iter().map(|(_, join)| join).collect();
        lower_bound_in_place(&lifetimes, &joins)
    }

    /// Pairs of planned tensors, by their place among `tensors`, that must not lie in one buffer of a GPU: what a step
    /// reads and what it writes, and what may be copied to each other between runs.
    fn apart(&self, tensors: &[usize]) -> Vec<(usize, usize)> {
        let number = |tensor: &usize| tensors.binary_search(tensor).ok();
        let mut pairs = Vec::new();
        for (step, node) in self.nodes.iter().enumerate() {
            let (written, read): (Vec<usize>, Vec<usize>) =
                node.operands.iter().flatten().partition(|&&tensor| self.tensors[tensor].origin == Origin::Step(step));
            for written in written.iter().filter_map(number) {
                pairs.extend(read.iter().filter_map(number).map(|read| (read, written)));
            }
        }
        for (_, output) in &self.outputs {
            let to = &self.tensors[*output];
            let like = |&input: &usize| {
                let from = &self.tensors[input];
                let same = elements(&from.shape) == elements(&to.shape) && from.dtype == to.dtype;
                matches!(from.origin, Origin::Input(_)) && same && input != *output
            };
            let inputs = (0..self.tensors.len()).filter(like);
            pairs.extend(inputs.filter_map(|input| Some((number(&input)?, number(output)?))));
        }
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Steps whose output may take the place of their residual, with both: nobody else reads the residual then or later.
    fn joins(&self, tensors: &[usize], lifetimes: &[Lifetime]) -> Vec<(usize, Join)> {
        let join = |(step, node): (usize, &crate::Node)| {
            let operands = node.kernel.operands();
            let of = |wanted: &dyn Fn(&mobilediffusion_kernels::Operand) -> bool| {
                operands.iter().zip(&node.operands).find(|(operand, _)| wanted(operand)).and_then(|(_, tensor)| *tensor)
            };
            let residual =
                of(&|operand| operand.name == names::RESIDUAL).filter(|_| node.kernel.residual_in_place())?;
            let output = of(&|operand| operand.access == Access::Write)?;
            let Origin::Step(writer) = self.tensors[residual].origin else { return None };
            let is_kept = self.masks[writer] != self.masks[step] || self.outputs.iter().any(|(_, t)| *t == residual);
            let read_once = node.operands.iter().flatten().filter(|tensor| **tensor == residual).count() == 1;
            let [residual, output] = [residual, output].map(|tensor| tensors.binary_search(&tensor).ok());
            let (residual, output) = (residual?, output?);
            let (before, after) = (&lifetimes[residual], &lifetimes[output]);
            let fits = before.last == step && after.first == step && before.bytes == after.bytes;
            (fits && read_once && !is_kept).then_some((step, (residual, output)))
        };
        self.nodes.iter().enumerate().filter_map(join).collect()
    }
}

/// The plan in which every join is made: each chain of them is one tensor of a longer life.
fn all_joined(lifetimes: &[Lifetime], apart: &[(usize, usize)], joins: &[Join], limit: usize) -> Option<Arenas> {
    // Joins come in the order of their steps, so that the first of one has found its own place before.
    let mut host: Vec<usize> = (0..lifetimes.len()).collect();
    let mut lives = lifetimes.to_vec();
    for &(first, second) in joins {
        host[second] = host[first];
        lives[host[first]].last = lives[second].last;
    }
    let kept: Vec<usize> = (0..lifetimes.len()).filter(|&tensor| host[tensor] == tensor).collect();
    let group: Vec<usize> = host.iter().map(|tensor| kept.partition_point(|k| k < tensor)).collect();
    let merged: Vec<Lifetime> = kept.iter().map(|&tensor| lives[tensor]).collect();
    let pairs: Vec<_> = apart.iter().map(|&(a, b)| (group[a], group[b])).filter(|(a, b)| a != b).collect();
    let Arenas { places, bytes, .. } = arenas(&merged, &pairs, &[], limit)?;
    let places = group.iter().map(|&group| places[group]).collect();
    Some(Arenas { places, bytes, joined: vec![true; joins.len()] })
}

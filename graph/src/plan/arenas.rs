//! Placement in a few arenas, for GPUs: a graph colouring that assigns arenas, then a packing of each arena.
//!
//! WebGPU tracks usage per buffer, so a step must not write to an arena that it reads. Tensors that a step reads and
//! tensors that it writes *conflict*: their arenas, the colours, have to differ. An [`Alias`] is a pair of tensors of
//! which the second may overwrite the first; if both are in the same arena, they are placed as one tensor.
//!
//! In the end [`pack`](super::pack) assigns offsets within each arena.
//!
//! A [`Satellite`], such as the moments of a tensor, follows another tensor to its arena. The search does not see it.

use super::colouring::{Effort, Problem};
use super::pack::{Packing, pack_with};
use super::{Lifetime, Place, lower_bound};

/// Placement of tensors in arenas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arenas {
    /// Place of each tensor.
    pub(crate) places: Vec<Place>,
    /// Size of each arena in bytes.
    pub(crate) bytes: Vec<usize>,
    /// For each alias, whether the second tensor overwrites the first.
    pub(crate) aliased: Vec<bool>,
}

/// Two tensors of equal size of which the second may overwrite the first: the step that writes the second is the last
/// that reads the first.
pub(crate) type Alias = (usize, usize);

/// A small tensor, second, that lies in the arena of a tensor that the same step writes, first: whatever must not share
/// an arena with the second must not share one with the first either.
pub(crate) type Satellite = (usize, usize);

impl Arenas {
    /// Returns the bytes of all arenas together.
    pub(crate) fn total(&self) -> usize {
        self.bytes.iter().sum()
    }
}

/// Largest number of rounds. Most networks need one or two, Stable Diffusion's UNet about ten.
const ROUNDS: u64 = 24;
/// Number of elementary operations of one packing.
const WORK: usize = 3_000_000;

/// Tensors to place in arenas. Pairs are of indices.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a> {
    pub(crate) lifetimes: &'a [Lifetime],
    /// Pairs of tensors that must never share an arena. No pair may be an alias too.
    pub(crate) conflicts: &'a [(usize, usize)],
    /// In the order of the steps that write the second tensor of each.
    pub(crate) aliases: &'a [Alias],
    /// Their second tensors are in no conflict and no alias.
    pub(crate) satellites: &'a [Satellite],
}

/// Places tensors in arenas of at most `limit` bytes each. Tensors that are alive at the same step never share a byte,
/// except for those of an alias.
///
/// Returns `None` if no placement was found. The result is deterministic.
pub(crate) fn arenas(tensors: &Tensors, limit: usize) -> Option<Arenas> {
    if tensors.lifetimes.is_empty() {
        return Some(Arenas::default());
    }
    let bound = lower_bound(tensors.lifetimes);
    let mut best: Option<Arenas> = None;
    for round in 0..ROUNDS {
        // The search rarely finds the plan in which every alias is used, so that one is tried separately. It is not
        // always the best: an aliased tensor stays in one arena for longer, which constrains others.
        for place in [some_aliased, all_aliased] {
            let found = place(tensors, Effort { limit, enough: bound / 100 * 103, round });
            best = [best, found].into_iter().flatten().min_by_key(Arenas::total);
            if best.as_ref().is_some_and(|plan| plan.total() <= bound + bound / 30) {
                return best;
            }
        }
    }
    best
}

/// Returns the plan in which every alias is used: each chain of aliased tensors is placed as one tensor with a longer
/// lifetime.
fn all_aliased(tensors: &Tensors, effort: Effort) -> Option<Arenas> {
    let Tensors { lifetimes, conflicts, aliases, satellites } = *tensors;
    let (root, lives) = merged(lifetimes, aliases.iter());
    let kept: Vec<usize> = (0..lifetimes.len()).filter(|&tensor| root[tensor] == tensor).collect();
    let group: Vec<usize> = root.iter().map(|tensor| kept.partition_point(|k| k < tensor)).collect();
    let lives: Vec<Lifetime> = kept.iter().map(|&tensor| lives[tensor]).collect();
    let conflicts: Vec<_> = conflicts.iter().map(|&(a, b)| (group[a], group[b])).filter(|(a, b)| a != b).collect();
    let satellites: Vec<Satellite> = satellites.iter().map(|&(a, b)| (group[a], group[b])).collect();
    let tensors = Tensors { lifetimes: &lives, conflicts: &conflicts, aliases: &[], satellites: &satellites };
    let Arenas { places, bytes, .. } = some_aliased(&tensors, effort)?;
    let places = group.iter().map(|&group| places[group]).collect();
    Some(Arenas { places, bytes, aliased: vec![true; aliases.len()] })
}

/// Returns the best plan that the search finds; it chooses which aliases are used.
fn some_aliased(tensors: &Tensors, effort: Effort) -> Option<Arenas> {
    let Tensors { lifetimes, conflicts, aliases, satellites } = *tensors;
    let is_searched = |tensor: &usize| !satellites.iter().any(|(_, satellite)| satellite == tensor);
    let searched: Vec<usize> = (0..lifetimes.len()).filter(is_searched).collect();
    let number = |tensor: usize| searched.partition_point(|&other| other < tensor);
    let numbered = |pairs: &[(usize, usize)]| pairs.iter().map(|&(a, b)| (number(a), number(b))).collect::<Vec<_>>();
    let lives: Vec<Lifetime> = searched.iter().map(|&tensor| lifetimes[tensor]).collect();
    let (conflicts, own_aliases) = (numbered(conflicts), numbered(aliases));
    let problem = Problem::new(&lives, &conflicts, &own_aliases, effort);
    let mut best: Option<Arenas> = None;
    for colouring in problem.colourings() {
        // A packing never takes less than the sum of the peaks, so the remaining colourings cannot be better.
        if best.as_ref().is_some_and(|best| best.total() <= colouring.total()) {
            break;
        }
        let mut arena = vec![0; lifetimes.len()];
        searched.iter().zip(&colouring.arena).for_each(|(&tensor, &of)| arena[tensor] = of);
        satellites.iter().for_each(|&(tensor, satellite)| arena[satellite] = arena[tensor]);
        let packed = pack_each(&arena, lifetimes, aliases);
        let better = best.as_ref().is_none_or(|best| packed.total() < best.total());
        if better && packed.bytes.iter().all(|&bytes| bytes <= effort.limit) {
            best = Some(packed);
        }
    }
    best
}

/// Assigns offsets within each arena. Aliased tensors in one arena are placed as one. `arena` holds the arena of each
/// tensor.
fn pack_each(arena: &[usize], lifetimes: &[Lifetime], aliases: &[Alias]) -> Arenas {
    let aliased: Vec<bool> = aliases.iter().map(|&(first, second)| arena[first] == arena[second]).collect();
    let (root, lives) =
        merged(lifetimes, aliases.iter().zip(&aliased).filter(|(_, used)| **used).map(|(pair, _)| pair));
    let mut made = Arenas { places: vec![Place::default(); lifetimes.len()], bytes: Vec::new(), aliased };
    for number in 0..=arena.iter().copied().max().unwrap_or(0) {
        let is_root = |&tensor: &usize| arena[tensor] == number && root[tensor] == tensor;
        let roots: Vec<usize> = (0..lifetimes.len()).filter(is_root).collect();
        if roots.is_empty() {
            continue;
        }
        let alive: Vec<Lifetime> = roots.iter().map(|&tensor| lives[tensor]).collect();
        let Packing { offsets, total } = pack_with(&alive, WORK);
        let arena = made.bytes.len();
        roots.iter().zip(offsets).for_each(|(&tensor, offset)| made.places[tensor] = Place { arena, offset });
        made.bytes.push(total);
    }
    made.places = root.iter().map(|&root| made.places[root]).collect();
    made
}

/// Merges chains of aliased tensors: returns the first tensor of each one's chain, its root, and the lifetimes, in which
/// that of a root is that of its chain. `aliases` are in the order of their steps.
fn merged<'a>(lifetimes: &[Lifetime], aliases: impl Iterator<Item = &'a Alias>) -> (Vec<usize>, Vec<Lifetime>) {
    let (mut root, mut lives): (Vec<usize>, _) = ((0..lifetimes.len()).collect(), lifetimes.to_vec());
    for &(first, second) in aliases {
        // The root of the first tensor is final, because of the order.
        root[second] = root[first];
        lives[root[first]].last = lives[second].last;
    }
    (root, lives)
}

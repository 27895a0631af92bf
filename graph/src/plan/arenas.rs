//! Placement in a few arenas, for GPUs: a graph colouring that assigns arenas, then a packing of each arena.
//!
//! WebGPU tracks usage per buffer, so a step must not write to an arena that it reads. Tensors that a step reads and
//! tensors that it writes *conflict*: their arenas, the colours, have to differ. An [`Alias`] is a pair of tensors of
//! which the second may overwrite the first; if both are in the same arena, they are placed as one tensor.
//!
//! The search minimises the sum of the peaks of all arenas, where the peak of an arena is the most bytes alive in it at
//! any step. A move takes a tensor to another arena and everything it conflicts with the other way (a Kempe chain), so
//! every state of the search is a valid colouring. A move is accepted unless the sum grows by more than a threshold
//! that falls to zero (threshold accepting). In the end [`pack`](super::pack) assigns offsets within each arena.
//!
//! A [`Satellite`], such as the moments of a tensor, follows another tensor to its arena. The search does not see it.

use super::pack::{Packing, Random, columns, pack_with};
use super::{Lifetime, lower_bound};
use std::ops::Range;

/// Placement of tensors in arenas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arenas {
    /// Arena and byte offset of each tensor.
    pub(crate) places: Vec<(usize, usize)>,
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

/// Numbers of arenas to try. A step that adds two tensors of different arenas needs at least three.
const COUNTS: Range<usize> = 2..6;
/// Number of increasingly shuffled orders to try if none of the regular orders leads to a colouring.
const RETRIES: usize = 200;
/// Largest number of moves of one search. Most networks need a few thousand, Stable Diffusion's UNet needs most of them.
const MOVES: usize = 150_000;
/// Initial thresholds of the search, as the divisor `d` of an accepted growth of `1 / d`. Some plans need the one, some
/// the other.
const THRESHOLDS: [usize; 2] = [50, 25];
/// Number of elementary operations of one packing.
const WORK: usize = 3_000_000;

/// Places tensors in arenas of at most `limit` bytes each.
///
/// Tensors that are alive at the same step never share a byte, except for those of an alias, and the tensors of a pair
/// in `conflicts` never share an arena. No pair may be in both `conflicts` and `aliases`, and no satellite in either.
/// Returns `None` if no placement was found. The result is deterministic.
pub(crate) fn arenas(
    lifetimes: &[Lifetime],
    conflicts: &[(usize, usize)],
    aliases: &[Alias],
    satellites: &[Satellite],
    limit: usize,
) -> Option<Arenas> {
    if lifetimes.is_empty() {
        return Some(Arenas::default());
    }
    let is_searched = |tensor: &usize| !satellites.iter().any(|(_, satellite)| satellite == tensor);
    let searched: Vec<usize> = (0..lifetimes.len()).filter(is_searched).collect();
    let number = |tensor: usize| searched.partition_point(|&other| other < tensor);
    let numbered = |pairs: &[(usize, usize)]| pairs.iter().map(|&(a, b)| (number(a), number(b))).collect::<Vec<_>>();
    let lives: Vec<Lifetime> = searched.iter().map(|&tensor| lifetimes[tensor]).collect();
    let (conflicts, own_aliases) = (numbered(conflicts), numbered(aliases));
    let problem = Problem::new(&lives, &conflicts, &own_aliases, limit);
    let mut found: Vec<Colouring> = Vec::new();
    let mut least = usize::MAX;
    for count in COUNTS {
        let colourings = problem.search(count);
        let cost = colourings.iter().map(|colouring| problem.cost(colouring)).min().unwrap_or(usize::MAX);
        found.extend(colourings);
        // More arenas do not help, if the last one did not.
        if cost <= problem.enough || (least < usize::MAX && cost >= least) {
            break;
        }
        least = least.min(cost);
    }
    found.sort_by_key(Colouring::total);
    let mut best: Option<Arenas> = None;
    for colouring in found {
        // A packing never takes less than the sum of the peaks, so the remaining colourings cannot be better.
        if best.as_ref().is_some_and(|best| best.total() <= colouring.total()) {
            break;
        }
        let mut arena = vec![0; lifetimes.len()];
        searched.iter().zip(&colouring.arena).for_each(|(&tensor, &of)| arena[tensor] = of);
        satellites.iter().for_each(|&(tensor, satellite)| arena[satellite] = arena[tensor]);
        let packed = pack_each(&arena, colouring.peaks.len(), lifetimes, aliases);
        let better = best.as_ref().is_none_or(|best| packed.total() < best.total());
        if better && packed.bytes.iter().all(|&bytes| bytes <= limit) {
            best = Some(packed);
        }
    }
    best
}

/// Placement problem, prepared for many moves.
struct Problem<'a> {
    sizes: Vec<usize>,
    /// Columns of each tensor; see [`columns`].
    columns: Vec<Range<usize>>,
    /// Number of columns.
    width: usize,
    /// Tensors that conflict with each tensor.
    conflicts: Vec<Vec<usize>>,
    aliases: &'a [Alias],
    /// Indices of the aliases that each tensor belongs to.
    aliases_of: Vec<Vec<usize>>,
    /// Tensors by descending size.
    order: Vec<usize>,
    /// Further initial orders: by descending size, ties by first step; by first step.
    orders: [Vec<usize>; 2],
    limit: usize,
    /// Total at which the search ends: 3 % above the most bytes alive at any step.
    enough: usize,
}

/// Assignment of an arena to every tensor, with the resulting load of each arena.
#[derive(Clone)]
struct Colouring {
    /// Arena of each tensor.
    arena: Vec<usize>,
    /// Bytes alive in each arena, per column.
    loads: Vec<Vec<usize>>,
    /// Largest load of each arena.
    peaks: Vec<usize>,
}

impl<'a> Problem<'a> {
    fn new(lifetimes: &[Lifetime], pairs: &[(usize, usize)], aliases: &'a [Alias], limit: usize) -> Self {
        let mut conflicts = vec![Vec::new(); lifetimes.len()];
        // No duplicates: a chain that held a tensor twice would move it to the other arena and back.
        for (a, b) in pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]) {
            if !conflicts[a].contains(&b) {
                conflicts[a].push(b);
            }
        }
        let mut aliases_of = vec![Vec::new(); lifetimes.len()];
        for (number, &(a, b)) in aliases.iter().enumerate() {
            aliases_of[a].push(number);
            aliases_of[b].push(number);
        }
        let (columns, width) = columns(lifetimes);
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), i));
        let mut orders = [order.clone(), order.clone()];
        orders[0].sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
        orders[1].sort_by_key(|&i| (lifetimes[i].first, i));
        let sizes = lifetimes.iter().map(|l| l.bytes).collect();
        let enough = lower_bound(lifetimes) / 100 * 103;
        Self { sizes, columns, width, conflicts, aliases, aliases_of, order, orders, limit, enough }
    }

    /// Returns the best colourings found with `count` arenas, one for each initial colouring and threshold. Where one
    /// start gets stuck, another often succeeds. If two arrive at the same cost, there is hardly a lower one.
    fn search(&self, count: usize) -> Vec<Colouring> {
        let begun = std::iter::once(&self.order).chain(&self.orders).filter_map(|order| self.greedy(count, order));
        let mut begun: Vec<Colouring> = begun.collect();
        let (mut random, len) = (Random::new(count as u64), self.order.len());
        for retry in 0..RETRIES {
            if !begun.is_empty() {
                break;
            }
            let mut order = self.order.clone();
            (0..=retry).for_each(|_| order.swap(random.below(len), random.below(len)));
            begun.extend(self.greedy(count, &order));
        }
        let mut found: Vec<Colouring> = Vec::new();
        let starts = THRESHOLDS.into_iter().flat_map(|threshold| begun.iter().map(move |begun| (threshold, begun)));
        for (threshold, begun) in starts {
            let improved = self.improve(begun.clone(), count, threshold);
            let cost = self.cost(&improved);
            let done = cost <= self.enough || found.iter().any(|other| self.cost(other) == cost);
            found.push(improved);
            if done {
                break;
            }
        }
        found
    }

    /// Improves a colouring by random moves and returns the best one seen. `threshold` is the divisor of the growth
    /// that is accepted at first.
    fn improve(&self, mut now: Colouring, count: usize, threshold: usize) -> Colouring {
        let mut best = now.clone();
        let mut random = Random::new(count as u64);
        let start = now.total();
        for step in 0..MOVES {
            // Large tensors, at the front of the order, are moved more often because they matter more.
            let index = random.uniform().powi(2) * self.order.len() as f64;
            let tensor = self.order[(index as usize).min(self.order.len() - 1)];
            let (from, to) = (now.arena[tensor], random.below(count));
            if from == to {
                continue;
            }
            let chain = self.chain(&now, vec![tensor], (from, to));
            let before = self.cost(&now);
            self.flip(&mut now, &chain, (from, to));
            let allowed = start / threshold * (MOVES - step) / MOVES;
            if self.cost(&now) > before + allowed {
                self.flip(&mut now, &chain, (from, to));
            } else if self.cost(&now) < self.cost(&best) {
                best.clone_from(&now);
                if self.cost(&best) <= self.enough {
                    break;
                }
            }
        }
        best
    }

    /// Assigns tensors in the given order, each to the arena whose peak grows least; ties go to the arena with the
    /// largest load during the tensor's lifetime. Returns `None` if a tensor conflicts with every arena.
    fn greedy(&self, count: usize, order: &[usize]) -> Option<Colouring> {
        let none = usize::MAX;
        let mut made = Colouring {
            arena: vec![none; self.sizes.len()],
            loads: vec![vec![0; self.width]; count],
            peaks: vec![0; count],
        };
        for &tensor in order {
            let load = |arena: usize| self.load(&made, tensor, arena);
            let growth = |arena: usize| (load(arena) + self.sizes[tensor]).saturating_sub(made.peaks[arena]);
            let free = (0..count).filter(|&arena| self.is_free(&made, tensor, arena));
            let found = free.min_by_key(|&arena| (growth(arena), std::cmp::Reverse(load(arena))));
            let arena = found.or_else(|| self.make_room(&mut made, tensor))?;
            made.arena[tensor] = arena;
            made.loads[arena][self.columns[tensor].clone()].iter_mut().for_each(|load| *load += self.sizes[tensor]);
            for &alias in &self.aliases_of[tensor] {
                self.share(&mut made, alias, true);
            }
            made.peaks[arena] = made.peaks[arena].max(self.load(&made, tensor, arena));
        }
        Some(made)
    }

    /// Returns whether no tensor in the arena conflicts with this one.
    fn is_free(&self, colouring: &Colouring, tensor: usize, arena: usize) -> bool {
        self.conflicts[tensor].iter().all(|&other| colouring.arena[other] != arena)
    }

    /// Moves all tensors that conflict with this one out of some arena, and returns that arena; `None` if no arena can
    /// be freed.
    fn make_room(&self, colouring: &mut Colouring, tensor: usize) -> Option<usize> {
        let count = colouring.loads.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            let in_the_way = self.conflicts[tensor].iter().copied().filter(|&other| colouring.arena[other] == from);
            let chain = self.chain(colouring, in_the_way.collect(), (from, to));
            let moves_in = |other: &usize| colouring.arena[*other] == to && self.conflicts[tensor].contains(other);
            if !chain.iter().any(moves_in) {
                self.flip(colouring, &chain, (from, to));
                return Some(from);
            }
        }
        None
    }

    /// Returns the largest load of an arena during a tensor's lifetime.
    fn load(&self, colouring: &Colouring, tensor: usize, arena: usize) -> usize {
        colouring.loads[arena][self.columns[tensor].clone()].iter().copied().max().unwrap_or(0)
    }

    /// Returns the Kempe chain of the tensors in `chain`: these and all tensors of the two arenas that have to be
    /// exchanged with them.
    fn chain(&self, colouring: &Colouring, mut chain: Vec<usize>, (from, to): (usize, usize)) -> Vec<usize> {
        let mut next = 0;
        while next < chain.len() {
            for &other in &self.conflicts[chain[next]] {
                let there = colouring.arena[other];
                if (there == from || there == to) && !chain.contains(&other) {
                    chain.push(other);
                }
            }
            next += 1;
        }
        chain
    }

    /// If the tensors of an alias share an arena, counts them once at the step where both are alive (`once`), or twice
    /// again.
    fn share(&self, colouring: &mut Colouring, alias: usize, once: bool) {
        let (first, second) = self.aliases[alias];
        let arena = colouring.arena[first];
        if arena == colouring.arena[second] && arena < colouring.loads.len() {
            let load = &mut colouring.loads[arena][self.columns[second].start];
            *load = if once { *load - self.sizes[second] } else { *load + self.sizes[second] };
        }
    }

    /// Exchanges the arenas `from` and `to` for every tensor of a chain. A second call undoes the first.
    fn flip(&self, colouring: &mut Colouring, chain: &[usize], (from, to): (usize, usize)) {
        let mut aliases: Vec<usize> =
            chain.iter().flat_map(|&tensor| self.aliases_of[tensor].iter().copied()).collect();
        aliases.sort_unstable();
        aliases.dedup();
        aliases.iter().for_each(|&alias| self.share(colouring, alias, false));
        for &tensor in chain {
            let old = colouring.arena[tensor];
            let new = if old == from { to } else { from };
            let (columns, bytes) = (self.columns[tensor].clone(), self.sizes[tensor]);
            colouring.loads[old][columns.clone()].iter_mut().for_each(|load| *load -= bytes);
            colouring.loads[new][columns].iter_mut().for_each(|load| *load += bytes);
            colouring.arena[tensor] = new;
        }
        aliases.iter().for_each(|&alias| self.share(colouring, alias, true));
        for arena in [from, to] {
            colouring.peaks[arena] = colouring.loads[arena].iter().copied().max().unwrap_or(0);
        }
    }

    /// Returns the objective of the search: the sum of the peaks, plus a penalty for bytes beyond the limit.
    fn cost(&self, colouring: &Colouring) -> usize {
        let beyond: usize = colouring.peaks.iter().map(|&peak| peak.saturating_sub(self.limit)).sum();
        colouring.total() + 4 * beyond
    }
}

impl Colouring {
    /// Returns the sum of the peaks.
    fn total(&self) -> usize {
        self.peaks.iter().sum()
    }
}

/// Assigns offsets within each arena. Aliased tensors in one arena form a chain, which is placed as its first
/// tensor, the root, with a longer lifetime. `arena` holds the arena of each tensor, below `count`.
fn pack_each(arena: &[usize], count: usize, lifetimes: &[Lifetime], aliases: &[Alias]) -> Arenas {
    let aliased: Vec<bool> = aliases.iter().map(|&(first, second)| arena[first] == arena[second]).collect();
    // Aliases are in the order of their steps, so the root of the first tensor is final when the second refers to
    // it.
    let mut root: Vec<usize> = (0..lifetimes.len()).collect();
    let mut lives = lifetimes.to_vec();
    for (&(first, second), _) in aliases.iter().zip(&aliased).filter(|(_, aliased)| **aliased) {
        root[second] = root[first];
        lives[root[first]].last = lives[second].last;
    }
    let mut made = Arenas { places: vec![(0, 0); lifetimes.len()], bytes: Vec::new(), aliased };
    for number in 0..count {
        let is_root = |&tensor: &usize| arena[tensor] == number && root[tensor] == tensor;
        let roots: Vec<usize> = (0..lifetimes.len()).filter(is_root).collect();
        if roots.is_empty() {
            continue;
        }
        let alive: Vec<Lifetime> = roots.iter().map(|&tensor| lives[tensor]).collect();
        let Packing { offsets, total } = pack_with(&alive, WORK);
        roots.iter().zip(offsets).for_each(|(&tensor, at)| made.places[tensor] = (made.bytes.len(), at));
        made.bytes.push(total);
    }
    made.places = root.iter().map(|&root| made.places[root]).collect();
    made
}

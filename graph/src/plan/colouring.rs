//! Search for the arena of every tensor: a graph colouring whose colours are arenas.
//!
//! The search minimises the sum of the peaks of all arenas, where the peak of an arena is the most bytes alive in it at
//! any step. A move takes a tensor to another arena and everything it conflicts with the other way (a Kempe chain), so
//! every state of the search is a valid colouring. A move is accepted unless the sum grows by more than a threshold
//! that falls to zero (threshold accepting).

use super::Lifetime;
use super::arenas::Alias;
use super::pack::columns;
use mobilediffusion_kernels::random::Random;
use std::ops::Range;

/// Numbers of arenas to try. A step that adds two tensors of different arenas needs at least three.
const COUNTS: Range<usize> = 2..6;
/// Moves of one search. Where it has not succeeded by then, another beginning does more than further moves.
const MOVES: usize = 3_000;
/// Initial thresholds of the rounds, as the divisor `d` of an accepted growth of `1 / d`. Some plans need the one, some
/// the other.
const THRESHOLDS: [usize; 2] = [50, 25];

/// What a search aims for.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// Most bytes of one arena.
    pub(super) limit: usize,
    /// Bytes of all arenas at which the search ends.
    pub(super) enough: usize,
    /// Number of the attempt. Each begins with other colourings and makes other moves.
    pub(super) round: u64,
}

/// Placement problem, prepared for many moves.
pub(super) struct Problem<'a> {
    sizes: Vec<usize>,
    /// Columns of each tensor; see [`columns`].
    columns: Vec<Range<usize>>,
    /// Tensors that are alive in each column.
    alive: Vec<Vec<usize>>,
    /// Tensors that conflict with each tensor.
    conflicts: Vec<Vec<usize>>,
    aliases: &'a [Alias],
    /// Indices of the aliases that each tensor belongs to.
    aliases_of: Vec<Vec<usize>>,
    /// Tensors by descending size, and by first step.
    orders: [Vec<usize>; 2],
    effort: Effort,
}

/// Assignment of an arena to every tensor, with the resulting load of each arena.
#[derive(Clone)]
pub(super) struct Colouring {
    /// Arena of each tensor.
    pub(super) arena: Vec<usize>,
    /// Bytes alive in each arena, per column.
    loads: Vec<Vec<usize>>,
    /// Largest load of each arena, and a column that has it.
    peaks: Vec<(usize, usize)>,
}

impl<'a> Problem<'a> {
    /// Prepares the search. The tensors of a pair in `pairs` get different arenas.
    pub(super) fn new(lifetimes: &[Lifetime], pairs: &[(usize, usize)], aliases: &'a [Alias], effort: Effort) -> Self {
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
        let mut orders: [Vec<usize>; 2] = std::array::from_fn(|_| (0..lifetimes.len()).collect());
        orders[0].sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first));
        orders[1].sort_by_key(|&i| lifetimes[i].first);
        let alive_in =
            |column| (0..columns.len()).filter(|&tensor: &usize| columns[tensor].contains(&column)).collect();
        let alive = (0..width).map(alive_in).collect();
        let sizes = lifetimes.iter().map(|l| l.bytes).collect();
        Self { sizes, columns, alive, conflicts, aliases, aliases_of, orders, effort }
    }

    /// Returns colourings with as few arenas as are worth it, by ascending totals.
    pub(super) fn colourings(&self) -> Vec<Colouring> {
        let (mut found, mut least) = (Vec::new(), usize::MAX);
        for count in COUNTS {
            let colourings = self.search(count);
            let cost = colourings.iter().map(|colouring| self.cost(colouring)).min().unwrap_or(usize::MAX);
            found.extend(colourings);
            // More arenas do not help, if the last one did not.
            if cost <= self.effort.enough || (least < usize::MAX && cost >= least) {
                break;
            }
            least = least.min(cost);
        }
        found.sort_by_key(Colouring::total);
        found
    }

    /// Returns the best colourings found with `count` arenas, one for each initial order.
    fn search(&self, count: usize) -> Vec<Colouring> {
        let mut random = Random::new(self.effort.round * COUNTS.end as u64 + count as u64);
        let mut found = Vec::new();
        for begun in self.beginnings(count, &mut random) {
            found.push(self.improve(begun, &mut random));
            if found.last().is_some_and(|found| self.cost(found) <= self.effort.enough) {
                break;
            }
        }
        found
    }

    /// Returns initial colourings with `count` arenas, one for each order in which tensors are assigned. From the second
    /// round on, tensors change places with near ones.
    fn beginnings(&self, count: usize, random: &mut Random) -> Vec<Colouring> {
        let mut orders = self.orders.clone();
        for order in orders.iter_mut().filter(|_| self.effort.round > 0) {
            let last = order.len() - 1;
            for place in 0..=last {
                if random.uniform() < 0.2 {
                    order.swap(place, last.min(place + random.index(20)));
                }
            }
        }
        orders.iter().filter_map(|order| self.greedy(count, order)).collect()
    }

    /// Improves a colouring by random moves and returns the best one seen.
    fn improve(&self, mut now: Colouring, random: &mut Random) -> Colouring {
        let mut best = now.clone();
        let threshold = now.total() / THRESHOLDS[self.effort.round as usize % THRESHOLDS.len()];
        let mut chain = Chain::new(self.sizes.len());
        for step in 0..MOVES {
            let tensor = if step % 2 == 0 { self.any(random) } else { self.at_a_peak(&now, random) };
            let (from, to) = (now.arena[tensor], random.index(now.loads.len()));
            if from == to {
                continue;
            }
            chain.follow(self, &now, [tensor], (from, to));
            let before = self.cost(&now);
            self.flip(&mut now, &chain, (from, to));
            if self.cost(&now) > before + threshold * (MOVES - step) / MOVES {
                self.flip(&mut now, &chain, (from, to));
            } else if self.cost(&now) < self.cost(&best) {
                best.clone_from(&now);
                if self.cost(&best) <= self.effort.enough {
                    break;
                }
            }
        }
        best
    }

    /// Draws a tensor. Large ones, at the front of the order, are drawn more often because they matter more.
    fn any(&self, random: &mut Random) -> usize {
        let [order, _] = &self.orders;
        order[((random.uniform().powi(2) * order.len() as f64) as usize).min(order.len() - 1)]
    }

    /// Draws one of the tensors that are alive at the peak of an arena: unless one of those moves, the peak stays.
    fn at_a_peak(&self, now: &Colouring, random: &mut Random) -> usize {
        let arena = random.index(now.loads.len());
        let alive = &self.alive[now.peaks[arena].1];
        let here = || alive.iter().copied().filter(|&tensor| now.arena[tensor] == arena);
        here().nth(random.index(here().count().max(1))).unwrap_or_else(|| self.any(random))
    }

    /// Assigns tensors in the given order, each to the arena whose peak grows least; ties go to the arena with the
    /// largest load during the tensor's lifetime. Returns `None` if a tensor conflicts with every arena.
    fn greedy(&self, count: usize, order: &[usize]) -> Option<Colouring> {
        let none = usize::MAX;
        let mut made = Colouring {
            arena: vec![none; self.sizes.len()],
            loads: vec![vec![0; self.alive.len()]; count],
            peaks: vec![(0, 0); count],
        };
        for &tensor in order {
            let load = |arena: usize| self.load(&made, tensor, arena);
            let growth = |arena: usize| (load(arena) + self.sizes[tensor]).saturating_sub(made.peaks[arena].0);
            let free = (0..count).filter(|&arena| self.is_free(&made, tensor, arena));
            let found = free.min_by_key(|&arena| (growth(arena), std::cmp::Reverse(load(arena))));
            let arena = found.or_else(|| self.make_room(&mut made, tensor))?;
            made.arena[tensor] = arena;
            made.loads[arena][self.columns[tensor].clone()].iter_mut().for_each(|load| *load += self.sizes[tensor]);
            for &alias in &self.aliases_of[tensor] {
                self.share(&mut made, alias, true);
            }
            made.find_peak(arena, self.columns[tensor].clone());
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
        let (count, mut chain) = (colouring.loads.len(), Chain::new(self.sizes.len()));
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            let in_the_way = self.conflicts[tensor].iter().copied().filter(|&other| colouring.arena[other] == from);
            chain.follow(self, colouring, in_the_way, (from, to));
            let moves_in = |other: &usize| colouring.arena[*other] == to && self.conflicts[tensor].contains(other);
            if !chain.tensors.iter().any(moves_in) {
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

    /// Calls [`share`](Self::share) once for every alias that a tensor of the chain belongs to.
    fn share_all(&self, colouring: &mut Colouring, chain: &Chain, once: bool) {
        for &tensor in &chain.tensors {
            let is_counted = |alias: usize| tensor != self.aliases[alias].0 && chain.holds[self.aliases[alias].0];
            for &alias in self.aliases_of[tensor].iter().filter(|&&alias| !is_counted(alias)) {
                self.share(colouring, alias, once);
            }
        }
    }

    /// Exchanges the arenas `from` and `to` for every tensor of a chain. A second call undoes the first.
    fn flip(&self, colouring: &mut Colouring, chain: &Chain, (from, to): (usize, usize)) {
        self.share_all(colouring, chain, false);
        for &tensor in &chain.tensors {
            let old = colouring.arena[tensor];
            let new = if old == from { to } else { from };
            let (columns, bytes) = (self.columns[tensor].clone(), self.sizes[tensor]);
            colouring.loads[old][columns.clone()].iter_mut().for_each(|load| *load -= bytes);
            colouring.loads[new][columns].iter_mut().for_each(|load| *load += bytes);
            colouring.arena[tensor] = new;
        }
        self.share_all(colouring, chain, true);
        let begin = chain.tensors.iter().map(|&tensor| self.columns[tensor].start).min().unwrap_or(0);
        let end = chain.tensors.iter().map(|&tensor| self.columns[tensor].end).max().unwrap_or(0);
        [from, to].into_iter().for_each(|arena| colouring.find_peak(arena, begin..end));
    }

    /// Returns the objective of the search: the sum of the peaks, plus a penalty for bytes beyond the limit.
    fn cost(&self, colouring: &Colouring) -> usize {
        let beyond: usize = colouring.peaks.iter().map(|(peak, _)| peak.saturating_sub(self.effort.limit)).sum();
        colouring.total() + 4 * beyond
    }
}

impl Colouring {
    /// Returns the sum of the peaks.
    pub(super) fn total(&self) -> usize {
        self.peaks.iter().map(|(peak, _)| peak).sum()
    }

    /// Finds the largest load of an arena again, after the loads of `changed` columns have changed.
    fn find_peak(&mut self, arena: usize, changed: Range<usize>) {
        let loads = &self.loads[arena];
        let largest = |columns: Range<usize>| columns.map(|column| (loads[column], column)).max().unwrap_or((0, 0));
        let (before, at) = self.peaks[arena];
        let found = largest(changed.clone());
        self.peaks[arena] = match changed.contains(&at) {
            _ if found.0 >= before => found,
            true => largest(0..loads.len()),
            false => (before, at),
        };
    }
}

/// Kempe chain: tensors of two arenas that can only be exchanged together.
struct Chain {
    tensors: Vec<usize>,
    /// Whether the chain holds each tensor.
    holds: Vec<bool>,
}

impl Chain {
    /// Returns an empty chain of a problem of `count` tensors.
    fn new(count: usize) -> Self {
        Self { tensors: Vec::new(), holds: vec![false; count] }
    }

    /// Makes this the chain of `first`: these, and all tensors of the two arenas that have to be exchanged with them.
    fn follow(
        &mut self,
        problem: &Problem,
        colouring: &Colouring,
        first: impl IntoIterator<Item = usize>,
        (from, to): (usize, usize),
    ) {
        self.tensors.drain(..).for_each(|tensor| self.holds[tensor] = false);
        first.into_iter().for_each(|tensor| self.push(tensor));
        let mut next = 0;
        while let Some(&tensor) = self.tensors.get(next) {
            for &other in &problem.conflicts[tensor] {
                if [from, to].contains(&colouring.arena[other]) {
                    self.push(other);
                }
            }
            next += 1;
        }
    }

    /// Adds a tensor, unless the chain holds it.
    fn push(&mut self, tensor: usize) {
        if !std::mem::replace(&mut self.holds[tensor], true) {
            self.tensors.push(tensor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_and_peaks_are_those_of_the_arenas_after_every_move() {
        let life = |i: usize| Lifetime { first: i, last: i + 1 + i % 4, bytes: 8 + 8 * (i % 4) };
        let lifetimes: Vec<Lifetime> = (0..40).map(life).collect();
        let conflicts: Vec<(usize, usize)> = (2..40).map(|i| (i - 2, i)).collect();
        // A tensor that ends where the one of its size begins.
        let fits = |&(a, b): &(usize, usize)| life(a).last == life(b).first && life(a).bytes == life(b).bytes;
        let pairs = (0..40).flat_map(|a| (a + 1..40).map(move |b| (a, b)));
        let aliases: Vec<Alias> = pairs.filter(fits).filter(|pair| !conflicts.contains(pair)).collect();
        assert!(!aliases.is_empty(), "no tensor overwrites another");
        let effort = Effort { limit: crate::plan::NO_LIMIT, enough: 0, round: 0 };
        let problem = Problem::new(&lifetimes, &conflicts, &aliases, effort);
        let mut random = Random::new(1);
        let mut now = problem.beginnings(3, &mut random).swap_remove(0);
        let mut chain = Chain::new(lifetimes.len());
        for step in 0..500 {
            let (tensor, to) = (problem.any(&mut random), random.index(3));
            let from = now.arena[tensor];
            if from != to {
                chain.follow(&problem, &now, [tensor], (from, to));
                problem.flip(&mut now, &chain, (from, to));
            }
            for arena in 0..3 {
                let load = |column: usize| -> usize {
                    let here = |tensor: &&usize| now.arena[**tensor] == arena;
                    let alive: usize = problem.alive[column].iter().filter(here).map(|t| problem.sizes[*t]).sum();
                    let shared = |(a, b): &&Alias| {
                        now.arena[*a] == arena && now.arena[*b] == arena && problem.columns[*b].start == column
                    };
                    alive - aliases.iter().filter(shared).map(|(_, b)| problem.sizes[*b]).sum::<usize>()
                };
                let loads: Vec<usize> = (0..problem.alive.len()).map(load).collect();
                assert_eq!(now.loads[arena], loads, "loads of arena {arena} after move {step}");
                let (peak, column) = now.peaks[arena];
                assert_eq!((Some(&peak), loads[column]), (loads.iter().max(), peak), "peak after move {step}");
            }
        }
    }
}

//! Offsets in a few arenas, for GPUs: a colouring, then a packing of each colour.
//!
//! WebGPU tracks usage per buffer, so a step must not write into an arena that it reads. Tensors that a step reads and
//! writes are *apart*: colours have to differ. Among the colourings of that graph one is looked for in which the
//! tallest piles of all arenas add up to as little as possible. A move takes a tensor to another arena, and whatever
//! that collides with the other way (a Kempe chain), so that every state of the search is legal; it is accepted unless
//! the sum grows by more than a threshold that falls to nothing. Then [`pack`](super::pack) gives offsets.

use super::Lifetime;
use super::pack::{Packing, Random, columns, pack_with};
use std::ops::Range;

/// An arena and an offset for every tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arenas {
    /// Arena and first byte of each tensor.
    pub places: Vec<(usize, usize)>,
    /// Bytes of each arena.
    pub bytes: Vec<usize>,
}

impl Arenas {
    /// Bytes of all arenas.
    pub fn total(&self) -> usize {
        self.bytes.iter().sum()
    }
}

/// Numbers of arenas that are tried; three are the least for a step that adds one tensor to another.
const COUNTS: Range<usize> = 2..8;
/// Moves of one search.
const MOVES: usize = 4_000;
/// Growth that is accepted at first: one part in so many.
const WARMTH: usize = 50;
/// Elementary operations of one packing.
const WORK: usize = 3_000_000;

/// Places tensors in arenas of at most `limit` bytes so that no two that are alive together share a byte, and no two
/// of a pair in `apart` share an arena. None if that was not managed. The same problem always gets the same answer.
pub fn arenas(lifetimes: &[Lifetime], apart: &[(usize, usize)], limit: usize) -> Option<Arenas> {
    if lifetimes.is_empty() {
        return Some(Arenas::default());
    }
    let problem = Problem::new(lifetimes, apart, limit);
    let mut found: Vec<Colouring> = COUNTS.filter_map(|count| problem.search(count)).collect();
    found.sort_by_key(Colouring::total);
    let mut best: Option<Arenas> = None;
    for colouring in found {
        // No packing is below the sum of the peaks.
        if best.as_ref().is_some_and(|best| best.total() <= colouring.total()) {
            break;
        }
        let packed = colouring.pack(lifetimes);
        let better = best.as_ref().is_none_or(|best| packed.total() < best.total());
        if better && packed.bytes.iter().all(|&bytes| bytes <= limit) {
            best = Some(packed);
        }
    }
    best
}

/// The problem, prepared for many moves.
struct Problem {
    sizes: Vec<usize>,
    /// Columns of each tensor: see [`columns`].
    columns: Vec<Range<usize>>,
    width: usize,
    /// Tensors apart from each.
    apart: Vec<Vec<usize>>,
    /// Tensors, the largest first.
    order: Vec<usize>,
    limit: usize,
}

/// An arena for every tensor, and how high each is piled.
#[derive(Clone)]
struct Colouring {
    arena: Vec<usize>,
    /// Bytes of each arena in each column.
    piles: Vec<Vec<usize>>,
    peaks: Vec<usize>,
}

impl Problem {
    fn new(lifetimes: &[Lifetime], pairs: &[(usize, usize)], limit: usize) -> Self {
        let mut apart = vec![Vec::new(); lifetimes.len()];
        for &(a, b) in pairs {
            apart[a].push(b);
            apart[b].push(a);
        }
        let (columns, width) = columns(lifetimes);
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), i));
        let sizes = lifetimes.iter().map(|l| l.bytes).collect();
        Self { sizes, columns, width, apart, order, limit }
    }

    /// The best colouring that was found with `count` arenas, or none.
    fn search(&self, count: usize) -> Option<Colouring> {
        let mut now = self.greedy(count)?;
        let mut best = now.clone();
        let mut random = Random::new(count as u64);
        let start = now.total();
        for step in 0..MOVES {
            // Large tensors matter more.
            let index = random.uniform().powi(2) * self.order.len() as f64;
            let tensor = self.order[(index as usize).min(self.order.len() - 1)];
            let (from, to) = (now.arena[tensor], random.below(count));
            if from == to {
                continue;
            }
            let chain = self.chain(&now, tensor, (from, to));
            let before = self.price(&now);
            self.flip(&mut now, &chain, (from, to));
            let allowed = start / WARMTH * (MOVES - step) / MOVES;
            if self.price(&now) > before + allowed {
                self.flip(&mut now, &chain, (from, to));
            } else if self.price(&now) < self.price(&best) {
                best.clone_from(&now);
            }
        }
        Some(best)
    }

    /// Largest first, each into the arena that grows least, of these into the one that is fullest there.
    fn greedy(&self, count: usize) -> Option<Colouring> {
        let none = usize::MAX;
        let mut made = Colouring {
            arena: vec![none; self.sizes.len()],
            piles: vec![vec![0; self.width]; count],
            peaks: vec![0; count],
        };
        for &tensor in &self.order {
            let top = |arena: usize| self.top(&made, tensor, arena);
            let growth = |arena: usize| (top(arena) + self.sizes[tensor]).saturating_sub(made.peaks[arena]);
            let is_free = |arena: &usize| self.apart[tensor].iter().all(|&other| made.arena[other] != *arena);
            let free = (0..count).filter(is_free);
            let arena = free.min_by_key(|&arena| (growth(arena), std::cmp::Reverse(top(arena))))?;
            made.arena[tensor] = arena;
            made.piles[arena][self.columns[tensor].clone()].iter_mut().for_each(|pile| *pile += self.sizes[tensor]);
            made.peaks[arena] = made.peaks[arena].max(self.top(&made, tensor, arena));
        }
        Some(made)
    }

    /// Most bytes of an arena in a tensor's columns.
    fn top(&self, colouring: &Colouring, tensor: usize, arena: usize) -> usize {
        colouring.piles[arena][self.columns[tensor].clone()].iter().copied().max().unwrap_or(0)
    }

    /// `tensor` and all that has to change sides with it between the two arenas.
    fn chain(&self, colouring: &Colouring, tensor: usize, (from, to): (usize, usize)) -> Vec<usize> {
        let mut chain = vec![tensor];
        let mut next = 0;
        while next < chain.len() {
            for &other in &self.apart[chain[next]] {
                let there = colouring.arena[other];
                if (there == from || there == to) && !chain.contains(&other) {
                    chain.push(other);
                }
            }
            next += 1;
        }
        chain
    }

    /// Changes the arena of every tensor of a chain; done twice, it changes nothing.
    fn flip(&self, colouring: &mut Colouring, chain: &[usize], (from, to): (usize, usize)) {
        for &tensor in chain {
            let old = colouring.arena[tensor];
            let new = if old == from { to } else { from };
            let (columns, bytes) = (self.columns[tensor].clone(), self.sizes[tensor]);
            colouring.piles[old][columns.clone()].iter_mut().for_each(|pile| *pile -= bytes);
            colouring.piles[new][columns].iter_mut().for_each(|pile| *pile += bytes);
            colouring.arena[tensor] = new;
        }
        for arena in [from, to] {
            colouring.peaks[arena] = colouring.piles[arena].iter().copied().max().unwrap_or(0);
        }
    }

    /// Bytes of all arenas; what is beyond the limit counts several times.
    fn price(&self, colouring: &Colouring) -> usize {
        let beyond: usize = colouring.peaks.iter().map(|&peak| peak.saturating_sub(self.limit)).sum();
        colouring.total() + 4 * beyond
    }
}

impl Colouring {
    fn total(&self) -> usize {
        self.peaks.iter().sum()
    }

    fn pack(&self, lifetimes: &[Lifetime]) -> Arenas {
        let mut made = Arenas { places: vec![(0, 0); lifetimes.len()], bytes: Vec::new() };
        for arena in 0..self.peaks.len() {
            let tenants: Vec<usize> = (0..lifetimes.len()).filter(|&tensor| self.arena[tensor] == arena).collect();
            if tenants.is_empty() {
                continue;
            }
            let alive: Vec<Lifetime> = tenants.iter().map(|&tensor| lifetimes[tensor]).collect();
            let Packing { offsets, total } = pack_with(&alive, WORK);
            tenants.iter().zip(offsets).for_each(|(&tensor, at)| made.places[tensor] = (made.bytes.len(), at));
            made.bytes.push(total);
        }
        made
    }
}

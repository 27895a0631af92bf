//! Offsets in one arena: a skyline, filled from the bottom again and again, learning from every failure.
//!
//! Seen as a strip whose width is time, tensors are rectangles of fixed columns. An attempt lays one after the other
//! on what already lies below, always one that no other could slip under, and gives up as soon as a tensor cannot stay
//! below the best total so far. That tensor is then preferred a little in the next attempt ("the squeaky wheel gets
//! the grease"). Neither clock nor global state takes part: the same lifetimes always give the same offsets.

use super::{Lifetime, lower_bound};
use std::ops::Range;

/// Offsets in an arena, and the size it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// First byte of each tensor.
    pub offsets: Vec<usize>,
    /// Bytes of the arena.
    pub total: usize,
}

/// Attempts at most; the model's plans reach the lower bound long before.
const ATTEMPTS: usize = 12_000;
/// Elementary operations at most: under a second, whatever the plan.
const WORK: usize = 450_000_000;

/// What an attempt prefers among the tensors that may come next.
#[derive(Clone, Copy)]
struct Taste {
    /// Where the tallest pile above the tensor would end if nothing more were wasted.
    urgency: f64,
    /// A low offset.
    low: f64,
    /// Size.
    size: f64,
    /// A long life.
    length: f64,
}

const TASTES: [Taste; 6] = [
    Taste { urgency: 0.0, low: 1.0, size: 0.0, length: 0.01 },
    Taste { urgency: 1.0, low: 10.0, size: 0.0, length: 1.0 },
    Taste { urgency: 1.0, low: 10.0, size: 0.1, length: 0.1 },
    Taste { urgency: 1.0, low: 1.5, size: 0.1, length: 0.1 },
    Taste { urgency: 1.0, low: 2.0, size: 0.0, length: 0.0 },
    Taste { urgency: 1.0, low: 1.0, size: 0.0, length: 0.0 },
];

/// How much a tensor that did not fit gains, in units of the other terms.
const GAINS: [f64; 4] = [0.004, 0.008, 0.016, 0.032];
/// What is left of all gains after each attempt.
const MEMORY: f64 = 0.98;

/// Places tensors in one arena so that no two that are alive together share a byte.
pub fn pack(lifetimes: &[Lifetime]) -> Packing {
    pack_with(lifetimes, WORK)
}

/// Like [`pack`], with about as many elementary operations.
pub(super) fn pack_with(lifetimes: &[Lifetime], effort: usize) -> Packing {
    if lifetimes.is_empty() {
        return Packing::default();
    }
    let strip = Strip::new(lifetimes);
    let mut random = Random::new(1);
    let mut gained = vec![vec![0.0; lifetimes.len()]; TASTES.len() * GAINS.len()];
    let (mut best, mut work) = (Packing { offsets: Vec::new(), total: usize::MAX }, 0);
    for attempt in 0..ATTEMPTS {
        if best.total <= strip.bound || work > effort {
            break;
        }
        let kind = attempt % gained.len();
        let (taste, gain) = (TASTES[kind % TASTES.len()], GAINS[kind / TASTES.len()]);
        match strip.attempt(taste, &gained[kind], best.total - 1, &mut work) {
            Ok(found) => best = found,
            Err(stuck) => {
                let gain = gain * (0.5 + random.uniform());
                // A little noise now and then, so that attempts do not go round in circles.
                let noise = if random.uniform() < 0.25 { 0.1 * gain } else { 0.0 };
                for value in &mut gained[kind] {
                    *value = *value * MEMORY + noise * (random.uniform() - 0.5);
                }
                gained[kind][stuck] += gain;
            }
        }
    }
    best
}

/// Columns of each tensor, and how many there are. A column is a step at which some tensor begins: the piles are
/// tallest there.
pub(super) fn columns(lifetimes: &[Lifetime]) -> (Vec<Range<usize>>, usize) {
    let mut starts: Vec<usize> = lifetimes.iter().map(|l| l.first).collect();
    starts.sort_unstable();
    starts.dedup();
    let column = |l: &Lifetime| starts.partition_point(|&s| s < l.first)..starts.partition_point(|&s| s <= l.last);
    (lifetimes.iter().map(column).collect(), starts.len())
}

/// The problem, prepared for many attempts.
struct Strip {
    sizes: Vec<usize>,
    /// Columns of each tensor: see [`columns`].
    columns: Vec<Range<usize>>,
    /// Tensors alive together with each.
    neighbours: Vec<Vec<usize>>,
    /// Bytes in each column.
    alive: Vec<usize>,
    bound: usize,
}

/// A tensor that waits to be placed.
#[derive(Clone, Copy)]
struct Waiting {
    tensor: usize,
    /// Lowest offset it can still take.
    low: usize,
    /// Bytes that wait in its fullest column, its own included.
    pile: usize,
}

impl Strip {
    fn new(lifetimes: &[Lifetime]) -> Self {
        let (columns, width) = columns(lifetimes);
        let mut alive = vec![0; width];
        for (lifetime, columns) in lifetimes.iter().zip(&columns) {
            alive[columns.clone()].iter_mut().for_each(|bytes| *bytes += lifetime.bytes);
        }
        let others = |i: usize| (0..lifetimes.len()).filter(move |&j| j != i && lifetimes[i].overlaps(&lifetimes[j]));
        Self {
            sizes: lifetimes.iter().map(|l| l.bytes).collect(),
            columns,
            neighbours: (0..lifetimes.len()).map(|i| others(i).collect()).collect(),
            alive,
            bound: lower_bound(lifetimes),
        }
    }

    /// Places every tensor below `limit`, or names one that did not fit.
    fn attempt(&self, taste: Taste, gained: &[f64], limit: usize, work: &mut usize) -> Result<Packing, usize> {
        let count = self.sizes.len();
        let mut piles = self.alive.clone();
        let tallest = |piles: &[usize], tensor: usize| piles[self.columns[tensor].clone()].iter().copied().max();
        let waiting = |tensor| Waiting { tensor, low: 0, pile: tallest(&piles, tensor).unwrap_or(0) };
        let mut waiting: Vec<Waiting> = (0..count).map(waiting).collect();
        // Where each tensor stands in `waiting`; `count` once it is placed.
        let mut place: Vec<usize> = (0..count).collect();
        let mut stale = vec![false; count];
        let mut packing = Packing { offsets: vec![0; count], total: 0 };
        while !waiting.is_empty() {
            // Whatever lies at or above the lowest top could let that tensor slip under: it is not its turn.
            let top = waiting.iter().map(|w| w.low + self.sizes[w.tensor]).min().unwrap_or(0);
            *work += 2 * waiting.len();
            let (mut chosen, mut highest) = (0, f64::NEG_INFINITY);
            for (i, w) in waiting.iter_mut().enumerate().filter(|(_, w)| w.low < top) {
                if std::mem::take(&mut stale[w.tensor]) {
                    w.pile = tallest(&piles, w.tensor).unwrap_or(0);
                    *work += self.columns[w.tensor].len();
                }
                let score = self.score(taste, w) + gained[w.tensor];
                if score > highest {
                    (chosen, highest) = (i, score);
                }
            }
            let Waiting { tensor, low, pile } = waiting.swap_remove(chosen);
            place[tensor] = count;
            if let Some(moved) = waiting.get(chosen) {
                place[moved.tensor] = chosen;
            }
            if low + pile > limit {
                return Err(tensor);
            }
            let end = low + self.sizes[tensor];
            packing.offsets[tensor] = low;
            packing.total = packing.total.max(end);
            piles[self.columns[tensor].clone()].iter_mut().for_each(|bytes| *bytes -= self.sizes[tensor]);
            *work += self.neighbours[tensor].len();
            for &other in self.neighbours[tensor].iter().filter(|&&other| place[other] < count) {
                let w = &mut waiting[place[other]];
                w.low = w.low.max(end);
                stale[other] = true;
            }
        }
        Ok(packing)
    }

    fn score(&self, taste: Taste, w: &Waiting) -> f64 {
        let share = |bytes: usize| bytes as f64 / self.bound.max(1) as f64;
        let length = self.columns[w.tensor].len() as f64 / self.alive.len() as f64;
        taste.urgency * share(w.low + w.pile) - taste.low * share(w.low)
            + taste.size * share(self.sizes[w.tensor])
            + taste.length * length
    }
}

/// SplitMix64, as everywhere in this project that needs the same numbers on every platform.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A whole number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((self.uniform() * bound as f64) as usize).min(bound - 1)
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

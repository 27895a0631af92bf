//! Packing of tensors into one arena: a skyline heuristic that is repeated with adapted priorities.
//!
//! The arena is a strip whose width is time and whose height is memory. Tensors are rectangles of fixed columns. An
//! attempt places tensors one by one on top of those already placed, always choosing one that no remaining tensor could
//! fit under. It fails as soon as some tensor cannot stay below the best total so far. That tensor gets a higher
//! priority in the following attempts ("squeaky wheel" optimisation). There is no dependence on a clock or on global
//! state: the same lifetimes always get the same offsets.

use super::{Lifetime, lower_bound};
use mobilediffusion_kernels::random::Random;
use std::ops::Range;

/// Placement of tensors in one arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// Byte offset of each tensor.
    pub offsets: Vec<usize>,
    /// Size of the arena in bytes.
    pub total: usize,
}

/// Largest number of attempts. The model's plans reach the lower bound long before.
const ATTEMPTS: usize = 12_000;
/// Largest number of elementary operations: under a second for any plan.
const WORK: usize = 450_000_000;

/// Weights of the terms in a tensor's priority; see [`Strip::priority`]. Lengths and sizes are relative to the whole
/// strip.
#[derive(Clone, Copy)]
struct Preference {
    /// Weight of the height that the fullest column of the tensor would reach if no more memory were wasted.
    urgency: f64,
    /// Weight of a low offset.
    low: f64,
    /// Weight of the tensor's size.
    size: f64,
    /// Weight of the length of its lifetime.
    length: f64,
}

/// Preferences that the attempts cycle through.
const PREFERENCES: [Preference; 6] = [
    Preference { urgency: 0.0, low: 1.0, size: 0.0, length: 0.01 },
    Preference { urgency: 1.0, low: 10.0, size: 0.0, length: 1.0 },
    Preference { urgency: 1.0, low: 10.0, size: 0.1, length: 0.1 },
    Preference { urgency: 1.0, low: 1.5, size: 0.1, length: 0.1 },
    Preference { urgency: 1.0, low: 2.0, size: 0.0, length: 0.0 },
    Preference { urgency: 1.0, low: 1.0, size: 0.0, length: 0.0 },
];

/// Amounts by which the priority of a tensor grows that did not fit; the attempts cycle through them.
const GAINS: [f64; 4] = [0.004, 0.008, 0.016, 0.032];
/// Factor by which all gains decay after each attempt.
const DECAY: f64 = 0.98;

/// Places tensors in one arena so that no two tensors that are alive at the same step share a byte. The result is
/// deterministic.
pub fn pack(lifetimes: &[Lifetime]) -> Packing {
    pack_with(lifetimes, WORK)
}

/// Places tensors as [`pack`] does, with at most about `effort` elementary operations.
pub(super) fn pack_with(lifetimes: &[Lifetime], effort: usize) -> Packing {
    if lifetimes.is_empty() {
        return Packing::default();
    }
    let strip = Strip::new(lifetimes);
    let mut random = Random::new(1);
    let mut gained = vec![vec![0.0; lifetimes.len()]; PREFERENCES.len() * GAINS.len()];
    let (mut best, mut work) = (Packing { offsets: Vec::new(), total: usize::MAX }, 0);
    for attempt in 0..ATTEMPTS {
        if best.total <= strip.bound || work > effort {
            break;
        }
        let kind = attempt % gained.len();
        let (preference, gain) = (PREFERENCES[kind % PREFERENCES.len()], GAINS[kind / PREFERENCES.len()]);
        match strip.attempt(preference, &gained[kind], best.total - 1, &mut work) {
            Ok(found) => best = found,
            Err(stuck) => {
                let gain = gain * (0.5 + random.uniform());
                // Occasional noise keeps the attempts from repeating in a cycle.
                let noise = if random.uniform() < 0.25 { 0.1 * gain } else { 0.0 };
                for value in &mut gained[kind] {
                    *value = *value * DECAY + noise * (random.uniform() - 0.5);
                }
                gained[kind][stuck] += gain;
            }
        }
    }
    best
}

/// Returns the range of columns of each tensor, and the number of columns. A column is a step at which some lifetime
/// begins; the number of bytes alive has its maxima at these steps, so others need not be looked at.
pub(super) fn columns(lifetimes: &[Lifetime]) -> (Vec<Range<usize>>, usize) {
    let mut starts: Vec<usize> = lifetimes.iter().map(|l| l.first).collect();
    starts.sort_unstable();
    starts.dedup();
    let column = |l: &Lifetime| starts.partition_point(|&s| s < l.first)..starts.partition_point(|&s| s <= l.last);
    (lifetimes.iter().map(column).collect(), starts.len())
}

/// Packing problem, prepared for many attempts.
struct Strip {
    sizes: Vec<usize>,
    /// Columns of each tensor; see [`columns`].
    columns: Vec<Range<usize>>,
    /// Tensors that are alive at the same time as each tensor.
    neighbours: Vec<Vec<usize>>,
    /// Bytes alive in each column.
    alive: Vec<usize>,
    /// Lower bound of the total.
    bound: usize,
}

/// Tensor that has not been placed yet.
#[derive(Clone, Copy)]
struct Waiting {
    tensor: usize,
    /// Lowest offset that is still possible.
    low: usize,
    /// Bytes not yet placed in the fullest column of the tensor, the tensor included.
    pending: usize,
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

    /// Places every tensor below `limit`; the error is a tensor that did not fit. Adds the number of elementary
    /// operations to `work`.
    fn attempt(
        &self,
        preference: Preference,
        gained: &[f64],
        limit: usize,
        work: &mut usize,
    ) -> Result<Packing, usize> {
        let count = self.sizes.len();
        let mut pending = self.alive.clone();
        let fullest = |pending: &[usize], tensor: usize| pending[self.columns[tensor].clone()].iter().copied().max();
        let waiting = |tensor| Waiting { tensor, low: 0, pending: fullest(&pending, tensor).unwrap_or(0) };
        let mut waiting: Vec<Waiting> = (0..count).map(waiting).collect();
        // Index of each tensor in `waiting`, or `count` once it is placed.
        let mut place: Vec<usize> = (0..count).collect();
        let mut stale = vec![false; count];
        let mut packing = Packing { offsets: vec![0; count], total: 0 };
        while !waiting.is_empty() {
            // The tensor with the lowest top could still fit under any tensor that begins at or above that top, so
            // those are not candidates.
            let top = waiting.iter().map(|w| w.low + self.sizes[w.tensor]).min().unwrap_or(0);
            *work += 2 * waiting.len();
            let (mut chosen, mut highest) = (0, f64::NEG_INFINITY);
            for (i, w) in waiting.iter_mut().enumerate().filter(|(_, w)| w.low < top) {
                if std::mem::take(&mut stale[w.tensor]) {
                    w.pending = fullest(&pending, w.tensor).unwrap_or(0);
                    *work += self.columns[w.tensor].len();
                }
                let priority = self.priority(preference, w) + gained[w.tensor];
                if priority > highest {
                    (chosen, highest) = (i, priority);
                }
            }
            let Waiting { tensor, low, pending: above } = waiting.swap_remove(chosen);
            place[tensor] = count;
            if let Some(moved) = waiting.get(chosen) {
                place[moved.tensor] = chosen;
            }
            if low + above > limit {
                return Err(tensor);
            }
            let end = low + self.sizes[tensor];
            packing.offsets[tensor] = low;
            packing.total = packing.total.max(end);
            pending[self.columns[tensor].clone()].iter_mut().for_each(|bytes| *bytes -= self.sizes[tensor]);
            *work += self.neighbours[tensor].len();
            for &other in self.neighbours[tensor].iter().filter(|&&other| place[other] < count) {
                let w = &mut waiting[place[other]];
                w.low = w.low.max(end);
                stale[other] = true;
            }
        }
        Ok(packing)
    }

    /// Returns the priority of a tensor without its gains.
    fn priority(&self, preference: Preference, w: &Waiting) -> f64 {
        let share = |bytes: usize| bytes as f64 / self.bound.max(1) as f64;
        let length = self.columns[w.tensor].len() as f64 / self.alive.len() as f64;
        preference.urgency * share(w.low + w.pending) - preference.low * share(w.low)
            + preference.size * share(self.sizes[w.tensor])
            + preference.length * length
    }
}

//! Where tensors lie: lifetimes to memory, by pure functions. There are two answers, for two kinds of device.
//!
//! [`pack`] gives offsets in one arena, for the CPU: every plan of the model takes its lower bound, the most bytes alive
//! at any step, and not one byte more.
//!
//! [`arenas`] gives offsets in a few arenas, for a GPU. WebGPU tracks usage per buffer: a step must not read one range
//! of a buffer and write another, unless everything is bound for writing. Three ways were measured against the lower
//! bound, at the presets' own sizes in f32 (`mobilediffusion plan`, `tests/plan.rs`):
//!
//! | | UNet | decoder | text encoder |
//! |---|---|---|---|
//! | slots: whole buffers | 1.086 | 1.000 | 1.286 |
//! | one arena, bound read-write | 1.000 | 1.000 | 1.000 |
//! | a few arenas, what a step reads and writes apart | 1.027 | 1.016 | 1.000 |
//!
//! One arena would take the read-only bindings away from every kernel, and with them what compilers make of memory that
//! does not change. A few arenas keep them; the time of a replay is the same (see `benches/records/rejected.md`). Slots
//! were measured before steps were folded into their neighbours, which leaves fewer tensors and more that are apart.

mod arenas;
mod pack;

pub use arenas::{Arenas, Join, arenas};
pub use pack::{Packing, pack};

/// Where a tensor may begin in an arena of a GPU: the most that WebGPU lets an adapter ask of a binding's offset.
pub const ARENA_ALIGNMENT: usize = 256;

/// Whether tensors share memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Tensors that are never alive together share memory.
    #[default]
    Planned,
    /// Every tensor has memory of its own: what plans are tested against.
    Private,
}

/// When a tensor has to keep its bytes: from the step that writes it to the last that reads it, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// First step.
    pub first: usize,
    /// Last step.
    pub last: usize,
    /// Size.
    pub bytes: usize,
}

impl Lifetime {
    /// Whether both are alive at some step.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The most bytes alive at any step: no placement can need less, unless outputs take the place of what their step reads.
pub fn lower_bound(lifetimes: &[Lifetime]) -> usize {
    let alive = |step: usize| lifetimes.iter().filter(|l| l.first <= step && step <= l.last).map(|l| l.bytes).sum();
    lifetimes.iter().map(|l| alive(l.first)).max().unwrap_or(0)
}

/// The least where the second tensor of each join may take the place of the first, which dies as the other is born.
pub fn lower_bound_in_place(lifetimes: &[Lifetime], joins: &[Join]) -> usize {
    let mut lifetimes = lifetimes.to_vec();
    // What is joined was born at an earlier step, so it is alive at one at least.
    joins.iter().for_each(|&(first, _)| lifetimes[first].last -= 1);
    lower_bound(&lifetimes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(first: usize, last: usize, bytes: usize) -> Lifetime {
        Lifetime { first, last, bytes }
    }

    #[test]
    fn a_chain_needs_two_arenas() {
        let chain: Vec<Lifetime> = (0..10).map(|i| life(i, i + 1, 8)).collect();
        let apart: Vec<(usize, usize)> = (1..10).map(|i| (i - 1, i)).collect();
        assert_eq!(arenas(&chain, &apart, &[], 100).expect("it fits").bytes, [8, 8]);
        assert_eq!(lower_bound(&chain), 16);
        assert_eq!(arenas(&chain, &apart, &[], 7), None, "no arena may be that small");
    }

    #[test]
    fn what_is_apart_shares_no_arena() {
        let lifetimes = [life(0, 5, 100), life(1, 2, 10), life(2, 3, 10), life(3, 4, 100)];
        let apart = [(0, 1), (1, 2), (2, 3), (0, 3)];
        let made = arenas(&lifetimes, &apart, &[], 1000).expect("it fits");
        assert!(apart.iter().all(|&(a, b)| made.places[a].0 != made.places[b].0), "{made:?}");
        assert_eq!((made.total(), lower_bound(&lifetimes)), (210, 210), "{made:?}");
    }

    #[test]
    fn a_step_of_three_needs_three_arenas() {
        let lifetimes = [life(0, 1, 8), life(0, 1, 8), life(1, 1, 8)];
        let made = arenas(&lifetimes, &[(0, 1), (0, 2), (1, 2)], &[], 100).expect("it fits");
        assert_eq!(made.bytes, [8, 8, 8]);
    }

    #[test]
    fn a_join_takes_the_place_of_what_dies() {
        let chain: Vec<Lifetime> = (0..10).map(|i| life(i, i + 1, 8)).collect();
        let joins: Vec<Join> = (1..10).map(|i| (i - 1, i)).collect();
        let made = arenas(&chain, &[], &joins, 100).expect("it fits");
        assert_eq!(made.total(), lower_bound_in_place(&chain, &joins));
        assert_eq!((made.bytes.as_slice(), made.joined.as_slice()), (&[8][..], &[true; 9][..]), "{made:?}");
    }

    #[test]
    fn nothing_needs_nothing() {
        assert_eq!(arenas(&[], &[], &[], 0), Some(Arenas::default()));
        assert_eq!((pack(&[]).total, lower_bound(&[])), (0, 0));
    }
}

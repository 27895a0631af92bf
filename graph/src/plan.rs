//! The memory planner: pure functions from lifetimes of tensors to places in memory.
//!
//! There are two placements, for two kinds of device:
//!
//! * [`pack`] assigns offsets in one arena, for the CPU. Every network of the model gets exactly its lower bound, the
//!   most bytes alive at any step.
//! * [`Recording::arenas`](crate::Recording::arenas) assigns offsets in a few arenas, for a GPU. WebGPU tracks usage
//!   per buffer: a dispatch must not read one range of a buffer and write another, unless all ranges are bound
//!   read-write.
//!
//! Three placements for GPUs were measured against the lower bound, at the native sizes of the presets in f32. The table
//! shows the worst of all presets, on 2026-12-01 by `mobilediffusion plan --preset NAME` (see also `tests/plan.rs`),
//! those of slots on 2026-11-24:
//!
//! | placement | UNet | decoder | text encoder |
//! |---|---|---|---|
//! | slots: a tensor takes a whole buffer, which later tensors reuse | 1.086 | 1.000 | 1.286 |
//! | one arena, bound read-write | 1.000 | 1.000 | 1.000 |
//! | a few arenas, inputs and outputs of a step in different ones | 1.032 | 0.852 | 1.024 |
//!
//! Below 1 are networks in which steps overwrite their input. The bound counts input and output of such a step.
//!
//! With a single arena no kernel could bind its inputs read-only, so shader compilers could not rely on memory that
//! does not change. A few arenas keep read-only bindings, and a replay takes the same time (see
//! `benches/records/rejected.md`). Slots were measured before fusion existed; fusion leaves fewer tensors, of which
//! more conflict with each other.

mod arenas;
mod colouring;
mod pack;

pub(crate) use arenas::{Alias, Arenas, Satellite, Tensors, arenas};
pub use pack::{Packing, pack};

/// Limit on the size of an arena where there is none: so large that no device has the memory, and so small that sizes of
/// arenas can be added up.
pub const NO_LIMIT: usize = usize::MAX / 8;

/// Place of a tensor in the memory of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the arena.
    pub arena: usize,
    /// Offset in the arena, in bytes.
    pub offset: usize,
}

/// Lifetime of a tensor: the range of steps during which its bytes have to be preserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// First step of the lifetime, usually the one that writes the tensor.
    pub first: usize,
    /// Last step of the lifetime, inclusive, usually the last one that reads the tensor.
    pub last: usize,
    /// Size of the tensor in bytes.
    pub bytes: usize,
}

impl Lifetime {
    /// Returns whether both tensors are alive at some step.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Returns the most bytes alive at any step. No placement needs less, unless outputs overwrite inputs of their step.
pub fn lower_bound(lifetimes: &[Lifetime]) -> usize {
    let alive = |step: usize| lifetimes.iter().filter(|l| l.first <= step && step <= l.last).map(|l| l.bytes).sum();
    lifetimes.iter().map(|l| alive(l.first)).max().unwrap_or(0)
}

/// Returns the most bytes alive at any step if every alias is used.
pub(crate) fn lower_bound_in_place(lifetimes: &[Lifetime], aliases: &[Alias]) -> usize {
    let mut lifetimes = lifetimes.to_vec();
    // The first tensor of an alias was written at an earlier step, so its lifetime does not become empty.
    aliases.iter().for_each(|&(first, _)| lifetimes[first].last -= 1);
    lower_bound(&lifetimes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(first: usize, last: usize, bytes: usize) -> Lifetime {
        Lifetime { first, last, bytes }
    }

    fn placed(
        lifetimes: &[Lifetime],
        conflicts: &[(usize, usize)],
        aliases: &[Alias],
        satellites: &[Satellite],
    ) -> Arenas {
        arenas(&Tensors { lifetimes, conflicts, aliases, satellites }, 1000).expect("it fits")
    }

    #[test]
    fn a_chain_needs_two_arenas() {
        let chain: Vec<Lifetime> = (0..10).map(|i| life(i, i + 1, 8)).collect();
        let conflicts: Vec<(usize, usize)> = (1..10).map(|i| (i - 1, i)).collect();
        assert_eq!(placed(&chain, &conflicts, &[], &[]).bytes, [8, 8]);
        assert_eq!(lower_bound(&chain), 16);
        let tensors = Tensors { lifetimes: &chain, conflicts: &conflicts, aliases: &[], satellites: &[] };
        assert_eq!(arenas(&tensors, 7), None, "a tensor is larger than the limit");
    }

    #[test]
    fn conflicting_tensors_share_no_arena() {
        let lifetimes = [life(0, 5, 100), life(1, 2, 10), life(2, 3, 10), life(3, 4, 100)];
        let conflicts = [(0, 1), (1, 2), (2, 3), (0, 3)];
        let made = placed(&lifetimes, &conflicts, &[], &[]);
        assert!(conflicts.iter().all(|&(a, b)| made.places[a].arena != made.places[b].arena), "{made:?}");
        assert_eq!((made.total(), lower_bound(&lifetimes)), (210, 210), "{made:?}");
    }

    #[test]
    fn a_step_of_three_needs_three_arenas() {
        let lifetimes = [life(0, 1, 8), life(0, 1, 8), life(1, 1, 8)];
        let made = placed(&lifetimes, &[(0, 1), (0, 2), (1, 2)], &[], &[]);
        assert_eq!(made.bytes, [8, 8, 8]);
    }

    #[test]
    fn an_alias_overwrites_its_first_tensor() {
        let chain: Vec<Lifetime> = (0..10).map(|i| life(i, i + 1, 8)).collect();
        let aliases: Vec<Alias> = (1..10).map(|i| (i - 1, i)).collect();
        let made = placed(&chain, &[], &aliases, &[]);
        assert_eq!(made.total(), lower_bound_in_place(&chain, &aliases));
        assert_eq!((made.bytes.as_slice(), made.aliased.as_slice()), (&[8][..], &[true; 9][..]), "{made:?}");
    }

    #[test]
    fn a_satellite_follows_its_tensor() {
        let lifetimes = [life(0, 1, 8), life(1, 3, 8), life(1, 2, 2), life(3, 3, 8)];
        let made = placed(&lifetimes, &[(0, 1), (1, 3)], &[], &[(1, 2)]);
        assert_eq!(made.places[1].arena, made.places[2].arena, "{made:?}");
        assert_eq!((made.bytes.len(), made.total()), (2, 18), "{made:?}");
    }

    #[test]
    fn an_empty_plan_needs_no_memory() {
        assert_eq!(placed(&[], &[], &[], &[]), Arenas::default());
        assert_eq!((pack(&[]).total, lower_bound(&[])), (0, 0));
    }
}

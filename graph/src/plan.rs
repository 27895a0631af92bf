//! Where tensors lie: lifetimes to memory, by pure functions. There are two answers, for two kinds of device.
//!
//! [`pack`] gives offsets in one arena, for the CPU: every plan of the model takes its lower bound, the most bytes alive
//! at any step, and not one byte more.
//!
//! [`place`] gives slots, whole buffers, for a GPU. WebGPU tracks usage per buffer: a dispatch must not read one range
//! of a buffer and write another. With slots the rule holds by construction, because what a step reads and what it
//! writes are alive together and so never share a slot. The price, at 512x512 pixels in f32, against the lower bound:
//! UNet 1.086, decoder 1.000, text encoder 1.286 (half a mebibyte: the hidden layer's slot cannot hold queries, keys
//! and values side by side).
//!
//! Small tensors that live through the whole plan, such as time projections and the text's keys and values, keep slots
//! of their own: they waste nothing there, so a common buffer would save buffers but no bytes.

mod pack;

pub use pack::{Packing, pack};

/// Whether tensors share memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Tensors that are never alive together share memory.
    #[default]
    Planned,
    /// Every tensor has memory of its own, so that all of them can be read after a run: for tests and for
    /// [`compare`](crate::compare()).
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

/// The slot of every tensor, and the size of every slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Slot of each tensor.
    pub slot_of: Vec<usize>,
    /// Bytes of each slot.
    pub slot_bytes: Vec<usize>,
}

impl Placement {
    /// Bytes of all slots.
    pub fn total(&self) -> usize {
        self.slot_bytes.iter().sum()
    }
}

/// Orders tried by [`place`] beyond the greedy ones; the least total wins.
const TRIES: usize = 300;

/// Places tensors in slots so that no two that are alive together share one.
///
/// Greedy in a few orders, then with single tensors moved in the best order. Ties go to the lower number and the moves
/// follow a fixed sequence, so the same lifetimes always give the same placement.
pub fn place(lifetimes: &[Lifetime]) -> Placement {
    let count = lifetimes.len();
    let length = |i: usize| lifetimes[i].last - lifetimes[i].first + 1;
    let by = |key: &dyn Fn(usize) -> (usize, usize)| {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(i)), lifetimes[i].first, i));
        order
    };
    let orders = [
        by(&|i| (lifetimes[i].bytes, 0)),
        by(&|i| (lifetimes[i].bytes, length(i))),
        by(&|i| (lifetimes[i].bytes * length(i), 0)),
        by(&|i| (length(i), lifetimes[i].bytes)),
        by(&|i| (usize::MAX - lifetimes[i].first, lifetimes[i].bytes)),
    ];
    let tried = orders.into_iter().map(|order| (place_in_order(lifetimes, &order), order));
    let Some((mut best, mut order)) = tried.min_by_key(|(placement, _)| placement.total()) else {
        return Placement::default();
    };
    let bound = lower_bound(lifetimes);
    let mut number = 0_u64;
    for _ in 0..TRIES {
        if best.total() <= bound {
            break;
        }
        let mut moved = order.clone();
        for _ in 0..2 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (from, to) = ((number >> 48) as usize % count, (number >> 32 & 0xFFFF) as usize % count);
            let tensor = moved.remove(from);
            moved.insert(to, tensor);
        }
        let placement = place_in_order(lifetimes, &moved);
        if placement.total() <= best.total() {
            (best, order) = (placement, moved);
        }
    }
    best
}

/// Puts each tensor into the free slot that grows least, of these into the smallest, or into a new one.
fn place_in_order(lifetimes: &[Lifetime], order: &[usize]) -> Placement {
    let mut placement = Placement { slot_of: vec![0; lifetimes.len()], slot_bytes: Vec::new() };
    let mut tenants: Vec<Vec<usize>> = Vec::new();
    for &tensor in order {
        let bytes = lifetimes[tensor].bytes;
        let free = |slot: &usize| tenants[*slot].iter().all(|&other| !lifetimes[other].overlaps(&lifetimes[tensor]));
        let fit = |slot: &usize| (bytes.saturating_sub(placement.slot_bytes[*slot]), placement.slot_bytes[*slot]);
        let slot = (0..tenants.len()).filter(free).min_by_key(fit).unwrap_or_else(|| {
            tenants.push(Vec::new());
            placement.slot_bytes.push(0);
            tenants.len() - 1
        });
        tenants[slot].push(tensor);
        placement.slot_bytes[slot] = placement.slot_bytes[slot].max(bytes);
        placement.slot_of[tensor] = slot;
    }
    placement
}

/// The most bytes alive at any step: no placement can need less.
pub fn lower_bound(lifetimes: &[Lifetime]) -> usize {
    let alive = |step: usize| lifetimes.iter().filter(|l| l.first <= step && step <= l.last).map(|l| l.bytes).sum();
    lifetimes.iter().map(|l| alive(l.first)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(first: usize, last: usize, bytes: usize) -> Lifetime {
        Lifetime { first, last, bytes }
    }

    #[test]
    fn a_chain_needs_two_slots() {
        let chain: Vec<Lifetime> = (0..10).map(|i| life(i, i + 1, 8)).collect();
        let placement = place(&chain);
        assert_eq!(placement.slot_bytes, [8, 8]);
        assert_eq!(lower_bound(&chain), 16);
    }

    #[test]
    fn a_skip_keeps_its_slot() {
        let lifetimes = [life(0, 5, 100), life(1, 2, 10), life(2, 3, 10), life(3, 4, 100)];
        let placement = place(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                assert!(!a.overlaps(b) || placement.slot_of[i] != placement.slot_of[j], "{i} and {j} share a slot");
            }
        }
        assert_eq!(lower_bound(&lifetimes), 210);
    }

    #[test]
    fn nothing_needs_nothing() {
        assert_eq!((place(&[]).total(), lower_bound(&[])), (0, 0));
    }
}

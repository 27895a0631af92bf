//! Where tensors lie: lifetimes to slots, by pure functions.
//!
//! A slot is a whole buffer, not a range of an arena: WebGPU tracks usage per buffer, so a dispatch must not read one
//! range of a buffer and write another. With slots the rule holds by construction, because what a step reads and what
//! it writes are alive together and so never share a slot.

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

/// Places tensors, the largest first, each into the first slot whose tensors are all dead while it lives.
///
/// Ties are broken by first step and then by number, so the same lifetimes always give the same placement.
pub fn place(lifetimes: &[Lifetime]) -> Placement {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
    let mut placement = Placement { slot_of: vec![0; lifetimes.len()], slot_bytes: Vec::new() };
    let mut tenants: Vec<Vec<usize>> = Vec::new();
    for tensor in order {
        let free = |slot: &Vec<usize>| slot.iter().all(|&other| !lifetimes[other].overlaps(&lifetimes[tensor]));
        let slot = tenants.iter().position(free).unwrap_or_else(|| {
            tenants.push(Vec::new());
            placement.slot_bytes.push(lifetimes[tensor].bytes);
            tenants.len() - 1
        });
        tenants[slot].push(tensor);
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

//! Division of a run into submissions.

use mobilediffusion_runtime::{AdapterKind, Dispatch};

/// Floating-point operations of one submission on a discrete GPU: half a second at 200 GFLOP/s. A limit bounds the time
/// between two calls of the caller's callback, and keeps a submission well below the few seconds after which drivers
/// reset a device; products and attention that take more are divided. The next chunk is encoded and submitted while one
/// runs, so a fast device does not wait for the host.
const CHUNK_FLOPS: u64 = 100_000_000_000;
/// Floating-point operations of one submission on an integrated GPU. The slowest of these reach about 50 GFLOP/s, and
/// the system draws its desktop with them.
const INTEGRATED_CHUNK_FLOPS: u64 = 20_000_000_000;
/// Floating-point operations of one submission on a software driver.
const SOFTWARE_CHUNK_FLOPS: u64 = 2_000_000_000;

/// The first submission of a run has this share of the limit, so that the device begins while the host encodes the rest.
const FIRST_SHARE: u64 = 8;
/// Each submission may have this many times the operations of the one before, up to the limit. The device is then busy
/// while the host encodes the next one: for a large GPU, encoding a UNet takes about a third of the time of running it.
const GROWTH: u64 = 4;

/// Returns the limit on the floating-point operations of one submission.
pub(super) fn most_flops(kind: AdapterKind) -> u64 {
    match kind {
        AdapterKind::Software => SOFTWARE_CHUNK_FLOPS,
        AdapterKind::Integrated => INTEGRATED_CHUNK_FLOPS,
        AdapterKind::Discrete | AdapterKind::Other => CHUNK_FLOPS,
    }
}

/// Part of a step that is submitted as a whole.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) dispatch: Dispatch,
    /// Floating-point operations.
    pub(super) flops: u64,
}

/// Units of a submission, each with the number of steps before its own.
pub(super) type Chunk<'a> = Vec<(usize, &'a Unit)>;

/// Returns the submissions of a run of `steps`. `units` are those of all steps, and `most` is the limit on the
/// floating-point operations of one submission.
pub(super) fn chunks<'a>(units: &'a [Vec<Unit>], steps: &[usize], most: u64) -> Vec<Chunk<'a>> {
    let of_step = |(before, step): (usize, &usize)| units[*step].iter().map(move |unit| (before, unit));
    let all: Vec<(usize, &Unit)> = steps.iter().enumerate().flat_map(of_step).collect();
    let flops: Vec<u64> = all.iter().map(|(_, unit)| unit.flops).collect();
    let mut rest = all.into_iter();
    lengths(&flops, most).into_iter().map(|length| rest.by_ref().take(length).collect()).collect()
}

/// Returns the numbers of units of each submission, where units have so many floating-point operations. Only a single
/// unit may have more than `most`.
fn lengths(flops: &[u64], most: u64) -> Vec<usize> {
    let mut lengths: Vec<usize> = Vec::new();
    let (mut sum, mut limit) = (0, most / FIRST_SHARE);
    for own in flops {
        sum += own;
        match lengths.last_mut() {
            Some(length) if sum <= limit => *length += 1,
            last => {
                limit = if last.is_some() { most.min(GROWTH * limit) } else { limit };
                sum = *own;
                lengths.push(1);
            }
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_the_smaller_the_slower_the_kind_of_device() {
        // Half a second at 200 GFLOP/s, at 40 GFLOP/s and at 4 GFLOP/s.
        for (kind, flops) in [
            (AdapterKind::Discrete, 100e9),
            (AdapterKind::Other, 100e9),
            (AdapterKind::Integrated, 20e9),
            (AdapterKind::Software, 2e9),
        ] {
            assert_eq!(most_flops(kind) as f64, flops, "{kind}");
        }
    }

    #[test]
    fn submissions_grow_up_to_the_limit() {
        assert_eq!(lengths(&[1; 1000], 80), [10, 40, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 70]);
        assert_eq!(
            lengths(&[100, 0, 0, 7, 7, 100], 80),
            [1, 4, 1],
            "what exceeds the limit is alone but for free steps"
        );
        assert_eq!(lengths(&[0; 5], 80), [5]);
        assert!(lengths(&[], 80).is_empty(), "nothing is submitted for nothing");
    }
}

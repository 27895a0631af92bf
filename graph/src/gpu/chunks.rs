//! Division of a run into submissions.

use mobilediffusion_runtime::{AdapterKind, Dispatch};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

/// Floating-point operations of one submission on a discrete GPU before its speed is known: half a second at 200 GFLOP/s.
/// A limit bounds the time between two calls of the caller's callback, and keeps a submission well below the few seconds
/// after which drivers reset a device; products and attention that take more are divided. The next chunk is encoded and
/// submitted while one runs, so that the device does not wait for the host.
const CHUNK_FLOPS: u64 = 100_000_000_000;
/// Floating-point operations of one submission on an integrated GPU. The slowest of these reach about 50 GFLOP/s, and
/// the system draws its desktop with them.
const INTEGRATED_CHUNK_FLOPS: u64 = 20_000_000_000;
/// Floating-point operations of one submission on a software driver.
const SOFTWARE_CHUNK_FLOPS: u64 = 2_000_000_000;

/// Time that a submission may take once the speed of the device is known.
const SUBMISSION: Duration = Duration::from_millis(250);

/// The first submission of a run has this share of the limit, so that the device begins while the host encodes the rest.
const FIRST_SHARE: u64 = 8;
/// No submission has more than this many times the operations of the first: one of 3 TFLOP, several evaluations of the
/// full-size UNet, on a discrete GPU.
const FASTEST: u64 = 256;
/// Each submission may have this many times the operations of the one before, up to the limit. The device is then busy
/// while the host encodes the next one: for a large GPU, encoding a UNet takes about a third of the time of running it.
const GROWTH: u64 = 4;

/// Returns the limit on the floating-point operations of one submission on a device of unknown speed.
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

/// Returns the floating-point operations of a submission.
pub(super) fn flops(chunk: &Chunk<'_>) -> u64 {
    chunk.iter().fold(0, |sum, (_, unit)| sum.saturating_add(unit.flops))
}

/// What remains to be submitted of a run.
pub(super) struct Rest<'a> {
    units: IntoIter<(usize, &'a Unit)>,
    /// Limit on the floating-point operations of the last submission.
    limit: Option<u64>,
}

impl<'a> Rest<'a> {
    /// Begins a run of `steps`. `units` are those of all steps.
    pub(super) fn of_run(units: &'a [Vec<Unit>], steps: &[usize]) -> Self {
        let of_step = |(before, step): (usize, &usize)| units[*step].iter().map(move |unit| (before, unit));
        let all: Vec<(usize, &Unit)> = steps.iter().enumerate().flat_map(of_step).collect();
        Self { units: all.into_iter(), limit: None }
    }

    /// Returns the next submission, if anything remains.
    pub(super) fn next(&mut self, pace: &Pace) -> Option<Chunk<'a>> {
        let limit = pace.limit(self.limit);
        self.limit = Some(limit);
        let length = fitting(self.units.as_slice().iter().map(|(_, unit)| unit.flops), limit);
        (length > 0).then(|| self.units.by_ref().take(length).collect())
    }
}

/// Returns how many of the next units, which have so many floating-point operations, are submitted at once: all within
/// `limit`, and at least one.
fn fitting(flops: impl Iterator<Item = u64>, limit: u64) -> usize {
    let mut sum = 0_u64;
    let is_within = |(number, own): &(usize, u64)| {
        sum = sum.saturating_add(*own);
        *number == 0 || sum <= limit
    };
    flops.enumerate().take_while(is_within).count()
}

/// Limit on the floating-point operations of a submission, which follows the measured speed of the device: a phone's GPU
/// may be ten times slower than its kind lets one expect, and a large GPU would wait for the host between submissions
/// that it runs in less than a millisecond.
#[derive(Debug)]
pub(super) struct Pace {
    /// Limit for the first submission of a run, and the least one.
    first: u64,
    most: u64,
    /// When the last submission of this run was found to be done.
    last: Option<Instant>,
}

impl Pace {
    /// Returns the limit for a device that has not been measured.
    pub(super) fn of(kind: AdapterKind) -> Self {
        Self { first: most_flops(kind) / FIRST_SHARE, most: most_flops(kind), last: None }
    }

    /// Returns the limit on the submission after one with the limit `last`, or on the first of a run.
    fn limit(&self, last: Option<u64>) -> u64 {
        last.map_or(self.first, |last| self.most.min(GROWTH * last))
    }

    /// Begins a run: what happened since the last one says nothing about the device.
    pub(super) fn begin(&mut self) {
        self.last = None;
    }

    /// Adapts the limit to a submission of `flops` that was found to be done at `now`. It began when the one before was
    /// done, because two are in flight.
    pub(super) fn done(&mut self, flops: u64, now: Instant) {
        // The rest of a run can be too short to tell anything. At the least limit some submissions have half of it.
        if let Some(last) = self.last.replace(now)
            && 2 * flops >= self.first
        {
            // A time of zero is possible where the clock is coarse, and gives the largest number.
            let within = flops as f64 * SUBMISSION.as_secs_f64() / (now - last).as_secs_f64();
            // Where the host notices one end late, the time to the next is too short. So the limit rises step by step.
            let most = FASTEST * self.first;
            self.most = (within as u64).clamp(self.first, most.min(GROWTH * self.most));
        }
    }
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

    /// Returns the lengths of the submissions of a run, for units of so many floating-point operations.
    fn lengths(flops: &[u64], pace: &Pace) -> Vec<usize> {
        let (mut rest, mut limit, mut lengths) = (flops, None, Vec::new());
        while !rest.is_empty() {
            limit = Some(pace.limit(limit));
            lengths.push(fitting(rest.iter().copied(), limit.expect("it was just set")));
            rest = &rest[lengths[lengths.len() - 1]..];
        }
        lengths
    }

    #[test]
    fn submissions_grow_up_to_the_limit() {
        let pace = Pace { first: 10, most: 80, last: None };
        assert_eq!(lengths(&[1; 1000], &pace), [10, 40, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 70]);
        assert_eq!(lengths(&[100, 0, 0, 7, 7, 100], &pace), [1, 4, 1], "what exceeds the limit is alone");
        assert_eq!(lengths(&[0; 5], &pace), [5]);
        assert_eq!(fitting(std::iter::empty(), 80), 0, "nothing is submitted for nothing");
        let slow = Pace { most: 15, ..pace };
        assert_eq!(slow.limit(Some(80)), 15, "the next submission follows what was measured since the last");
    }

    #[test]
    fn the_limit_follows_the_speed_of_the_device() {
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let mut pace = Pace::of(AdapterKind::Integrated);
        pace.done(2_500_000_000, at(1.0));
        assert_eq!(pace.most, 20_000_000_000, "when the first one began is not known");
        pace.done(10_000_000_000, at(2.0));
        assert_eq!(pace.most, 2_500_000_000, "a quarter of a second at 10 GFLOP/s");
        pace.done(2_000_000_000, at(2.0625));
        assert_eq!(pace.most, 8_000_000_000, "at 32 GFLOP/s");
        pace.done(1_000_000, at(3.0));
        assert_eq!(pace.most, 8_000_000_000, "the rest of a run tells nothing");
        pace.begin();
        pace.done(10_000_000_000, at(60.0));
        assert_eq!(pace.most, 8_000_000_000, "nor does the time between two runs");
        pace.done(10_000_000_000, at(160.0));
        assert_eq!(pace.most, 2_500_000_000, "no less than the first of a run");
        for most in [10, 40, 160, 640, 640] {
            pace.done(2_500_000_000, at(160.0));
            assert_eq!(pace.most, most * 1_000_000_000, "four times the last, and 256 times the first at most");
        }
    }
}

//! Execution times of dispatches, measured with timestamp queries or, where the device has none, with a wall clock.

use crate::buffer::{Buffer, Role};
use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::pass::{Bound, Dispatch};
use std::slice;
use std::time::Instant;

/// Largest number of passes that are timed in one submission.
const PASSES: u32 = 32;

/// Seconds that several passes in one submission may take together. This is far below the two seconds after which
/// Windows resets a device.
const TOGETHER: f64 = 0.25;

/// Size of a timestamp in bytes.
const STAMP: u64 = 8;

/// A stopwatch for dispatches. It holds the queries and buffers that timing needs, and can be used any number of times.
#[derive(Debug)]
pub struct Timer<'a> {
    gpu: &'a Gpu,
    /// `None` if the device has no timestamps; a wall clock is used then.
    queries: Option<Queries>,
}

#[derive(Debug)]
struct Queries {
    set: wgpu::QuerySet,
    resolved: Buffer,
    staging: Buffer,
    /// Nanoseconds per tick of the timestamp counter.
    period: f32,
}

impl<'a> Timer<'a> {
    /// Creates a timer for a device.
    ///
    /// # Errors
    /// If the device has not enough memory or is lost.
    pub fn new(gpu: &'a Gpu) -> Result<Self, RuntimeError> {
        if !gpu.caps().timestamps {
            return Ok(Self { gpu, queries: None });
        }
        let (ty, count) = (wgpu::QueryType::Timestamp, 2 * PASSES);
        let descriptor = wgpu::QuerySetDescriptor { label: Some("timestamps"), ty, count };
        let set = gpu.scoped("timestamps", None, || gpu.device.create_query_set(&descriptor))?;
        let bytes = u64::from(count) * STAMP;
        let resolved = gpu.buffer("timestamps", bytes, Role::Timestamps)?;
        let staging = gpu.buffer("timestamps staging", bytes, Role::Staging)?;
        let period = gpu.queue.get_timestamp_period();
        Ok(Self { gpu, queries: Some(Queries { set, resolved, staging, period }) })
    }

    /// Returns the device.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Returns a description of the clock for people: `timestamps of the device` or `wall clock`.
    pub fn clock(&self) -> &'static str {
        if self.queries.is_some() { "timestamps of the device" } else { "wall clock" }
    }

    /// Runs the dispatches in order, each once and in a pass of its own, and returns the seconds of each. With
    /// timestamps, up to 32 passes share a submission. Times of a wall clock include the submission and the wait for the
    /// device.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission.
    pub fn time_each(&self, dispatches: &[&Dispatch]) -> Result<Vec<f64>, RuntimeError> {
        let parts = dispatches.chunks(PASSES as usize).map(|part| self.together(part));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Cycles through the dispatches, one in each pass, for `repeats` passes in total, and returns the seconds of every
    /// pass.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission.
    ///
    /// # Panics
    /// If `dispatches` is empty and `repeats` is not zero.
    pub fn time_in_turn(&self, dispatches: &[Dispatch], repeats: usize) -> Result<Vec<f64>, RuntimeError> {
        let nth = |n: usize| &dispatches[n % dispatches.len()];
        let mut seconds: Vec<f64> = Vec::with_capacity(repeats);
        while seconds.len() < repeats {
            // The first pass runs alone. Its time decides how many passes share a submission.
            let most = seconds.first().map_or(1, |first| (TOGETHER / first).clamp(1.0, f64::from(PASSES)) as usize);
            let next = seconds.len()..repeats.min(seconds.len() + most);
            seconds.extend(self.together(&next.map(nth).collect::<Vec<_>>())?);
        }
        Ok(seconds)
    }

    /// Runs a dispatch `times` times in one pass, each after the one before has ended if it writes what it reads, and
    /// returns the seconds of the pass.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission.
    pub fn time_in_one_pass(&self, dispatch: &Dispatch, times: usize) -> Result<f64, RuntimeError> {
        let pass = vec![dispatch; times];
        if let Some(queries) = &self.queries {
            return Ok(queries.time(self.gpu, &[&pass])?[0]);
        }
        let start = Instant::now();
        self.gpu.submit(pass)?;
        self.gpu.wait()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs at most [`PASSES`] dispatches, each in a pass of its own, and returns the seconds of each. Only with
    /// timestamps do they share a submission.
    fn together(&self, dispatches: &[&Dispatch]) -> Result<Vec<f64>, RuntimeError> {
        if let Some(queries) = &self.queries {
            let passes: Vec<&[&Dispatch]> = dispatches.iter().map(slice::from_ref).collect();
            return queries.time(self.gpu, &passes);
        }
        let alone = |dispatch: &&Dispatch| {
            let start = Instant::now();
            self.gpu.submit([*dispatch])?;
            self.gpu.wait()?;
            Ok(start.elapsed().as_secs_f64())
        };
        dispatches.iter().map(alone).collect()
    }
}

impl Queries {
    /// Runs at most [`PASSES`] passes in one submission, and returns the seconds of each.
    fn time(&self, gpu: &Gpu, passes: &[&[&Dispatch]]) -> Result<Vec<f64>, RuntimeError> {
        let start = Instant::now();
        let stamps = 2 * u32::try_from(passes.len()).expect("a few passes");
        gpu.scoped("a timed pass", None, || {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for (pass, dispatches) in (0..).zip(passes) {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: &self.set,
                    beginning_of_pass_write_index: Some(2 * pass),
                    end_of_pass_write_index: Some(2 * pass + 1),
                });
                let descriptor = wgpu::ComputePassDescriptor { label: Some("a timed pass"), timestamp_writes };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                dispatches.iter().for_each(|dispatch| dispatch.record(&mut pass));
            }
            encoder.resolve_query_set(&self.set, 0..stamps, &self.resolved.raw, 0);
            gpu.queue.submit([encoder.finish()]);
        })?;
        let bytes = gpu.download(Bound::prefix(&self.resolved, u64::from(stamps) * STAMP), &self.staging)?;
        let stamps: Vec<u64> =
            bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of eight bytes"))).collect();
        let share = start.elapsed().as_secs_f64() / passes.len() as f64;
        Ok(stamps.as_chunks().0.iter().map(|edges| passed(*edges, self.period, share)).collect())
    }
}

/// Returns the seconds between two timestamps, whose counter takes `period` nanoseconds for a tick.
///
/// Counters of some drivers stand still or go backwards while the device sleeps. Such a pass gets an equal `share` of the
/// submission's time by the wall clock: a pass of no time would look faster than every other, and would let any number of
/// passes share a submission.
fn passed([begin, end]: [u64; 2], period: f32, share: f64) -> f64 {
    match end.saturating_sub(begin) {
        0 => share,
        ticks => ticks as f64 * f64::from(period) * 1e-9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_seconds() {
        let begin = 1 << 40;
        for (ticks, period, seconds) in [(1_000_000_000, 1.0, 1.0), (1, 40.0, 4e-8), (19_200_000, 52.0, 0.9984)] {
            let found = passed([begin, begin + ticks], period, 7.0);
            assert!((found - seconds).abs() < 1e-12, "{ticks} ticks of {period} ns: {found}, expected {seconds}");
        }
    }

    #[test]
    fn a_counter_that_stands_still_or_goes_backwards_gives_the_share_of_the_wall_clock() {
        for end in [500, 499, 0] {
            assert_eq!(passed([500, end], 1.0, 0.125), 0.125, "from 500 to {end}");
        }
    }
}

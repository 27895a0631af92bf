//! How long dispatches take on the device: timestamps at the edges of a pass, or a wall clock where there are none.

use crate::buffer::{Buffer, Role};
use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::pass::Dispatch;
use std::time::Instant;

/// Passes that are timed in one submission, at most.
const PASSES: u32 = 32;

/// Seconds that several passes in one submission may take: far below the two after which Windows gives a device up.
const TOGETHER: f64 = 0.25;

/// Bytes of a timestamp.
const STAMP: u64 = 8;

/// Makes what timing needs once, and times whatever it is given.
#[derive(Debug)]
pub struct Timer {
    /// Absent where the device has no timestamps.
    queries: Option<Queries>,
}

#[derive(Debug)]
struct Queries {
    set: wgpu::QuerySet,
    resolved: Buffer,
    staging: Buffer,
    /// Seconds a timestamp counts.
    tick: f64,
}

impl Timer {
    /// A timer for this device.
    ///
    /// # Errors
    /// If the device has no room for it or is lost.
    pub fn new(gpu: &Gpu) -> Result<Self, RuntimeError> {
        if !gpu.caps().timestamps {
            return Ok(Self { queries: None });
        }
        let (ty, count) = (wgpu::QueryType::Timestamp, 2 * PASSES);
        let descriptor = wgpu::QuerySetDescriptor { label: Some("timestamps"), ty, count };
        let set = gpu.scoped("timestamps", 0, || gpu.device.create_query_set(&descriptor))?;
        let bytes = u64::from(count) * STAMP;
        let resolved = gpu.buffer("timestamps", bytes, Role::Timestamps)?;
        let staging = gpu.buffer("timestamps on their way", bytes, Role::Staging)?;
        let tick = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
        Ok(Self { queries: Some(Queries { set, resolved, staging, tick }) })
    }

    /// What the times are taken with, for people.
    pub fn clock(&self) -> &'static str {
        if self.queries.is_some() { "timestamps of the device" } else { "wall clock" }
    }

    /// Runs the dispatches in order, each in a pass of its own and many of them in one submission; the seconds of each.
    ///
    /// # Errors
    /// As [`time`](Self::time).
    pub fn time_each(&self, gpu: &Gpu, dispatches: &[&Dispatch]) -> Result<Vec<f64>, RuntimeError> {
        let Some(queries) = &self.queries else {
            let alone = dispatches.iter().map(|dispatch| self.time(gpu, &[*dispatch], 1));
            return Ok(alone.collect::<Result<Vec<_>, _>>()?.concat());
        };
        let part = |part: &[&Dispatch]| queries.time(gpu, &part.iter().map(std::slice::from_ref).collect::<Vec<_>>());
        Ok(dispatches.chunks(PASSES as usize).map(part).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Runs the dispatches in order, in one pass, `repeats` times; the seconds of every pass. A wall clock counts the
    /// way to the device and back, too.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission.
    pub fn time(&self, gpu: &Gpu, dispatches: &[&Dispatch], repeats: usize) -> Result<Vec<f64>, RuntimeError> {
        self.time_passes(gpu, &[dispatches], repeats)
    }

    /// Runs one of the dispatches after the other, each in a pass of its own, `repeats` passes in all; the seconds of every
    /// pass.
    ///
    /// # Errors
    /// As [`time`](Self::time).
    pub fn time_in_turn(&self, gpu: &Gpu, dispatches: &[Dispatch], repeats: usize) -> Result<Vec<f64>, RuntimeError> {
        let alone: Vec<[&Dispatch; 1]> = dispatches.iter().map(|dispatch| [dispatch]).collect();
        self.time_passes(gpu, &alone.iter().map(<[_; 1]>::as_slice).collect::<Vec<_>>(), repeats)
    }

    fn time_passes(&self, gpu: &Gpu, passes: &[&[&Dispatch]], repeats: usize) -> Result<Vec<f64>, RuntimeError> {
        let nth = |n: usize| passes[n % passes.len()];
        let Some(queries) = &self.queries else {
            let once = |n: usize| {
                let start = Instant::now();
                gpu.submit(nth(n).iter().copied())?;
                gpu.wait()?;
                Ok(start.elapsed().as_secs_f64())
            };
            return (0..repeats).map(once).collect();
        };
        let mut seconds: Vec<f64> = Vec::with_capacity(repeats);
        while seconds.len() < repeats {
            // The first alone: it says how many of its kind go together.
            let most = seconds.first().map_or(1, |first| (TOGETHER / first).clamp(1.0, f64::from(PASSES)) as usize);
            let next = seconds.len()..repeats.min(seconds.len() + most);
            seconds.extend(queries.time(gpu, &next.map(nth).collect::<Vec<_>>())?);
        }
        Ok(seconds)
    }
}

impl Queries {
    /// The seconds of each pass; at most [`PASSES`].
    fn time(&self, gpu: &Gpu, passes: &[&[&Dispatch]]) -> Result<Vec<f64>, RuntimeError> {
        let stamps = 2 * u32::try_from(passes.len()).expect("a few passes");
        gpu.scoped("a timed pass", 0, || {
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
        let bytes = gpu.download(&self.resolved, &self.staging, u64::from(stamps) * STAMP)?;
        let stamps: Vec<u64> =
            bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of eight bytes"))).collect();
        // A counter that went backwards, which some drivers' do when the device sleeps, counts as no time at all.
        Ok(stamps.chunks_exact(2).map(|edge| edge[1].saturating_sub(edge[0]) as f64 * self.tick).collect())
    }
}

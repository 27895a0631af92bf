//! Dispatches: pipelines with bound operands, which are made once and replayed in compute passes.

use crate::buffer::Buffer;
use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::incidents::Incidents;
use crate::pipeline::{Binding, Pipeline};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A byte range of a buffer, to be bound, copied, written or read.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// Buffer that the range belongs to.
    pub buffer: &'a Buffer,
    /// First byte. It must be a multiple of [`Caps::uniform_alignment`](crate::Caps::uniform_alignment) in a uniform
    /// binding, of wgpu's `min_storage_buffer_offset_alignment` (at most 256) in a storage binding, and of four in a
    /// transfer.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl<'a> Bound<'a> {
    /// Returns the range of a whole buffer. `&Buffer` converts into it, too.
    pub fn whole(buffer: &'a Buffer) -> Self {
        Self::prefix(buffer, buffer.bytes())
    }

    /// Returns the range of the first `bytes` of a buffer.
    pub fn prefix(buffer: &'a Buffer, bytes: u64) -> Self {
        Self { buffer, offset: 0, bytes }
    }

    fn entry(&self, binding: u32) -> wgpu::BindGroupEntry<'a> {
        wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &self.buffer.raw,
                offset: self.offset,
                size: wgpu::BufferSize::new(self.bytes),
            }),
        }
    }
}

impl<'a> From<&'a Buffer> for Bound<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::whole(buffer)
    }
}

/// A pipeline with its operands and its grid, ready to be submitted any number of times. Others may be appended that
/// always follow it, see [`then`](Self::then).
#[derive(Debug)]
pub struct Dispatch {
    calls: Vec<Call>,
}

/// One pipeline with its operands and its grid.
#[derive(Debug)]
struct Call {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Dispatch {
    /// Appends another dispatch, with all that was appended to it.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        self.calls.extend(next.calls);
        self
    }

    /// Records the dispatch, and those appended to it, into a pass.
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for Call { pipeline, bind_group, grid: [x, y, z] } in &self.calls {
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }
}

/// Handle of a submission made by [`Gpu::start`], which can be waited for with [`Gpu::wait_for`] or
/// [`Gpu::finished_for`].
#[derive(Clone, Debug)]
pub struct Submission {
    pub(crate) index: wgpu::SubmissionIndex,
    /// Identifies the device on which it was made.
    pub(crate) device: Arc<Incidents>,
}

impl Gpu {
    /// Binds `operands` to the bindings of group 0 of a pipeline, in order, and fixes the grid: the number of
    /// workgroups along x, y and z. There is no operand for a [`Binding::Absent`].
    ///
    /// The pipeline's shader must honour the contract stated at [`pipeline`](Self::pipeline) with these operands and
    /// this grid; the runtime does not check that.
    ///
    /// # Errors
    /// [`RuntimeError::TooMany`] if the grid has more workgroups along an axis than the adapter allows,
    /// [`RuntimeError::Validation`] if there are more or fewer operands than bindings, or an operand does not fit its
    /// binding or is empty, or an error of the device.
    pub fn dispatch(
        &self,
        label: &str,
        pipeline: &Arc<Pipeline>,
        operands: &[Bound<'_>],
        grid: [u32; 3],
    ) -> Result<Dispatch, RuntimeError> {
        // On a lost device that is the error, whatever else is wrong.
        self.incident(label)?;
        let (most, allowed) = (grid.into_iter().max().unwrap_or(0), self.caps().max_groups);
        if most > allowed {
            let (what, unit) = (label.to_owned(), "workgroups along one axis");
            return Err(RuntimeError::TooMany { what, count: most.into(), unit, allowed: allowed.into() });
        }
        let refused = |message| RuntimeError::Validation { what: label.to_owned(), message };
        let present = (0..).zip(&pipeline.bindings).filter(|(_, binding)| **binding != Binding::Absent);
        let numbers: Vec<u32> = present.map(|(number, _)| number).collect();
        if numbers.len() != operands.len() {
            let (bindings, found) = (numbers.len(), operands.len());
            return Err(refused(format!("expected {bindings} operands, found {found}")));
        }
        if let Some(empty) = operands.iter().find(|bound| bound.bytes == 0) {
            // wgpu would take a size of zero for everything up to the end of the buffer.
            return Err(refused(format!("the range of `{}` that is bound is empty", empty.buffer.label())));
        }
        let entries: Vec<_> = numbers.into_iter().zip(operands).map(|(number, bound)| bound.entry(number)).collect();
        let layout = &pipeline.layout;
        let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
        let bind_group = self.scoped(label, None, || self.device.create_bind_group(&descriptor))?;
        Ok(Dispatch { calls: vec![Call { pipeline: Arc::clone(pipeline), bind_group, grid }] })
    }

    /// Submits dispatches in order, in one compute pass, and returns without waiting for them. Each dispatch sees what
    /// the ones before it wrote.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission. Errors that occur later on the device are returned by later
    /// calls.
    pub fn submit<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<(), RuntimeError> {
        self.start(dispatches).map(drop)
    }

    /// Submits dispatches as [`submit`](Self::submit) does, and returns a handle with which this submission can be
    /// waited for.
    ///
    /// # Errors
    /// The errors of [`submit`](Self::submit).
    pub fn start<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<Submission, RuntimeError> {
        // The caller's iterator is run to its end first: it may take time, panic or use the device itself.
        let dispatches: Vec<&Dispatch> = dispatches.into_iter().collect();
        let mut passes = self.tally.passes();
        let index = self.counted("a compute pass", &mut passes, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for dispatch in dispatches {
                    dispatch.record(&mut pass);
                }
                self.tally.count(&mut pass);
            }
            self.queue.submit([encoder.finish()])
        })?;
        // Staging memory of the uploads so far is freed once this submission is done.
        self.pending_upload.store(0, Ordering::Relaxed);
        Ok(Submission { index, device: Arc::clone(&self.incidents) })
    }
}

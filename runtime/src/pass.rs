//! A list of dispatches, bound once and replayed in one compute pass.

use crate::buffer::Buffer;
use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::pipeline::{Binding, Pipeline};
use std::sync::Arc;

/// A range of a buffer at a binding of group 0.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte; a multiple of the alignment in `Caps` for a uniform.
    pub offset: u64,
    /// Bytes that are bound.
    pub bytes: u64,
}

impl<'a> Bound<'a> {
    /// The whole buffer.
    pub fn whole(buffer: &'a Buffer) -> Self {
        Self { buffer, offset: 0, bytes: buffer.bytes() }
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

/// One kernel with its operands, ready to run: one dispatch, or several that always follow each other.
#[derive(Debug)]
pub struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
    next: Option<Box<Self>>,
}

impl Dispatch {
    /// The same, with another one after it.
    pub fn then(mut self, next: Self) -> Self {
        self.next = Some(Box::new(match self.next.take() {
            Some(own) => own.then(next),
            None => next,
        }));
        self
    }

    /// Appends itself to a pass.
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.raw);
        pass.set_bind_group(0, &self.bind_group, &[]);
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
        if let Some(next) = &self.next {
            next.record(pass);
        }
    }
}

/// What was submitted together, see [`Gpu::start`].
#[derive(Clone, Debug)]
pub struct Submission(pub(crate) wgpu::SubmissionIndex);

impl Gpu {
    /// Binds `operands`, in binding order, to a pipeline.
    ///
    /// # Errors
    /// If an operand does not fit its binding, or the grid has more workgroups on an axis than the adapter allows.
    pub fn dispatch(
        &self,
        label: &str,
        pipeline: &Arc<Pipeline>,
        operands: &[Bound<'_>],
        grid: [u32; 3],
    ) -> Result<Dispatch, RuntimeError> {
        let (most, allowed) = (grid.into_iter().max().unwrap_or(0), self.caps().max_groups);
        if most > allowed {
            let (what, unit) = (label.to_owned(), "workgroups on an axis");
            return Err(RuntimeError::TooMany { what, count: most.into(), unit, allowed: allowed.into() });
        }
        let present = operands.iter().enumerate().filter(|(i, _)| pipeline.bindings.get(*i) != Some(&Binding::Absent));
        let present: Vec<_> = present.collect();
        if let Some((_, empty)) = present.iter().find(|(_, bound)| bound.bytes == 0) {
            // To wgpu it would be everything up to the end of the buffer.
            let message = format!("no byte of `{}` is bound", empty.buffer.label());
            return Err(RuntimeError::Validation { what: label.to_owned(), message });
        }
        let entries: Vec<_> = present.into_iter().map(|(i, bound)| bound.entry(i as u32)).collect();
        let layout = &pipeline.layout;
        let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
        let bind_group = self.scoped(label, 0, || self.device.create_bind_group(&descriptor))?;
        Ok(Dispatch { pipeline: Arc::clone(pipeline), bind_group, grid, next: None })
    }

    /// Submits dispatches in order, in one compute pass, and returns without waiting for them.
    ///
    /// # Errors
    /// If the device is lost or refuses the submission.
    pub fn submit<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<(), RuntimeError> {
        self.start(dispatches).map(drop)
    }

    /// The same, to be waited for by itself.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn start<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<Submission, RuntimeError> {
        let mut passes = self.tally.passes();
        let submitted = self.scoped("a compute pass", 0, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for dispatch in dispatches {
                    dispatch.record(&mut pass);
                }
                self.tally.count(&mut pass);
            }
            Submission(self.queue.submit([encoder.finish()]))
        })?;
        *passes = passes.wrapping_add(1);
        Ok(submitted)
    }
}

//! A counter of compute passes in device memory, which reveals passes that the device did not carry out.
//!
//! wgpu 30 treats a command buffer that failed on Metal as done. This happens if memory runs out, a time limit passes
//! or the application goes into the background. A read-back then returns what was in the buffer before, such as the
//! previous picture. Therefore every pass ends by incrementing a counter on the device, and every read-back carries the
//! counter along, so that the host can compare it with its own count.

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::incidents::locked;
use crate::pipeline::module;
use std::sync::{Mutex, MutexGuard};

const ADD_ONE: &str = "
@group(0) @binding(0) var<storage, read_write> passes: u32;
@compute @workgroup_size(1)
fn main() {
    passes += 1u;
}
";

/// The count of passes on the device and on the host.
#[derive(Debug)]
pub(crate) struct Tally {
    add_one: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    counter: wgpu::Buffer,
    passes: Mutex<u32>,
}

impl Tally {
    /// Size of the counter in bytes.
    pub(crate) const BYTES: u64 = 4;

    pub(crate) fn new(device: &wgpu::Device, shader_checks: bool) -> Self {
        let label = Some("passes");
        let source = wgpu::ShaderSource::Wgsl(ADD_ONE.into());
        let module = module(device, shader_checks, wgpu::ShaderModuleDescriptor { label, source });
        let add_one = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let descriptor = wgpu::BufferDescriptor { label, size: Self::BYTES, usage, mapped_at_creation: false };
        let counter = device.create_buffer(&descriptor);
        let entries = &[wgpu::BindGroupEntry { binding: 0, resource: counter.as_entire_binding() }];
        let layout = &add_one.get_bind_group_layout(0);
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout, entries });
        Self { add_one, bind_group, counter, passes: Mutex::new(0) }
    }

    /// Locks the host's count. The lock is held while a pass is submitted, so that both counts change in the same
    /// order.
    pub(crate) fn passes(&self) -> MutexGuard<'_, u32> {
        locked(&self.passes)
    }

    /// Records the increment that ends a pass.
    pub(crate) fn count(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.add_one);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Records a copy of the device's count to a buffer.
    pub(crate) fn copy(&self, encoder: &mut wgpu::CommandEncoder, to: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(&self.counter, 0, to, offset, Self::BYTES);
    }
}

impl Gpu {
    /// Increments the host's count of passes only, as if the driver had skipped a submitted pass. This is meant for
    /// tests of error handling: the next read-back returns [`RuntimeError::Lost`].
    pub fn forget_a_pass(&self) {
        let mut passes = self.tally.passes();
        *passes = passes.wrapping_add(1);
    }

    /// Reports an error outside of any call, as wgpu may while another thread waits for the device. This is meant for
    /// tests of error handling: the next call that takes such errors returns [`RuntimeError::Validation`].
    pub fn complain(&self, message: &str) {
        locked(&self.incidents.uncaptured).push(message.to_owned());
    }

    /// Panics within a call to the device and catches it, as happens where wgpu panics because a driver failed. This is
    /// meant for tests of error handling.
    ///
    /// # Errors
    /// [`RuntimeError::Lost`] with this message, here and in every later call.
    pub fn break_down(&self, message: &'static str) -> Result<(), RuntimeError> {
        self.scoped("a call that breaks down", None, || std::panic::resume_unwind(Box::new(message)))
    }
}

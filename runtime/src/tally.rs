//! A count of compute passes that the device keeps itself, so that what it did not carry out is seen.
//!
//! wgpu 30 takes a command buffer that failed on Metal for one that is done: memory ran out, a time limit passed, the app
//! went into the background. What is read then is what lay there before, such as the picture before this one. So every pass
//! ends by adding one to a counter, and whatever is read brings the counter along.

use crate::device::{Gpu, locked};
use std::sync::{Mutex, MutexGuard};

const ADD_ONE: &str = "
@group(0) @binding(0) var<storage, read_write> passes: u32;
@compute @workgroup_size(1)
fn main() {
    passes += 1u;
}
";

/// The device's count and the host's.
#[derive(Debug)]
pub(crate) struct Tally {
    add_one: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    counter: wgpu::Buffer,
    passes: Mutex<u32>,
}

impl Tally {
    /// Bytes of the counter.
    pub(crate) const BYTES: u64 = 4;

    pub(crate) fn new(device: &wgpu::Device) -> Self {
        let label = Some("passes");
        let source = wgpu::ShaderSource::Wgsl(ADD_ONE.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
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

    /// The host's count. Whoever submits a pass holds it, so that both counts go through the same order.
    pub(crate) fn passes(&self) -> MutexGuard<'_, u32> {
        locked(&self.passes)
    }

    /// Ends a pass.
    pub(crate) fn count(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.add_one);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Copies the device's count.
    pub(crate) fn copy(&self, encoder: &mut wgpu::CommandEncoder, to: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(&self.counter, 0, to, offset, Self::BYTES);
    }
}

impl Gpu {
    /// For tests: behaves as if a pass had been submitted that the driver gave up without a word.
    pub fn forget_a_pass(&self) {
        let mut passes = self.tally.passes();
        *passes = passes.wrapping_add(1);
    }
}

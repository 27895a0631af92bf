//! Compute pipelines, compiled once for each module text and shared by everything that runs on the device.

use crate::device::Gpu;
use crate::error::RuntimeError;
use crate::incidents::locked;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Kind of a binding of group 0, as a shader declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer with `read` access.
    Read,
    /// A storage buffer with `read_write` access.
    Write,
    /// No binding: the shader does not declare this number, and a dispatch binds nothing to it.
    Absent,
}

/// A compiled compute shader, made by [`Gpu::pipeline`].
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) raw: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) bindings: Vec<Binding>,
}

/// Key of a pipeline: the module's text, which includes the constants, and the bindings. The entry point is always
/// `main`.
type Key = (String, Vec<Binding>);

/// Slot of a pipeline, which is empty until a thread has compiled it.
type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// All compiled pipelines of a device. The map is locked only to look up a slot, and a slot is locked while its
/// pipeline is compiled. So threads that want different pipelines do not wait for each other, and no pipeline is
/// compiled twice.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(Mutex<HashMap<Key, Slot>>);

impl Gpu {
    /// Returns the pipeline of a WGSL module, which is compiled on the first call and cached. `bindings` lists the
    /// bindings of group 0 in order; the entry point is `main`.
    ///
    /// Threads can compile different pipelines at the same time. This pays off, since compiling is most of the work of
    /// preparing a network. An error that is dropped is not lost: it is met again by the next call for this pipeline, or,
    /// if it is the loss of the device, by every call.
    ///
    /// # Shader contract
    /// The module is always parsed and validated. On a device from [`open`](Self::open), however, it is compiled
    /// without runtime checks, and on Vulkan the driver's own checks (robust buffer access) are off as well. This
    /// method is not an `unsafe fn`, because this crate trusts every shader it is given: the caller vouches for the
    /// following, for every [`Dispatch`](crate::Dispatch) made from the pipeline, with its grid, its operands and the
    /// data in them.
    ///
    /// * Every index lies within its array, vector or matrix, and within the range of the buffer that is bound.
    /// * No integer division or remainder has a divisor of zero.
    /// * Every loop ends.
    /// * Loads and stores of cooperative matrices lie within their arrays, and all invocations of a subgroup execute
    ///   them together. wgpu does not check this on any device.
    /// * Workgroup memory is written before it is read. It is not initialised to zero on any device.
    ///
    /// A shader that breaks one of the first four rules has undefined behaviour: it may read or overwrite other memory,
    /// return wrong results or hang the device. Breaking the last rule makes results indeterminate. Shaders from an
    /// untrusted source belong on a device from [`open_checked`](Self::open_checked), which enforces the first three
    /// rules, and must not use cooperative matrices.
    ///
    /// # Errors
    /// [`RuntimeError::TooMany`] if there are more storage buffers than the adapter allows,
    /// [`RuntimeError::Validation`] with wgpu's message and the offending lines if the module is refused,
    /// [`RuntimeError::OutOfMemory`], or [`RuntimeError::Lost`].
    pub fn pipeline(&self, label: &str, wgsl: &str, bindings: &[Binding]) -> Result<Arc<Pipeline>, RuntimeError> {
        let is_storage = |binding: &&Binding| matches!(binding, Binding::Read | Binding::Write);
        let (storage, allowed) = (bindings.iter().filter(is_storage).count(), self.caps().max_storage_buffers);
        if storage > allowed as usize {
            let (what, unit) = (label.to_owned(), "storage buffers");
            return Err(RuntimeError::TooMany { what, count: storage as u64, unit, allowed: allowed.into() });
        }
        let key = (wgsl.to_owned(), bindings.to_owned());
        let slot = Arc::clone(locked(&self.pipelines.0).entry(key).or_default());
        let mut slot = locked(&slot);
        if let Some(pipeline) = &*slot {
            return Ok(Arc::clone(pipeline));
        }
        // Errors that other calls have caused are not taken here, as they are reported once only: a thread that compiles
        // ahead drops the errors it meets.
        let not_lost = || self.incidents.loss().map_or(Ok(()), Err);
        not_lost()?;
        let made = Arc::new(self.caught(label, None, || self.compile(label, wgsl, bindings))?);
        not_lost()?;
        self.pipelines_made.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(slot.insert(made)))
    }

    fn compile(&self, label: &str, wgsl: &str, bindings: &[Binding]) -> Pipeline {
        let source = wgpu::ShaderSource::Wgsl(wgsl.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(label), source };
        let module = module(&self.device, self.shader_checks, descriptor);
        let entries: Vec<wgpu::BindGroupLayoutEntry> =
            (0..).zip(bindings).filter_map(|(i, b)| layout_entry(i, *b)).collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Part of the shader contract: workgroup memory is written before it is read.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.pipeline_file.as_ref().map(|file| &file.raw),
        });
        Pipeline { raw, layout, bindings: bindings.to_vec() }
    }
}

/// Compiles a module with runtime checks or without, as the device was opened.
#[expect(unsafe_code, reason = "wgpu's checks keep drivers from unrolling loops, and slow down every access")]
pub(crate) fn module(
    device: &wgpu::Device,
    shader_checks: bool,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    if shader_checks {
        return device.create_shader_module(descriptor);
    }
    // SAFETY: the module must keep to the shader contract of `Gpu::pipeline`, for which its caller vouches. The counter
    // of `Tally` accesses the one word that is bound. The shaders of this project bound every access by the sizes from
    // which the graph derives both the grid and the bindings, and every loop by a constant or such a size.
    // tests/kernels.rs runs each of them with checks and without, between fences, with the same results;
    // tests/shaders.rs validates every variant of every case with naga.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// Returns the layout of a binding; `None` if it is absent.
fn layout_entry(binding: u32, kind: Binding) -> Option<wgpu::BindGroupLayoutEntry> {
    let ty = match kind {
        Binding::Uniform => wgpu::BufferBindingType::Uniform,
        Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
        Binding::Absent => return None,
    };
    Some(wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    })
}

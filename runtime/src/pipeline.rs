//! Pipelines: compiled once per module text, shared by everything that runs on the device.

use crate::device::{Gpu, locked};
use crate::error::RuntimeError;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What a module expects at a binding of group 0, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is written.
    Write,
    /// Nothing: the module does not declare it. What is bound there is ignored.
    Absent,
}

/// A compiled kernel.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) raw: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) bindings: Vec<Binding>,
}

/// What tells pipelines apart: the text, which holds source and constants, and the bindings. The entry point is always
/// `main`.
type Key = (String, Vec<Binding>);

/// Where a pipeline will be, once somebody has compiled it.
type Place = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// Compiled kernels. The list is locked only to look up a place; a place is locked while its pipeline is compiled, so
/// that threads which want different ones do not wait for each other, and none is compiled twice.
#[derive(Debug, Default)]
pub(crate) struct Pipelines(Mutex<HashMap<Key, Place>>);

impl Gpu {
    /// The pipeline of a module whose entry point is `main`, compiled on first use. Any number of threads may call this
    /// at a time, and it pays: compiling is most of the work of making a session.
    ///
    /// The module is validated in any case; it is watched as it runs on a device that was opened by
    /// [`open_checked`](Self::open_checked).
    ///
    /// # Errors
    /// If the module is refused: the error holds wgpu's message with the lines of the shader.
    pub fn pipeline(&self, label: &str, wgsl: &str, bindings: &[Binding]) -> Result<Arc<Pipeline>, RuntimeError> {
        let is_storage = |binding: &&Binding| matches!(binding, Binding::Read | Binding::Write);
        let (storage, allowed) = (bindings.iter().filter(is_storage).count(), self.caps().max_storage_buffers);
        if storage > allowed as usize {
            let (what, unit) = (label.to_owned(), "storage buffers");
            return Err(RuntimeError::TooMany { what, count: storage as u64, unit, allowed: allowed.into() });
        }
        let key = (wgsl.to_owned(), bindings.to_owned());
        let place = Arc::clone(locked(&self.pipelines.0).entry(key).or_default());
        let mut place = locked(&place);
        if let Some(pipeline) = &*place {
            return Ok(Arc::clone(pipeline));
        }
        let made = Arc::new(self.scoped(label, 0, || self.compile(label, wgsl, bindings))?);
        self.pipelines_made.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(place.insert(made)))
    }

    fn compile(&self, label: &str, wgsl: &str, bindings: &[Binding]) -> Pipeline {
        let source = wgpu::ShaderSource::Wgsl(wgsl.into());
        let module = self.module(wgpu::ShaderModuleDescriptor { label: Some(label), source });
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
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.pipeline_file.as_ref().map(|file| &file.raw),
        });
        Pipeline { raw, layout, bindings: bindings.to_vec() }
    }

    #[expect(unsafe_code, reason = "wgpu's checks keep drivers from unrolling loops, and cost every access")]
    fn module(&self, descriptor: wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule {
        if self.shader_checks {
            return self.device.create_shader_module(descriptor);
        }
        // SAFETY: without checks, and on Vulkan without the driver's, no index may lie beyond its array or binding, no
        // divisor be zero, no loop endless. Our modules bound every access by sizes that the graph made both the grid and
        // the bindings of, and every loop by a constant or such a size. tests/kernels.rs runs each of them with checks and
        // without, between fences, with the same results; tests/shaders.rs has naga validate every variant of every case.
        unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    }
}

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

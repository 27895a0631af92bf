//! The decisions about a recording on a GPU, which need no weights and no memory of the device.

use super::{compile, limits};
use crate::error::GraphError;
use crate::gpu_plan::GpuPlan;
use crate::plan::Sharing;
use crate::record::Recording;
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::variant::Machine;
use mobilediffusion_kernels::{Stage, Storage, Variant};
use mobilediffusion_runtime::Gpu;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is decided for a recording before anything is made on the device.
pub(super) struct Planned {
    /// Kernel variant of each step.
    pub(super) variants: Vec<Variant>,
    /// Dispatches, each with the number of its step.
    pub(super) stages: Vec<(usize, Stage)>,
    /// Arena and byte offset of each planned tensor.
    pub(super) places: Vec<Option<(usize, usize)>>,
    /// Size of each arena in bytes.
    pub(super) arenas: Vec<usize>,
}

impl Planned {
    pub(super) fn new(
        gpu: &Gpu,
        storage: Storage,
        recording: &Recording,
        sharing: Sharing,
    ) -> Result<Self, GraphError> {
        let variants = recording.variants(&Machine::of(gpu, storage));
        let mut stages = recording.stages(&variants);
        limits::check(gpu, (recording, &stages), storage)?;
        let limit = usize::try_from(gpu.caps().max_buffer_bytes).unwrap_or(usize::MAX / 8);
        let GpuPlan { places, arenas, in_place } = recording.arenas(storage, sharing, limit)?;
        for (step, stage) in stages.iter_mut().filter(|(step, _)| in_place[*step]) {
            let overwritten = recording.nodes[*step].kernel.in_place();
            overwritten.into_iter().for_each(|operand| stage.read_in_place(operand));
        }
        Ok(Self { variants, stages, places, arenas })
    }
}

/// Compiles what a session of a recording will need, on all threads, until `stop` is set. The session finds it compiled;
/// this is for the time that weights take to be loaded. Does nothing on the CPU.
///
/// An error is left to the session, which meets it again and names the step.
pub fn compile_ahead(recording: &Recording, device: &Device, stop: &AtomicBool) {
    let &Device::Gpu(ref gpu, storage) = device else { return };
    if !stop.load(Ordering::Relaxed)
        && let Ok(Planned { stages, .. }) = Planned::new(gpu, storage, recording, Sharing::Planned)
    {
        compile::ahead(gpu, storage, (recording, &stages), stop);
    }
}

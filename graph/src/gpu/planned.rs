//! The decisions about a recording on a GPU, which need no weights and no memory of the device.

use super::{compile, limits, most_flops};
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
    /// Number of dispatches of each step that may be submitted apart from each other.
    pub(super) parts: Vec<u64>,
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
        limits::check_elements(recording)?;
        let variants = recording.variants(&Machine::of(gpu, storage));
        let mut stages = recording.stages(&variants);
        limits::check(gpu, (recording, &stages), storage)?;
        let limit = usize::try_from(gpu.caps().max_buffer_bytes).unwrap_or(usize::MAX / 8);
        let GpuPlan { places, arenas, in_place } = recording.arenas(storage, sharing, limit)?;
        for (step, stage) in stages.iter_mut().filter(|(step, _)| in_place[*step]) {
            let overwritten = recording.nodes[*step].kernel.in_place();
            overwritten.into_iter().for_each(|operand| stage.read_in_place(operand));
        }
        let (stages, parts) = divided(recording, stages, most_flops(gpu.adapter().kind));
        Ok(Self { variants, stages, parts, places, arenas })
    }
}

/// Divides the steps that take more than `most` floating-point operations, if the kernel can be divided. Steps in several
/// stages, of few tiles, remain whole: on hardware they are below the limit. Returns the stages, and the number of parts
/// of each step.
fn divided(recording: &Recording, stages: Vec<(usize, Stage)>, most: u64) -> (Vec<(usize, Stage)>, Vec<u64>) {
    let (mut stages_of, mut parts) = (vec![0; recording.nodes.len()], vec![1; recording.nodes.len()]);
    stages.iter().for_each(|(step, _)| stages_of[*step] += 1);
    let mut all = Vec::with_capacity(stages.len());
    for (step, stage) in stages {
        let wanted = recording.nodes[step].kernel.cost().flops.div_ceil(most);
        if stages_of[step] > 1 || wanted < 2 {
            all.push((step, stage));
            continue;
        }
        let programs = stage.program.divided(wanted);
        parts[step] = programs.len() as u64;
        all.extend(programs.into_iter().map(|program| (step, Stage { program, ..stage.clone() })));
    }
    (all, parts)
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

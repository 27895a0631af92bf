//! The decisions about a recording on a GPU, which need no weights and no memory of the device.

use super::{compile, limits, most_flops};
use crate::error::GraphError;
use crate::gpu_plan::GpuPlan;
use crate::plan::NO_LIMIT;
use crate::record::Recording;
use mobilediffusion_kernels::variant::Machine;
use mobilediffusion_kernels::{Device, GpuDevice, Stage, Storage, Variant};
use std::sync::atomic::{AtomicBool, Ordering};

/// What is decided for a recording before anything is made on the device.
pub(super) struct Planned {
    /// Kernel variant of each step.
    pub(super) variants: Vec<Variant>,
    /// Units of all steps, in order.
    pub(super) units: Vec<PlannedUnit>,
    /// Places of the tensors.
    pub(super) memory: GpuPlan,
}

/// Part of a step that is submitted as a whole.
pub(super) struct PlannedUnit {
    /// Number of the step.
    pub(super) step: usize,
    /// Dispatches, at least one. Each follows the one before it.
    pub(super) stages: Vec<Stage>,
    /// Floating-point operations.
    pub(super) flops: u64,
}

impl Planned {
    pub(super) fn new(device: GpuDevice<'_>, recording: &Recording) -> Result<Self, GraphError> {
        limits::check_elements(recording)?;
        let variants = recording.variants(&Machine::of(device));
        let mut stages = recording.stages(&variants);
        let GpuDevice { gpu, storage } = device;
        limits::check(gpu.caps(), storage, recording, &stages)?;
        let limit = usize::try_from(gpu.caps().max_buffer_bytes).unwrap_or(NO_LIMIT);
        let memory = recording.arenas(storage, limit)?;
        for (step, stages) in stages.iter_mut().enumerate().filter(|(step, _)| memory.in_place[*step]) {
            if let Some(overwritten) = recording.nodes[step].kernel.in_place() {
                stages.iter_mut().for_each(|stage| stage.read_in_place(overwritten));
            }
        }
        let most = most_flops(gpu.adapter().kind);
        let units = |(step, stages)| units(step, stages, recording.nodes[step].kernel.cost().flops, most);
        Ok(Self { variants, units: stages.into_iter().enumerate().flat_map(units).collect(), memory })
    }

    /// Returns the size of the buffer through which the stages of a step pass intermediate results: the largest that
    /// any step needs, in bytes.
    pub(super) fn shared_bytes(&self, recording: &Recording, storage: Storage) -> usize {
        let stages = self.units.iter().flat_map(|unit| unit.stages.iter().map(|stage| (unit.step, stage)));
        let shared = stages.filter_map(|(step, stage)| stage.shared(recording.nodes[step].operands.len()));
        shared.map(|operand| operand.bytes(storage)).max().unwrap_or(0)
    }
}

/// Divides a step that takes more than `most` floating-point operations, if the kernel can be divided. A step in
/// several stages, of few tiles, remains whole: on hardware it is below the limit.
fn units(step: usize, stages: Vec<Stage>, flops: u64, most: u64) -> Vec<PlannedUnit> {
    let wanted = flops.div_ceil(most);
    match &stages[..] {
        [Stage { program, operands }] if wanted > 1 => {
            let programs = program.divided(wanted);
            let flops = flops / programs.len() as u64;
            let unit =
                |program| PlannedUnit { step, stages: vec![Stage { program, operands: operands.clone() }], flops };
            programs.into_iter().map(unit).collect()
        }
        _ => vec![PlannedUnit { step, stages, flops }],
    }
}

/// Compiles what a session of a recording will need, on all threads, until `stop` is set. The session finds it compiled;
/// this is for the time that weights take to be loaded. Does nothing on the CPU.
///
/// An error is left to the session, which meets it again and names the step.
pub fn compile_ahead(recording: &Recording, device: &Device, stop: &AtomicBool) {
    let Some(device) = device.gpu() else { return };
    if !stop.load(Ordering::Relaxed)
        && let Ok(Planned { units, .. }) = Planned::new(device, recording)
    {
        compile::ahead(device, recording, &units, stop);
    }
}

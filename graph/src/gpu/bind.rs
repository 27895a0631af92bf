//! Binding of steps to the buffers of a session.

use super::chunks::Unit;
use super::planned::PlannedUnit;
use crate::error::GraphError;
use crate::graph::Origin;
use crate::node::Node;
use crate::plan::Place;
use crate::record::Recording;
use crate::weights::{Resident, Weights};
use mobilediffusion_kernels::{GpuDevice, Operand, Param, Stage};
use mobilediffusion_runtime::{Bound, Buffer, Dispatch, Gpu, Pipeline, Role};
use std::sync::Arc;

/// Arenas, and where in them the planned tensors lie.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) arenas: Vec<Buffer>,
    /// Place of each planned tensor.
    pub(super) places: Vec<Option<Place>>,
}

impl Placed {
    /// Returns the first `bytes` bytes of a planned tensor.
    pub(super) fn range(&self, tensor: usize, bytes: usize) -> Bound<'_> {
        let Place { arena, offset } = self.places[tensor].expect("inputs and results of steps are planned");
        Bound { buffer: &self.arenas[arena], offset: offset as u64, bytes: bytes as u64 }
    }
}

/// What steps are bound to.
pub(super) struct Binder<'a> {
    pub(super) device: GpuDevice<'a>,
    pub(super) recording: &'a Recording,
    pub(super) weights: &'a Weights,
    pub(super) placed: &'a Placed,
    /// Buffer through which the stages of a step pass intermediate results, if any step has several. All steps share
    /// it.
    pub(super) shared: Option<&'a Buffer>,
}

impl Binder<'_> {
    /// Binds the stages of a unit, each to its pipeline and parameters.
    pub(super) fn unit<'p>(
        &self,
        PlannedUnit { step, stages, flops }: &PlannedUnit,
        pipelines: &[Arc<Pipeline>],
        params: impl Iterator<Item = Bound<'p>>,
    ) -> Result<Unit, GraphError> {
        let node = &self.recording.nodes[*step];
        let bind = |((stage, pipeline), params)| self.stage(node, stage, pipeline, params);
        let bound = stages.iter().zip(pipelines).zip(params).map(bind);
        let dispatch = bound.reduce(|all, next| Ok(all?.then(next?))).expect("a unit has at least one stage")?;
        Ok(Unit { dispatch, flops: *flops })
    }

    fn stage(
        &self,
        node: &Node,
        stage: &Stage,
        pipeline: &Arc<Pipeline>,
        params: Bound<'_>,
    ) -> Result<Dispatch, GraphError> {
        let GpuDevice { gpu, storage } = self.device;
        // Buffer, byte offset and bytes of each operand that is bound.
        let mut operands = Vec::new();
        for (operand, tensor) in stage.operands.iter().zip(&node.operands) {
            if let Some(tensor) = tensor.filter(|_| operand.present) {
                let bytes = operand.bytes(storage).next_multiple_of(4) as u64;
                let (buffer, offset) = self.buffer(tensor, operand)?;
                operands.push((buffer, offset, bytes));
            }
        }
        if let (Some(operand), Some(shared)) = (stage.shared(node.operands.len()), self.shared) {
            operands.push((shared.clone(), 0, operand.bytes(storage) as u64));
        }
        let mut bound = vec![params];
        bound.extend(operands.iter().map(|(buffer, offset, bytes)| Bound { buffer, offset: *offset, bytes: *bytes }));
        gpu.dispatch(&node.path, pipeline, &bound, stage.program.grid).map_err(GraphError::at(&node.path))
    }

    /// Returns the buffer of a tensor and its byte offset there. Loads weights and uploads constants.
    fn buffer(&self, tensor: usize, operand: &Operand) -> Result<(Buffer, u64), GraphError> {
        let info = &self.recording.tensors[tensor];
        match &info.origin {
            Origin::Input(_) | Origin::Step(_) | Origin::Part(_) => {
                let place = self.placed.range(tensor, 0);
                Ok((place.buffer.clone(), place.offset))
            }
            Origin::Weight(sources) => match self.weights.get(sources, operand)? {
                Resident::Gpu(buffer) => Ok((buffer, 0)),
                Resident::Cpu(_) => unreachable!("a GPU keeps its weights in buffers"),
            },
            Origin::Constant(values) => {
                let GpuDevice { gpu, storage } = self.device;
                let bytes = storage.encode(info.dtype, &info.shape, values);
                let made = gpu.buffer(&info.name, bytes.len() as u64, Role::Storage);
                let buffer = made.map_err(GraphError::at(&info.name))?;
                gpu.upload(&buffer, &bytes).map_err(GraphError::at(&info.name))?;
                Ok((buffer, 0))
            }
        }
    }
}

/// Parameters of all units in one uniform buffer, written once.
pub(super) struct Uniforms {
    pub(super) buffer: Buffer,
    /// Offset and bytes of the parameters of each stage of each unit.
    ranges: Vec<Vec<(u64, u64)>>,
}

impl Uniforms {
    pub(super) fn new(gpu: &Gpu, units: &[PlannedUnit]) -> Result<Self, GraphError> {
        let alignment = gpu.caps().uniform_alignment as usize;
        let mut bytes = Vec::new();
        let mut add = |stage: &Stage| {
            let params: Vec<u8> = stage.program.params.iter().flat_map(Param::bytes).collect();
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
            let range = (bytes.len() as u64, params.len() as u64);
            bytes.extend(params);
            range
        };
        let ranges = units.iter().map(|unit| unit.stages.iter().map(&mut add).collect()).collect();
        let at = || GraphError::at("parameters");
        let buffer = gpu.buffer("parameters", bytes.len() as u64, Role::Uniform).map_err(at())?;
        gpu.upload(&buffer, &bytes).map_err(at())?;
        Ok(Self { buffer, ranges })
    }

    /// Returns the parameters of each stage of a unit.
    pub(super) fn of_unit(&self, unit: usize) -> impl Iterator<Item = Bound<'_>> {
        self.ranges[unit].iter().map(|&(offset, bytes)| Bound { buffer: &self.buffer, offset, bytes })
    }
}

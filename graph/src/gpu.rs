//! The GPU device: every step compiled and bound once, then encoded in one pass and submitted in chunks.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::plan::Sharing;
use crate::record::Recording;
use crate::weights::{Device, Resident, Weights};
use mobilediffusion_kernels::{Access, Param, Storage, wgsl};
use mobilediffusion_runtime::{Binding, Bound, Buffer, Dispatch, Gpu, Role, RuntimeError};
use std::sync::Arc;

/// Steps of one submission. Chunks bound the time between two questions whether to go on, and keep a submission below
/// the few seconds after which drivers give a device up.
const CHUNK: usize = 64;

/// Buffers and bound steps of a session.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    gpu: Arc<Gpu>,
    storage: Storage,
    slots: Vec<Buffer>,
    slot_of: Vec<Option<usize>>,
    dispatches: Vec<Dispatch>,
    staging: Buffer,
}

impl GpuMemory {
    pub(crate) fn new(
        (gpu, storage): (Arc<Gpu>, Storage),
        recording: &Recording,
        weights: &mut Weights,
        sharing: Sharing,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, GraphError> {
        let bytes_of = |t: &TensorInfo| storage.tensor_bytes(t.dtype, &t.shape);
        let (slot_of, placement) = recording.placement(bytes_of, sharing);
        let mut slots = Vec::new();
        for (slot, &bytes) in placement.slot_bytes.iter().enumerate() {
            let tenant =
                recording.tensors.iter().zip(&slot_of).find(|(t, s)| **s == Some(slot) && bytes_of(t) == bytes);
            let label = tenant.map_or("slot", |(t, _)| t.name.as_str());
            slots.push(gpu.buffer(label, bytes as u64, Role::Storage).map_err(GraphError::at(label))?);
        }
        let read_back = match sharing {
            Sharing::Planned => recording.outputs.iter().map(|(_, t)| bytes_of(&recording.tensors[*t])).max(),
            // Every tensor may be read.
            Sharing::Private => placement.slot_bytes.iter().copied().max(),
        };
        let read_back = read_back.unwrap_or(4);
        let staging = gpu.buffer("staging", read_back as u64, Role::Staging).map_err(GraphError::at("staging"))?;
        let uniforms = Uniforms::new(&gpu, recording)?;
        let dummy = gpu.buffer("absent operand", 16, Role::Storage).map_err(GraphError::at("absent operand"))?;
        let mut memory = Self { gpu, storage, slots, slot_of, dispatches: Vec::new(), staging };
        for step in 0..recording.nodes.len() {
            let dispatch = memory.bind(recording, step, weights, &uniforms, &dummy)?;
            memory.dispatches.push(dispatch);
            on_progress(step + 1, recording.nodes.len());
        }
        Ok(memory)
    }

    fn bind(
        &self,
        recording: &Recording,
        step: usize,
        weights: &mut Weights,
        uniforms: &Uniforms,
        dummy: &Buffer,
    ) -> Result<Dispatch, GraphError> {
        let node = &recording.nodes[step];
        let program = node.kernel.program();
        let most = 65_535;
        if program.grid.iter().any(|&groups| groups > most) {
            let found = program.grid.into_iter().max().unwrap_or(0) as usize;
            let expected = format!("at most {most}");
            return Err(GraphError::Size { node: node.path.clone(), what: "workgroups on an axis", expected, found });
        }
        let declared = node.kernel.operands();
        let mut bindings = vec![Binding::Uniform];
        let mut buffers = Vec::new();
        for (operand, tensor) in declared.iter().zip(&node.operands) {
            bindings.push(if operand.access == Access::Read { Binding::Read } else { Binding::Write });
            buffers.push(match tensor {
                None => (dummy.clone(), dummy.bytes()),
                Some(tensor) => {
                    let buffer = self.buffer(&recording.tensors[*tensor], *tensor, operand.layout, weights)?;
                    let shape = operand.layout.packed_shape(&operand.shape);
                    (buffer, self.storage.tensor_bytes(operand.dtype, &shape).next_multiple_of(4) as u64)
                }
            });
        }
        let text = wgsl::compose(&program, self.storage).map_err(|unknown| GraphError::Device {
            node: node.path.clone(),
            source: RuntimeError::Validation { what: node.kernel.name().to_owned(), message: unknown.to_string() },
        })?;
        let at = || GraphError::at(&node.path);
        let pipeline = self.gpu.pipeline(node.kernel.name(), &text, &bindings).map_err(at())?;
        let mut bound = vec![uniforms.bound(step)];
        bound.extend(buffers.iter().map(|(buffer, bytes)| Bound { buffer, offset: 0, bytes: *bytes }));
        self.gpu.dispatch(&node.path, &pipeline, &bound, program.grid).map_err(at())
    }

    fn buffer(
        &self,
        info: &TensorInfo,
        tensor: usize,
        layout: mobilediffusion_kernels::Layout,
        weights: &mut Weights,
    ) -> Result<Buffer, GraphError> {
        let resident = match &info.origin {
            Origin::Input(_) | Origin::Step(_) => {
                let slot = self.slot_of[tensor].expect("what steps write is planned");
                return Ok(self.slots[slot].clone());
            }
            Origin::Weight(shape) => weights.get(&info.name, shape, layout)?,
            Origin::Constant(values) => {
                let device = Device::Gpu(Arc::clone(&self.gpu), self.storage);
                device.place(&info.name, info.dtype, &info.shape, values.clone())?
            }
        };
        match resident {
            Resident::Device(buffer) => Ok(buffer),
            Resident::Host(_) => unreachable!("a GPU keeps its weights in its buffers"),
        }
    }

    pub(crate) fn run(
        &mut self,
        steps: &[usize],
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), GraphError> {
        for (index, chunk) in steps.chunks(CHUNK).enumerate() {
            let done = index * CHUNK;
            if !go_on(done, steps.len()) {
                return Err(GraphError::Stopped { done, total: steps.len() });
            }
            self.gpu.submit(chunk.iter().map(|&step| &self.dispatches[step])).map_err(GraphError::at("run"))?;
            self.gpu.wait().map_err(GraphError::at("run"))?;
        }
        Ok(())
    }

    fn slot(&self, tensor: usize) -> &Buffer {
        &self.slots[self.slot_of[tensor].expect("inputs and outputs are planned")]
    }

    pub(crate) fn write(&self, tensor: usize, info: &TensorInfo, values: &[f32]) -> Result<(), GraphError> {
        let bytes = self.storage.encode(info.dtype, &info.shape, values);
        self.gpu.upload(self.slot(tensor), &bytes).map_err(GraphError::at(&info.name))
    }

    pub(crate) fn read(&self, tensor: usize, info: &TensorInfo) -> Result<Vec<f32>, GraphError> {
        let bytes = self.storage.tensor_bytes(info.dtype, &info.shape) as u64;
        let data = self.gpu.download(self.slot(tensor), &self.staging, bytes).map_err(GraphError::at(&info.name))?;
        Ok(self.storage.decode(info.dtype, &info.shape, &data))
    }

    /// Every bit set is a NaN in f32 as in f16.
    pub(crate) fn poison(&self) -> Result<(), GraphError> {
        for slot in &self.slots {
            let bytes = vec![0xFF; usize::try_from(slot.bytes()).expect("a slot's size came from a usize")];
            self.gpu.upload(slot, &bytes).map_err(GraphError::at(slot.label()))?;
        }
        Ok(())
    }

    pub(crate) fn copy(&self, from: usize, to: usize, info: &TensorInfo) -> Result<(), GraphError> {
        let bytes = self.storage.tensor_bytes(info.dtype, &info.shape) as u64;
        self.gpu.copy(self.slot(from), self.slot(to), bytes).map_err(GraphError::at(&info.name))
    }
}

/// Parameters of all steps in one buffer, written once.
struct Uniforms {
    buffer: Buffer,
    ranges: Vec<(u64, u64)>,
}

impl Uniforms {
    fn new(gpu: &Gpu, recording: &Recording) -> Result<Self, GraphError> {
        let alignment = gpu.caps().uniform_alignment as usize;
        let mut bytes = Vec::new();
        let mut ranges = Vec::new();
        for node in &recording.nodes {
            let params: Vec<u8> = node.kernel.program().params.iter().flat_map(Param::bytes).collect();
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
            ranges.push((bytes.len() as u64, params.len() as u64));
            bytes.extend(params);
        }
        let at = || GraphError::at("parameters");
        let buffer = gpu.buffer("parameters", bytes.len() as u64, Role::Uniform).map_err(at())?;
        gpu.upload(&buffer, &bytes).map_err(at())?;
        Ok(Self { buffer, ranges })
    }

    fn bound(&self, step: usize) -> Bound<'_> {
        let (offset, bytes) = self.ranges[step];
        Bound { buffer: &self.buffer, offset, bytes }
    }
}

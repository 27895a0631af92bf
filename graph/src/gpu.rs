//! The GPU device: every step compiled and bound once, then encoded in one pass and submitted, in chunks where it is long.

mod compile;

use crate::error::GraphError;
use crate::gpu_plan::GpuPlan;
use crate::graph::{Origin, TensorInfo};
use crate::plan::Sharing;
use crate::record::Recording;
use crate::weights::{Resident, Weights};
use mobilediffusion_kernels::variant::Machine;
use mobilediffusion_kernels::{Operand, Param, Stage, Storage, Variant};
use mobilediffusion_runtime::{
    AdapterKind, Bound, Buffer, Dispatch, Gpu, Pipeline, Role, RuntimeError, Submission, Timer,
};
use std::sync::Arc;
use std::time::Instant;

/// Floating-point operations of one submission. Chunks bound the time between two questions whether to go on, and keep
/// a submission below the few seconds after which drivers give a device up: half a second at 200 GFLOP/s. While one runs the
/// next is encoded and submitted, so that a fast device does not wait for the host.
const CHUNK_FLOPS: u64 = 100_000_000_000;
/// The same for GPUs that share the host's memory: the slowest of them make some 50 GFLOP/s, and systems draw with them.
const INTEGRATED_CHUNK_FLOPS: u64 = 20_000_000_000;
/// The same for drivers that compute on the CPU.
const SOFTWARE_CHUNK_FLOPS: u64 = 2_000_000_000;

/// Buffers and bound steps of a session.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    gpu: Arc<Gpu>,
    storage: Storage,
    arenas: Vec<Buffer>,
    /// Arena and offset of each planned tensor.
    places: Vec<Option<(usize, usize)>>,
    dispatches: Vec<Dispatch>,
    /// Variant of each step's kernel.
    variants: Vec<Variant>,
    /// Floating-point operations of each step.
    flops: Vec<u64>,
    chunk_flops: u64,
    /// The chunk that was submitted last, where nobody waited for it.
    in_flight: Option<Submission>,
    staging: Buffer,
    /// Of all buffers but the weights.
    bytes: u64,
}

impl GpuMemory {
    pub(crate) fn new(
        (gpu, storage): (Arc<Gpu>, Storage),
        recording: &Recording,
        weights: &mut Weights,
        sharing: Sharing,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self, GraphError> {
        let bytes_of = |tensor: usize| {
            let info: &TensorInfo = &recording.tensors[tensor];
            storage.tensor_bytes(info.dtype, &info.shape)
        };
        let variants = recording.variants(&Machine::of(&gpu, storage));
        let mut stages = recording.stages(&variants);
        check_limits(&gpu, (recording, &stages), storage)?;
        let limit = usize::try_from(gpu.caps().max_buffer_bytes).unwrap_or(usize::MAX / 8);
        let GpuPlan { places, arenas, in_place } = recording.arenas(storage, sharing, limit)?;
        let arena = |(number, bytes): (usize, usize)| {
            let label = format!("arena {number}");
            gpu.buffer(&label, bytes as u64, Role::Arena).map_err(GraphError::at(&label))
        };
        let arenas = arenas.into_iter().enumerate().map(arena).collect::<Result<Vec<_>, _>>()?;
        let read_back = recording.outputs.iter().map(|(_, tensor)| bytes_of(*tensor)).max().unwrap_or(4);
        let staging = gpu.buffer("staging", read_back as u64, Role::Staging).map_err(GraphError::at("staging"))?;
        stages.iter_mut().filter(|(step, _)| in_place[*step]).for_each(|(_, stage)| stage.read_in_place());
        let uniforms = Uniforms::new(&gpu, &stages)?;
        let dummy = gpu.buffer("absent operand", 16, Role::Storage).map_err(GraphError::at("absent operand"))?;
        let shared = match recording.shared_bytes(&stages, storage) as u64 {
            0 => dummy.clone(),
            bytes => gpu.buffer("sums of parts", bytes, Role::Storage).map_err(GraphError::at("sums of parts"))?,
        };
        let bytes = arenas.iter().chain([&staging, &uniforms.buffer, &dummy, &shared]).map(Buffer::bytes).sum();
        let flops = recording.nodes.iter().map(|node| node.kernel.cost().flops).collect();
        let chunk_flops = match gpu.adapter().kind {
            AdapterKind::Software => SOFTWARE_CHUNK_FLOPS,
            AdapterKind::Integrated => INTEGRATED_CHUNK_FLOPS,
            AdapterKind::Discrete | AdapterKind::Other => CHUNK_FLOPS,
        };
        let mut memory = Self {
            gpu: Arc::clone(&gpu),
            storage,
            arenas,
            places,
            dispatches: Vec::new(),
            variants,
            flops,
            chunk_flops,
            in_flight: None,
            staging,
            bytes,
        };
        compile::each_stage(&gpu, storage, (recording, &stages), |number, pipeline| {
            let (step, stage) = &stages[number];
            let others = Others { params: uniforms.bound(number), absent: &dummy, shared: &shared };
            let dispatch = memory.bind(recording, (*step, stage), pipeline, weights, &others)?;
            match memory.dispatches.pop_if(|_| number > 0 && stages[number - 1].0 == *step) {
                Some(before) => memory.dispatches.push(before.then(dispatch)),
                None => memory.dispatches.push(dispatch),
            }
            ask(go_on(step + 1, recording.nodes.len()), step + 1, recording.nodes.len())
        })?;
        // What cannot be kept costs the next run some time, and nothing else.
        let _ = memory.gpu.save_pipelines();
        Ok(memory)
    }

    fn bind(
        &self,
        recording: &Recording,
        (step, stage): (usize, &Stage),
        pipeline: &Arc<Pipeline>,
        weights: &mut Weights,
        others: &Others<'_>,
    ) -> Result<Dispatch, GraphError> {
        let node = &recording.nodes[step];
        // Buffer, offset and bytes of each operand.
        let mut operands = Vec::new();
        for (operand, tensor) in stage.operands.iter().zip(&node.operands) {
            operands.push(match tensor.filter(|_| operand.present) {
                None => (others.absent.clone(), 0, others.absent.bytes()),
                Some(tensor) => {
                    let bytes = operand_bytes(operand, self.storage).next_multiple_of(4) as u64;
                    let (buffer, offset) = self.buffer(&recording.tensors[tensor], tensor, operand, weights)?;
                    (buffer, offset, bytes)
                }
            });
        }
        if let Some(operand) = stage.shared(node.operands.len()) {
            operands.push((others.shared.clone(), 0, operand_bytes(operand, self.storage) as u64));
        }
        let mut bound = vec![others.params];
        bound.extend(operands.iter().map(|(buffer, offset, bytes)| Bound { buffer, offset: *offset, bytes: *bytes }));
        self.gpu.dispatch(&node.path, pipeline, &bound, stage.program.grid).map_err(GraphError::at(&node.path))
    }

    /// Where a tensor lies: its buffer, and its first byte there.
    fn buffer(
        &self,
        info: &TensorInfo,
        tensor: usize,
        operand: &Operand,
        weights: &mut Weights,
    ) -> Result<(Buffer, u64), GraphError> {
        match &info.origin {
            Origin::Input(_) | Origin::Step(_) => {
                let part = self.part(tensor, 0);
                Ok((part.buffer.clone(), part.offset))
            }
            Origin::Weight(source) => match weights.get(&info.name, source, operand)? {
                Resident::Device(buffer) => Ok((buffer, 0)),
                Resident::Host(_) => unreachable!("a GPU keeps its weights in its buffers"),
            },
            Origin::Constant(values) => {
                let bytes = self.storage.encode(info.dtype, &info.shape, values);
                let made = self.gpu.buffer(&info.name, bytes.len() as u64, Role::Storage);
                let buffer = made.map_err(GraphError::at(&info.name))?;
                self.gpu.upload(&buffer, &bytes).map_err(GraphError::at(&info.name))?;
                Ok((buffer, 0))
            }
        }
    }

    /// Steps of one submission, from the first of `steps`: at least one.
    fn chunk(&self, steps: &[usize]) -> usize {
        let mut flops = 0;
        let within = |step: &&usize| {
            flops += self.flops[**step];
            flops <= self.chunk_flops
        };
        steps.iter().take_while(within).count().max(1)
    }

    pub(crate) fn run(
        &mut self,
        steps: &[usize],
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), GraphError> {
        let mut done = 0;
        while done < steps.len() {
            ask(go_on(done, steps.len()), done, steps.len())?;
            let (count, chunk) = self.start_chunk(&steps[done..])?;
            done += count;
            if let Some(before) = self.in_flight.replace(chunk) {
                self.gpu.wait_for(&before).map_err(GraphError::at("run"))?;
            }
        }
        self.in_flight = None;
        self.gpu.wait().map_err(GraphError::at("run"))
    }

    /// The same, and whoever polls it is free while the device computes. It is done with the last chunk on its way, so that
    /// the device does not wait for the host between two runs.
    pub(crate) async fn run_ahead(
        &mut self,
        steps: &[usize],
        go_on: &mut (dyn FnMut(usize, usize) -> bool + Send),
    ) -> Result<(), GraphError> {
        let mut done = 0;
        while done < steps.len() {
            ask(go_on(done, steps.len()), done, steps.len())?;
            let (count, chunk) = self.start_chunk(&steps[done..])?;
            done += count;
            if let Some(before) = self.in_flight.replace(chunk) {
                self.gpu.finished_for(&before).await.map_err(GraphError::at("run"))?;
            }
        }
        Ok(())
    }

    /// Waits for that chunk.
    pub(crate) async fn finish(&mut self) -> Result<(), GraphError> {
        self.in_flight = None;
        self.gpu.finished().await.map_err(GraphError::at("run"))
    }

    /// Submits the first of these steps, and tells how many.
    fn start_chunk(&self, steps: &[usize]) -> Result<(usize, Submission), GraphError> {
        let chunk = &steps[..self.chunk(steps)];
        let submitted =
            self.gpu.start(chunk.iter().map(|&step| &self.dispatches[step])).map_err(GraphError::at("run"))?;
        Ok((chunk.len(), submitted))
    }

    /// Bytes of all that the session has for itself.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The variant of each step's kernel.
    pub(crate) fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Seconds of each of the steps, run in order, in chunks like a run's.
    pub(crate) fn time(&self, steps: &[usize]) -> Result<Vec<f64>, GraphError> {
        let timer = Timer::new(&self.gpu).map_err(GraphError::at("timer"))?;
        let mut seconds = Vec::with_capacity(steps.len());
        while seconds.len() < steps.len() {
            let left = &steps[seconds.len()..];
            let chunk: Vec<&Dispatch> = left[..self.chunk(left)].iter().map(|&step| &self.dispatches[step]).collect();
            seconds.extend(timer.time_each(&self.gpu, &chunk).map_err(GraphError::at("run"))?);
        }
        Ok(seconds)
    }

    /// Seconds the host spends on encoding and submitting these steps as a run does, without the device's time.
    pub(crate) fn overhead(&self, steps: &[usize]) -> Result<f64, GraphError> {
        let (mut done, mut seconds) = (0, 0.0);
        self.gpu.wait().map_err(GraphError::at("run"))?;
        while done < steps.len() {
            let start = Instant::now();
            done += self.start_chunk(&steps[done..])?.0;
            seconds += start.elapsed().as_secs_f64();
            self.gpu.wait().map_err(GraphError::at("run"))?;
        }
        Ok(seconds)
    }

    /// The first `bytes` of a planned tensor.
    fn part(&self, tensor: usize, bytes: usize) -> Bound<'_> {
        let (arena, offset) = self.places[tensor].expect("inputs, outputs and what steps write are planned");
        Bound { buffer: &self.arenas[arena], offset: offset as u64, bytes: bytes as u64 }
    }

    fn whole(&self, tensor: usize, info: &TensorInfo) -> Bound<'_> {
        self.part(tensor, self.storage.tensor_bytes(info.dtype, &info.shape))
    }

    pub(crate) fn write(&self, tensor: usize, info: &TensorInfo, values: &[f32]) -> Result<(), GraphError> {
        let bytes = self.storage.encode(info.dtype, &info.shape, values);
        self.gpu.upload(self.whole(tensor, info), &bytes).map_err(GraphError::at(&info.name))
    }

    /// [`read`](Self::read) of an output, and whoever polls it is free until it has arrived.
    pub(crate) async fn read_async(&mut self, tensor: usize, info: &TensorInfo) -> Result<Vec<f32>, GraphError> {
        let at = || GraphError::at(&info.name);
        let download = self.gpu.start_download(self.whole(tensor, info), &self.staging).map_err(at())?;
        self.gpu.finished().await.map_err(at())?;
        let data = download.bytes().await.map_err(at())?;
        Ok(self.storage.decode(info.dtype, &info.shape, &data))
    }

    pub(crate) fn read(&self, tensor: usize, info: &TensorInfo) -> Result<Vec<f32>, GraphError> {
        let (from, at) = (self.whole(tensor, info), || GraphError::at(&info.name));
        let data = if from.bytes <= self.staging.bytes() {
            self.gpu.download(from, &self.staging)
        } else {
            // No output: somebody looks into the middle of a plan.
            let staging = self.gpu.buffer("staging", from.bytes, Role::Staging).map_err(at())?;
            self.gpu.download(from, &staging)
        };
        let data = data.map_err(at())?;
        Ok(self.storage.decode(info.dtype, &info.shape, &data))
    }

    /// Every bit set is a NaN in f32 as in f16.
    pub(crate) fn poison(&self) -> Result<(), GraphError> {
        for arena in &self.arenas {
            let bytes = vec![0xFF; usize::try_from(arena.bytes()).expect("an arena's size came from a usize")];
            self.gpu.upload(arena, &bytes).map_err(GraphError::at(arena.label()))?;
        }
        Ok(())
    }

    /// Copies an output to an input; the plan keeps the two in different arenas.
    pub(crate) fn copy(&self, from: usize, to: usize, info: &TensorInfo) -> Result<(), GraphError> {
        self.gpu.copy(self.whole(from, info), self.whole(to, info)).map_err(GraphError::at(&info.name))
    }
}

/// Bytes of an operand on the device.
fn operand_bytes(operand: &Operand, storage: Storage) -> usize {
    storage.tensor_bytes(operand.dtype, &operand.layout.packed_shape(&operand.shape))
}

/// An error if the answer is to stop.
fn ask(go_on: bool, done: usize, total: usize) -> Result<(), GraphError> {
    if go_on { Ok(()) } else { Err(GraphError::Stopped { done, total }) }
}

/// Refuses what no memory could help: an operand beyond the largest binding, too many of them, too large a grid.
fn check_limits(
    gpu: &Gpu,
    (recording, stages): (&Recording, &[(usize, Stage)]),
    storage: Storage,
) -> Result<(), GraphError> {
    let caps = gpu.caps();
    for (step, Stage { program, operands }) in stages {
        let node = &recording.nodes[*step];
        let refused = |what, most: usize, found| {
            let (node, expected) = (node.path.clone(), format!("at most {most}"));
            Err(GraphError::Size { node, what, expected, found })
        };
        let (most, groups) = (caps.max_groups as usize, program.grid.into_iter().max().unwrap_or(0) as usize);
        if groups > most {
            return refused("workgroups on an axis", most, groups);
        }
        let (most, present) = (caps.max_storage_buffers as usize, operands.iter().filter(|o| o.present).count());
        if present > most {
            return refused("operands", most, present);
        }
        for (operand, tensor) in operands.iter().zip(&node.operands) {
            let bytes = operand_bytes(operand, storage) as u64;
            if let Some(tensor) = tensor.filter(|_| bytes > caps.max_binding_bytes) {
                let (what, limit) = (recording.tensors[tensor].name.clone(), "adapter's largest storage binding");
                let source = RuntimeError::TooLarge { what, bytes, limit, allowed: caps.max_binding_bytes };
                return Err(GraphError::at(&node.path)(source));
            }
        }
    }
    Ok(())
}

/// What a stage binds besides tensors.
struct Others<'a> {
    params: Bound<'a>,
    /// What an operand that is not there is bound to.
    absent: &'a Buffer,
    /// Where stages of a step leave something for the next, one step after the other.
    shared: &'a Buffer,
}

/// Parameters of all stages in one buffer, written once.
struct Uniforms {
    buffer: Buffer,
    ranges: Vec<(u64, u64)>,
}

impl Uniforms {
    fn new(gpu: &Gpu, stages: &[(usize, Stage)]) -> Result<Self, GraphError> {
        let alignment = gpu.caps().uniform_alignment as usize;
        let mut bytes = Vec::new();
        let mut ranges = Vec::new();
        for (_, stage) in stages {
            let params: Vec<u8> = stage.program.params.iter().flat_map(Param::bytes).collect();
            bytes.resize(bytes.len().next_multiple_of(alignment), 0);
            ranges.push((bytes.len() as u64, params.len() as u64));
            bytes.extend(params);
        }
        let at = || GraphError::at("parameters");
        let buffer = gpu.buffer("parameters", bytes.len() as u64, Role::Uniform).map_err(at())?;
        gpu.upload(&buffer, &bytes).map_err(at())?;
        Ok(Self { buffer, ranges })
    }

    fn bound(&self, stage: usize) -> Bound<'_> {
        let (offset, bytes) = self.ranges[stage];
        Bound { buffer: &self.buffer, offset, bytes }
    }
}

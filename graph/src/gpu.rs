//! The GPU device: compiles and binds every step once, then encodes and submits the steps of a run in chunks.

mod chunks;
mod compile;
mod limits;
mod planned;

use crate::error::GraphError;
use crate::gpu_plan::GpuPlan;
use crate::graph::{Origin, TensorInfo};
use crate::plan::Place;
use crate::progress::{Flow, OnProgress};
use crate::record::Recording;
use crate::weights::{Resident, Weights};
use chunks::{Chunk, Pace, Rest, Unit, flops, most_flops};
use mobilediffusion_kernels::{GpuDevice, Operand, Param, Stage, Storage, Variant};
use mobilediffusion_runtime::{Bound, Buffer, Dispatch, Gpu, Pipeline, Role, RuntimeError, Submission, Timer};
use planned::{Planned, PlannedUnit};
use std::sync::Arc;
use std::time::Instant;

pub use planned::compile_ahead;

/// Buffers and bound steps of a session on a GPU.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    gpu: Arc<Gpu>,
    storage: Storage,
    arenas: Vec<Buffer>,
    /// Place of each planned tensor.
    places: Vec<Option<Place>>,
    /// Units of each step.
    units: Vec<Vec<Unit>>,
    /// Kernel variant of each step.
    variants: Vec<Variant>,
    pace: Pace,
    /// Last submitted chunk and its floating-point operations, if it has not been waited for.
    in_flight: Option<(Submission, u64)>,
    staging: Buffer,
    /// Bytes of all buffers but the weights.
    bytes: u64,
}

impl GpuMemory {
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        storage: Storage,
        recording: &Recording,
        weights: &Weights,
        on_progress: OnProgress<'_>,
    ) -> Result<Self, GraphError> {
        let bytes_of = |tensor: usize| recording.tensors[tensor].bytes(storage);
        let device = GpuDevice { gpu, storage };
        let planned = Planned::new(device, recording)?;
        let shared_bytes = planned.shared_bytes(recording, storage) as u64;
        let Planned { variants, units, memory: GpuPlan { places, arenas, .. } } = planned;
        let arena = |(number, bytes): (usize, usize)| {
            let label = format!("arena {number}");
            gpu.buffer(&label, bytes as u64, Role::Arena).map_err(GraphError::at(&label))
        };
        let arenas = arenas.into_iter().enumerate().map(arena).collect::<Result<Vec<_>, _>>()?;
        let read_back = recording.outputs.iter().map(|(_, tensor)| bytes_of(*tensor)).max().unwrap_or(4);
        let staging = gpu.buffer("staging", read_back as u64, Role::Staging).map_err(GraphError::at("staging"))?;
        let uniforms = Uniforms::new(gpu, &units)?;
        let shared = (shared_bytes > 0).then(|| gpu.buffer("partial sums", shared_bytes, Role::Storage));
        let shared = shared.transpose().map_err(GraphError::at("partial sums"))?;
        let bytes = arenas.iter().chain([&staging, &uniforms.buffer]).chain(&shared).map(Buffer::bytes).sum();
        let mut memory = Self {
            gpu: Arc::clone(gpu),
            storage,
            arenas,
            places,
            units: recording.nodes.iter().map(|_| Vec::new()).collect(),
            variants,
            pace: Pace::of(gpu.adapter().kind),
            in_flight: None,
            staging,
            bytes,
        };
        compile::each_unit(device, recording, &units, |number, pipelines| {
            let PlannedUnit { step, stages, flops } = &units[number];
            let bind = |((stage, pipeline), params)| {
                let others = Others { params, shared: shared.as_ref() };
                memory.bind(recording, (*step, stage), pipeline, weights, &others)
            };
            let stages = stages.iter().zip(pipelines).zip(uniforms.of_unit(number)).map(bind);
            let dispatch = stages.reduce(|all, next| Ok(all?.then(next?))).expect("a unit has at least one stage")?;
            memory.units[*step].push(Unit { dispatch, flops: *flops });
            if units.get(number + 1).is_some_and(|next| next.step == *step) {
                return Ok(());
            }
            let (done, total) = (step + 1, recording.nodes.len());
            on_progress(done, total).check(done, total)
        })?;
        match memory.gpu.save_pipelines() {
            // Without the saved pipelines the next session compiles again, which costs time and nothing else.
            Ok(()) | Err(RuntimeError::Unwritten { .. }) => Ok(memory),
            Err(error) => Err(GraphError::at("compiled pipelines")(error)),
        }
    }

    /// Binds one stage of a step.
    fn bind(
        &self,
        recording: &Recording,
        (step, stage): (usize, &Stage),
        pipeline: &Arc<Pipeline>,
        weights: &Weights,
        others: &Others<'_>,
    ) -> Result<Dispatch, GraphError> {
        let node = &recording.nodes[step];
        // Buffer, byte offset and bytes of each operand that is bound.
        let mut operands = Vec::new();
        for (operand, tensor) in stage.operands.iter().zip(&node.operands) {
            if let Some(tensor) = tensor.filter(|_| operand.present) {
                let bytes = operand.bytes(self.storage).next_multiple_of(4) as u64;
                let (buffer, offset) = self.buffer(&recording.tensors[tensor], tensor, operand, weights)?;
                operands.push((buffer, offset, bytes));
            }
        }
        if let (Some(operand), Some(shared)) = (stage.shared(node.operands.len()), others.shared) {
            operands.push((shared.clone(), 0, operand.bytes(self.storage) as u64));
        }
        let mut bound = vec![others.params];
        bound.extend(operands.iter().map(|(buffer, offset, bytes)| Bound { buffer, offset: *offset, bytes: *bytes }));
        self.gpu.dispatch(&node.path, pipeline, &bound, stage.program.grid).map_err(GraphError::at(&node.path))
    }

    /// Returns the buffer of a tensor and its byte offset there. Loads weights and uploads constants.
    fn buffer(
        &self,
        info: &TensorInfo,
        tensor: usize,
        operand: &Operand,
        weights: &Weights,
    ) -> Result<(Buffer, u64), GraphError> {
        match &info.origin {
            Origin::Input(_) | Origin::Step(_) | Origin::Part(_) => {
                let place = self.range(tensor, 0);
                Ok((place.buffer.clone(), place.offset))
            }
            Origin::Weight(sources) => match weights.get(sources, operand)? {
                Resident::Gpu(buffer) => Ok((buffer, 0)),
                Resident::Cpu(_) => unreachable!("a GPU keeps its weights in buffers"),
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

    /// Runs the steps and waits for them. At most two chunks are in flight.
    pub(crate) fn run(&mut self, steps: &[usize], on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        self.pace.begin();
        let mut rest = Rest::of_run(&self.units, steps);
        while let Some(chunk) = rest.next(&self.pace) {
            let started = start(&self.gpu, &chunk, steps.len(), on_progress)?;
            if let Some((before, of_before)) = self.in_flight.replace((started, flops(&chunk))) {
                self.gpu.wait_for(&before).map_err(GraphError::at("run"))?;
                self.pace.done(of_before, Instant::now());
            }
        }
        self.in_flight = None;
        self.gpu.wait().map_err(GraphError::at("run"))
    }

    /// Runs the steps without blocking the thread, and returns while the last chunk is in flight, so that the device
    /// does not wait for the host between two runs.
    pub(crate) async fn run_ahead(&mut self, steps: &[usize], on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        self.pace.begin();
        let mut rest = Rest::of_run(&self.units, steps);
        while let Some(chunk) = rest.next(&self.pace) {
            let started = start(&self.gpu, &chunk, steps.len(), on_progress)?;
            if let Some((before, of_before)) = self.in_flight.replace((started, flops(&chunk))) {
                self.gpu.finished_for(&before).await.map_err(GraphError::at("run"))?;
                self.pace.done(of_before, Instant::now());
            }
        }
        Ok(())
    }

    /// Waits for the chunk that [`run_ahead`](Self::run_ahead) left in flight.
    pub(crate) async fn finish(&mut self) -> Result<(), GraphError> {
        self.in_flight = None;
        self.gpu.finished().await.map_err(GraphError::at("run"))
    }

    /// Returns the bytes of all buffers of the session, without the weights.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the kernel variant of each step.
    pub(crate) fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Runs the steps in order, in the chunks of a usual run, and returns the seconds that each took.
    pub(crate) fn time(&self, steps: &[usize]) -> Result<Vec<f64>, GraphError> {
        let timer = Timer::new(&self.gpu).map_err(GraphError::at("timer"))?;
        let mut seconds = vec![0.0; steps.len()];
        let mut rest = Rest::of_run(&self.units, steps);
        while let Some(chunk) = rest.next(&self.pace) {
            let dispatches: Vec<&Dispatch> = chunk.iter().map(|(_, unit)| &unit.dispatch).collect();
            let each = timer.time_each(&dispatches).map_err(GraphError::at("run"))?;
            chunk.iter().zip(each).for_each(|((step, _), own)| seconds[*step] += own);
        }
        Ok(seconds)
    }

    /// Runs the steps and returns the seconds that the host spends encoding and submitting them, without the device's
    /// time.
    pub(crate) fn overhead(&self, steps: &[usize]) -> Result<f64, GraphError> {
        self.gpu.wait().map_err(GraphError::at("run"))?;
        let mut seconds = 0.0;
        let mut rest = Rest::of_run(&self.units, steps);
        while let Some(chunk) = rest.next(&self.pace) {
            let begin = Instant::now();
            start(&self.gpu, &chunk, steps.len(), &mut |_, _| Flow::Continue)?;
            seconds += begin.elapsed().as_secs_f64();
            self.gpu.wait().map_err(GraphError::at("run"))?;
        }
        Ok(seconds)
    }

    /// Returns the first `bytes` bytes of a planned tensor.
    fn range(&self, tensor: usize, bytes: usize) -> Bound<'_> {
        let Place { arena, offset } = self.places[tensor].expect("inputs and results of steps are planned");
        Bound { buffer: &self.arenas[arena], offset: offset as u64, bytes: bytes as u64 }
    }

    fn whole(&self, tensor: usize, info: &TensorInfo) -> Bound<'_> {
        self.range(tensor, info.bytes(self.storage))
    }

    pub(crate) fn write(&self, tensor: usize, info: &TensorInfo, values: &[f32]) -> Result<(), GraphError> {
        let bytes = self.storage.encode(info.dtype, &info.shape, values);
        self.gpu.upload(self.whole(tensor, info), &bytes).map_err(GraphError::at(&info.name))
    }

    /// Reads an output without blocking the thread.
    pub(crate) async fn read_async(&mut self, tensor: usize, info: &TensorInfo) -> Result<Vec<f32>, GraphError> {
        let at = || GraphError::at(&info.name);
        let download = self.gpu.start_download(self.whole(tensor, info), &self.staging).map_err(at())?;
        self.gpu.finished().await.map_err(at())?;
        let data = download.bytes().await.map_err(at())?;
        Ok(self.storage.decode(info.dtype, &info.shape, &data))
    }

    /// Reads any planned tensor.
    pub(crate) fn read(&self, tensor: usize, info: &TensorInfo) -> Result<Vec<f32>, GraphError> {
        let (from, at) = (self.whole(tensor, info), || GraphError::at(&info.name));
        let data = if from.bytes <= self.staging.bytes() {
            self.gpu.download(from, &self.staging)
        } else {
            // The staging buffer is as large as the largest output. Comparisons also read larger intermediate tensors.
            let staging = self.gpu.buffer("staging", from.bytes, Role::Staging).map_err(at())?;
            self.gpu.download(from, &staging)
        };
        let data = data.map_err(at())?;
        Ok(self.storage.decode(info.dtype, &info.shape, &data))
    }

    /// Fills the arenas with NaN.
    pub(crate) fn poison(&self) -> Result<(), GraphError> {
        self.arenas.iter().try_for_each(|arena| self.gpu.poison(arena).map_err(GraphError::at(arena.label())))
    }

    /// Copies an output to an input, which the planner has placed in another arena.
    pub(crate) fn copy(&self, from: usize, to: usize, info: &TensorInfo) -> Result<(), GraphError> {
        self.gpu.copy(self.whole(from, info), self.whole(to, info)).map_err(GraphError::at(&info.name))
    }
}

/// Asks whether to go on with the next chunk of a run of `steps` steps, and submits it.
fn start(gpu: &Gpu, chunk: &Chunk<'_>, steps: usize, on_progress: OnProgress<'_>) -> Result<Submission, GraphError> {
    let before = chunk.first().map_or(steps, |(before, _)| *before);
    on_progress(before, steps).check(before, steps)?;
    gpu.start(chunk.iter().map(|(_, unit)| &unit.dispatch)).map_err(GraphError::at("run"))
}

/// Bindings of a stage besides its tensors.
struct Others<'a> {
    params: Bound<'a>,
    /// Buffer through which the stages of a step pass intermediate results, if any step has several. All steps share
    /// it.
    shared: Option<&'a Buffer>,
}

/// Parameters of all units in one uniform buffer, written once.
struct Uniforms {
    buffer: Buffer,
    /// Offset and bytes of the parameters of each stage of each unit.
    ranges: Vec<Vec<(u64, u64)>>,
}

impl Uniforms {
    fn new(gpu: &Gpu, units: &[PlannedUnit]) -> Result<Self, GraphError> {
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
    fn of_unit(&self, unit: usize) -> impl Iterator<Item = Bound<'_>> {
        self.ranges[unit].iter().map(|&(offset, bytes)| Bound { buffer: &self.buffer, offset, bytes })
    }
}

//! The GPU device: compiles and binds every step once, then encodes and submits the steps of a run in chunks.

mod bind;
mod chunks;
mod compile;
mod limits;
mod planned;

use crate::error::GraphError;
use crate::graph::TensorInfo;
use crate::progress::{Flow, OnProgress};
use crate::record::Recording;
use crate::weights::Weights;
use bind::{Binder, Placed, Uniforms};
use chunks::{Chunk, Pace, Rest, Unit, flops, most_flops};
use mobilediffusion_kernels::{GpuDevice, Storage, Variant};
use mobilediffusion_runtime::{Bound, Buffer, Dispatch, Gpu, Role, RuntimeError, Submission, Timer};
use planned::Planned;
use std::sync::Arc;
use std::time::Instant;

pub use planned::compile_ahead;

/// Buffers and bound steps of a session on a GPU.
#[derive(Debug)]
pub(crate) struct GpuMemory {
    gpu: Arc<Gpu>,
    storage: Storage,
    placed: Placed,
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
        let device = GpuDevice { gpu, storage };
        let planned = Planned::new(device, recording)?;
        let shared_bytes = planned.shared_bytes(recording, storage);
        let Planned { variants, units: planned, memory } = planned;
        let buffer =
            |label: &str, bytes: usize, role| gpu.buffer(label, bytes as u64, role).map_err(GraphError::at(label));
        let arena = |(number, bytes)| buffer(&format!("arena {number}"), bytes, Role::Arena);
        let arenas = memory.arenas.into_iter().enumerate().map(arena).collect::<Result<_, _>>()?;
        let placed = Placed { arenas, places: memory.places };
        let outputs = recording.outputs.iter().map(|(_, tensor)| recording.tensors[*tensor].bytes(storage));
        let staging = buffer("staging", outputs.max().unwrap_or(4), Role::Staging)?;
        let uniforms = Uniforms::new(gpu, &planned)?;
        let shared = (shared_bytes > 0).then(|| buffer("partial sums", shared_bytes, Role::Storage)).transpose()?;
        let bytes = placed.arenas.iter().chain([&staging, &uniforms.buffer]).chain(&shared).map(Buffer::bytes).sum();
        let binder = Binder { device, recording, weights, placed: &placed, shared: shared.as_ref() };
        let mut units: Vec<Vec<Unit>> = recording.nodes.iter().map(|_| Vec::new()).collect();
        compile::each_unit(device, recording, &planned, |number, pipelines| {
            let step = planned[number].step;
            units[step].push(binder.unit(&planned[number], pipelines, uniforms.of_unit(number))?);
            if planned.get(number + 1).is_some_and(|next| next.step == step) {
                return Ok(());
            }
            let (done, total) = (step + 1, recording.nodes.len());
            on_progress(done, total).check(done, total)
        })?;
        match gpu.save_pipelines() {
            // Without the saved pipelines the next session compiles again, which costs time and nothing else.
            Ok(()) | Err(RuntimeError::Unwritten { .. }) => {}
            Err(error) => return Err(GraphError::at("compiled pipelines")(error)),
        }
        let (gpu, pace) = (Arc::clone(gpu), Pace::of(gpu.adapter().kind));
        Ok(Self { gpu, storage, placed, units, variants, pace, in_flight: None, staging, bytes })
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

    fn whole(&self, tensor: usize, info: &TensorInfo) -> Bound<'_> {
        self.placed.range(tensor, info.bytes(self.storage))
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
        self.placed.arenas.iter().try_for_each(|arena| self.gpu.poison(arena).map_err(GraphError::at(arena.label())))
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

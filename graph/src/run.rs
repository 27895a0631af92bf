//! Sessions: a recording with its memory on one device, ready to be replayed.

use crate::cpu::CpuMemory;
use crate::error::GraphError;
use crate::gpu::GpuMemory;
use crate::progress::{Flow, OnProgress};
use crate::record::Recording;
use crate::weights::Weights;
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::Variant;
use mobilediffusion_kernels::kernel::elements;

/// Recording that is ready to run on a device: memory is allocated, weights are loaded and all steps are bound.
///
/// The usual order is [`write`](Self::write) for every input, [`run`](Self::run), then [`read`](Self::read) for the
/// outputs. Inputs keep their values, so later runs write only what has changed.
#[derive(Debug)]
pub struct Session {
    recording: Recording,
    memory: Memory,
    /// Mask of the inputs that were written since the last complete run.
    dirty: u64,
    /// Mask of the inputs that were ever written.
    written: u64,
    /// Whether the steps that depend on no input have run.
    constants_done: bool,
    /// Whether outputs cannot be read: there was no run, or the last one was stopped or failed and may have overwritten
    /// the outputs of the runs before it.
    unfinished: bool,
}

/// Memory of a recording on one of the two kinds of device.
#[derive(Debug)]
pub(crate) enum Memory {
    Cpu(CpuMemory),
    Gpu(GpuMemory),
}

impl Memory {
    pub(crate) fn new(
        recording: &Recording,
        weights: &Weights,
        on_progress: OnProgress<'_>,
    ) -> Result<Self, GraphError> {
        let made = match weights.device() {
            Device::Cpu(_) => CpuMemory::new(recording, weights, on_progress).map(Self::Cpu),
            Device::Gpu(gpu, storage) => GpuMemory::new(gpu, *storage, recording, weights, on_progress).map(Self::Gpu),
        };
        made.map_err(|error| error.with_needs(|| recording.need(weights.device())))
    }

    pub(crate) fn write(&mut self, recording: &Recording, tensor: usize, values: &[f32]) -> Result<(), GraphError> {
        match self {
            Self::Cpu(memory) => memory.write(tensor, values),
            Self::Gpu(memory) => memory.write(tensor, &recording.tensors[tensor], values)?,
        }
        Ok(())
    }

    pub(crate) fn read(&self, recording: &Recording, tensor: usize) -> Result<Vec<f32>, GraphError> {
        match self {
            Self::Cpu(memory) => Ok(memory.read(tensor)),
            Self::Gpu(memory) => memory.read(tensor, &recording.tensors[tensor]),
        }
    }

    pub(crate) fn run(
        &mut self,
        recording: &Recording,
        steps: &[usize],
        on_progress: OnProgress<'_>,
    ) -> Result<(), GraphError> {
        match self {
            Self::Cpu(memory) => memory.run(recording, steps, on_progress),
            Self::Gpu(memory) => memory.run(steps, on_progress),
        }
    }
}

impl Session {
    /// Creates a session on the device of `weights`: loads the weights that are not there yet, allocates memory and, on
    /// a GPU, compiles and binds every step.
    ///
    /// # Errors
    /// If a weight cannot be loaded or used, or the device has no room or rejects a kernel.
    pub fn new(recording: Recording, weights: &Weights) -> Result<Self, GraphError> {
        Self::new_with(recording, weights, &mut |_, _| Flow::Continue)
    }

    /// Creates a session as [`new`](Self::new) does. `on_progress` is called after each step, which is then ready.
    ///
    /// # Errors
    /// If [`new`](Self::new) would fail, or `on_progress` asked to stop.
    pub fn new_with(recording: Recording, weights: &Weights, on_progress: OnProgress<'_>) -> Result<Self, GraphError> {
        weights.check(&mut |_, _| Flow::Continue)?;
        let memory = Memory::new(&recording, weights, on_progress)?;
        Ok(Self { recording, memory, dirty: 0, written: 0, constants_done: false, unfinished: true })
    }

    /// Fills all planned memory with NaN, so that a test detects steps that read what no step has written.
    ///
    /// Afterwards all inputs have to be written again, and the next run executes every step.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn poison(&mut self) -> Result<(), GraphError> {
        (self.dirty, self.written, self.constants_done, self.unfinished) = (0, 0, false, true);
        match &mut self.memory {
            Memory::Cpu(memory) => memory.poison(),
            Memory::Gpu(memory) => memory.poison()?,
        }
        Ok(())
    }

    /// Returns the recording that the session runs.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Returns the bytes that the session occupies on its device: everything but the weights.
    pub fn bytes(&self) -> u64 {
        match &self.memory {
            Memory::Cpu(memory) => memory.bytes(),
            Memory::Gpu(memory) => memory.bytes(),
        }
    }

    /// Returns the kernel variant of every step; `None` on the CPU, whose kernels have no variants.
    pub fn variants(&self) -> Option<&[Variant]> {
        match &self.memory {
            Memory::Cpu(_) => None,
            Memory::Gpu(memory) => Some(memory.variants()),
        }
    }

    fn find_output(&self, name: &str) -> Result<usize, GraphError> {
        let outputs = &self.recording.outputs;
        let found = outputs.iter().find(|(known, _)| known == name).map(|(_, tensor)| *tensor);
        if found.is_some() && self.unfinished {
            return Err(GraphError::NotComputed { name: name.to_owned() });
        }
        found.ok_or_else(|| GraphError::unknown("output", name, outputs.iter().map(|(known, _)| known)))
    }

    /// Writes the values of an input, row by row and without padding. For a u32 input, each value holds the bits of an
    /// integer; see [`write_u32`](Self::write_u32).
    ///
    /// # Errors
    /// If there is no such input, the number of values is wrong, or the device is lost.
    pub fn write(&mut self, input: &str, values: &[f32]) -> Result<(), GraphError> {
        let (tensor, bit) = self.recording.input(input)?;
        let info = &self.recording.tensors[tensor];
        let expected = elements(&info.shape);
        if values.len() != expected {
            return Err(GraphError::Length { name: input.to_owned(), expected, found: values.len() });
        }
        self.mark(bit);
        self.memory.write(&self.recording, tensor, values)
    }

    /// Writes the values of a u32 input.
    ///
    /// # Errors
    /// If there is no such input, the number of values is wrong, or the device is lost.
    pub fn write_u32(&mut self, input: &str, values: &[u32]) -> Result<(), GraphError> {
        self.write(input, &values.iter().map(|v| f32::from_bits(*v)).collect::<Vec<_>>())
    }

    /// Runs the steps that depend on an input written since the last complete run, and waits for the results. The first
    /// run executes every step.
    ///
    /// # Errors
    /// If an input was never written, or the device is lost.
    pub fn run(&mut self) -> Result<(), GraphError> {
        self.run_with(&mut |_, _| Flow::Continue)
    }

    /// Runs as [`run`](Self::run) does, and can be stopped.
    ///
    /// `on_progress` is called before each step on the CPU, and before each submission on a GPU; the steps are those of
    /// this run. When it asks to stop, outputs cannot be read until a later run completes, which executes the steps of
    /// the stopped run again.
    ///
    /// # Errors
    /// If an input was never written, the device is lost, or `on_progress` asked to stop.
    pub fn run_with(&mut self, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        let steps = self.begin()?;
        self.memory.run(&self.recording, &steps, on_progress)?;
        self.end();
        Ok(())
    }

    /// Runs as [`run_with`](Self::run_with) does, without blocking the thread while a GPU computes. The CPU device computes
    /// inside the poll.
    ///
    /// # Errors
    /// If an input was never written, the device is lost, or `on_progress` asked to stop.
    pub async fn run_async(&mut self, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        self.run_ahead(on_progress).await?;
        match &mut self.memory {
            Memory::Cpu(_) => Ok(()),
            Memory::Gpu(memory) => memory.finish().await,
        }
    }

    /// Runs as [`run_async`](Self::run_async) does, but returns as soon as the last steps are submitted to a GPU. The
    /// device is then not idle between consecutive runs. Whatever is written, run or read next takes effect after those
    /// steps.
    ///
    /// # Errors
    /// If an input was never written, the device is lost, or `on_progress` asked to stop. If the device is lost during
    /// the last steps, the next call returns the error.
    pub async fn run_ahead(&mut self, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        let steps = self.begin()?;
        match &mut self.memory {
            Memory::Cpu(memory) => memory.run(&self.recording, &steps, on_progress)?,
            Memory::Gpu(memory) => memory.run_ahead(&steps, on_progress).await?,
        }
        self.end();
        Ok(())
    }

    /// Marks an input as written.
    fn mark(&mut self, bit: u32) {
        self.dirty |= 1 << bit;
        self.written |= 1 << bit;
    }

    /// Begins a run and returns its steps. All inputs have to be written: steps that depend on a missing one would be
    /// left out silently.
    fn begin(&mut self) -> Result<Vec<usize>, GraphError> {
        if let Some((_, _, input)) = self.recording.inputs().find(|(_, bit, _)| self.written & (1 << bit) == 0) {
            return Err(GraphError::MissingInput { name: input.name.clone() });
        }
        self.unfinished = true;
        Ok(self.due())
    }

    /// Ends a run whose steps are all done or submitted.
    fn end(&mut self) {
        (self.dirty, self.constants_done, self.unfinished) = (0, true, false);
    }

    /// Runs as [`run`](Self::run) does, one step at a time, and returns number and duration in seconds of each step.
    ///
    /// On a GPU the durations come from timestamps if the adapter supports them, otherwise from the wall clock, which
    /// includes the round trip to the device.
    ///
    /// # Errors
    /// If an input was never written, or the device is lost.
    pub fn run_timed(&mut self) -> Result<Vec<(usize, f64)>, GraphError> {
        let steps = self.begin()?;
        let seconds = match &mut self.memory {
            Memory::Cpu(memory) => memory.time(&self.recording, &steps),
            Memory::Gpu(memory) => memory.time(&steps)?,
        };
        self.end();
        Ok(steps.into_iter().zip(seconds).collect())
    }

    /// Runs all steps on a GPU, and returns the seconds that the host spends encoding and submitting them. Returns
    /// `None` on the CPU, where nothing is submitted. All inputs have to be written before.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn overhead(&mut self) -> Result<Option<f64>, GraphError> {
        match &self.memory {
            Memory::Cpu(_) => Ok(None),
            Memory::Gpu(memory) => memory.overhead(&Vec::from_iter(0..self.recording.nodes.len())).map(Some),
        }
    }

    /// Returns the steps that the next run executes.
    fn due(&self) -> Vec<usize> {
        let masks = &self.recording.masks;
        let due = |mask: u64| mask & self.dirty != 0 || (mask == 0 && !self.constants_done);
        (0..masks.len()).filter(|&step| due(masks[step])).collect()
    }

    /// Returns the values of an output, row by row and without padding. For a u32 output, each value holds the bits of
    /// an integer; see [`read_u32`](Self::read_u32).
    ///
    /// # Errors
    /// If there is no such output, there was no run or the last one did not complete, or the device is lost.
    pub fn read(&mut self, output: &str) -> Result<Vec<f32>, GraphError> {
        let tensor = self.find_output(output)?;
        self.memory.read(&self.recording, tensor)
    }

    /// Returns the values of an output as [`read`](Self::read) does, without blocking the thread.
    ///
    /// # Errors
    /// If there is no such output, there was no run or the last one did not complete, or the device is lost.
    pub async fn read_async(&mut self, output: &str) -> Result<Vec<f32>, GraphError> {
        let tensor = self.find_output(output)?;
        match &mut self.memory {
            Memory::Cpu(memory) => Ok(memory.read(tensor)),
            Memory::Gpu(memory) => memory.read_async(tensor, &self.recording.tensors[tensor]).await,
        }
    }

    /// Returns the values of a u32 output.
    ///
    /// # Errors
    /// If there is no such output, there was no run or the last one did not complete, or the device is lost.
    pub fn read_u32(&mut self, output: &str) -> Result<Vec<u32>, GraphError> {
        Ok(self.read(output)?.into_iter().map(f32::to_bits).collect())
    }

    /// Copies an output to an input on the device, as a sampler does between two steps. The input counts as written.
    ///
    /// # Errors
    /// If either name is unknown, the output has not been computed, the two differ in number of elements, channels or
    /// type, or the device is lost.
    pub fn feed_back(&mut self, output: &str, input: &str) -> Result<(), GraphError> {
        let from = self.find_output(output)?;
        let (to, bit) = self.recording.input(input)?;
        let (a, b) = (&self.recording.tensors[from], &self.recording.tensors[to]);
        // Devices pad rows, so tensors of equal size but different channels have different layouts.
        let (node, what) = (input.to_owned(), format!("output `{output}`"));
        if (elements(&a.shape), a.shape.last()) != (elements(&b.shape), b.shape.last()) {
            let (expected, found) = (b.shape.clone(), a.shape.clone());
            return Err(GraphError::Shape { node, what, expected, found });
        }
        if a.dtype != b.dtype {
            return Err(GraphError::Type { node, what, expected: b.dtype, found: a.dtype });
        }
        match &mut self.memory {
            Memory::Cpu(memory) => memory.copy(from, to),
            Memory::Gpu(memory) => memory.copy(from, to, a)?,
        }
        self.mark(bit);
        Ok(())
    }
}

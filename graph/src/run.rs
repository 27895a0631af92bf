//! Sessions: a recording with its memory on one device, replayed with nothing made or looked up per run.

use crate::cpu::CpuMemory;
use crate::error::GraphError;
use crate::gpu::GpuMemory;
use crate::graph::{Origin, TensorInfo};
use crate::plan::Sharing;
use crate::record::Recording;
use crate::weights::{Device, Weights};
use mobilediffusion_kernels::Variant;
use mobilediffusion_kernels::kernel::elements;

/// A recording made ready on a device.
#[derive(Debug)]
pub struct Session {
    recording: Recording,
    memory: Memory,
    /// Inputs written since the last complete run.
    dirty: u64,
    /// A bit for each input that was ever written.
    written: u64,
    /// Steps without inputs have run once.
    constants_done: bool,
    /// There was no run, or the last one was stopped or failed: outputs of runs before it may be overwritten.
    unfinished: bool,
}

/// A plan's memory on one device or the other.
#[derive(Debug)]
pub(crate) enum Memory {
    Cpu(CpuMemory),
    Gpu(GpuMemory),
}

impl Memory {
    pub(crate) fn new(
        recording: &Recording,
        weights: &mut Weights,
        sharing: Sharing,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self, GraphError> {
        let device = weights.device().clone();
        let storage = device.storage();
        let made = match device {
            Device::Cpu(_) => CpuMemory::new(recording, weights, sharing, go_on).map(Self::Cpu),
            Device::Gpu(gpu, storage) => {
                GpuMemory::new((gpu, storage), recording, weights, sharing, go_on).map(Self::Gpu)
            }
        };
        made.map_err(|error| error.with_needs(|| recording.summary(storage)))
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
        go_on: &mut (dyn FnMut(usize, usize) -> bool + Send),
    ) -> Result<(), GraphError> {
        match self {
            Self::Cpu(memory) => memory.run(recording, steps, go_on),
            Self::Gpu(memory) => memory.run(steps, go_on),
        }
    }
}

impl Session {
    /// Loads the weights, makes the buffers and, on a GPU, compiles and binds every step. `go_on` is asked after
    /// each, with the steps that are ready and all of them.
    ///
    /// # Errors
    /// If a weight is missing or refused, the device has no room or refuses a kernel, or `go_on` said no.
    pub fn new(
        recording: Recording,
        weights: &mut Weights,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self, GraphError> {
        Self::with_sharing(recording, weights, Sharing::Planned, go_on)
    }

    /// Like [`new`](Self::new), with a word on whether tensors share memory.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_sharing(
        recording: Recording,
        weights: &mut Weights,
        sharing: Sharing,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self, GraphError> {
        let memory = Memory::new(&recording, weights, sharing, go_on)?;
        Ok(Self { recording, memory, dirty: 0, written: 0, constants_done: false, unfinished: true })
    }

    /// Fills all memory of the plan with NaN, so that a run that reads what no step of it wrote is found out. Inputs
    /// have to be written again, and every step counts as never run.
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

    /// The steps.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Bytes of all that it has on its device for itself: everything but the weights.
    pub fn bytes(&self) -> u64 {
        match &self.memory {
            Memory::Cpu(memory) => memory.bytes(),
            Memory::Gpu(memory) => memory.bytes(),
        }
    }

    /// The variant of every step's kernel; none on the CPU, which has no such choice.
    pub fn variants(&self) -> Option<&[Variant]> {
        match &self.memory {
            Memory::Cpu(_) => None,
            Memory::Gpu(memory) => Some(memory.variants()),
        }
    }

    fn unknown(&self, kind: &'static str, name: &str, known: Vec<&str>) -> GraphError {
        GraphError::Unknown { kind, name: name.to_owned(), known: known.join(", ") }
    }

    fn find_input(&self, name: &str) -> Result<(usize, u32), GraphError> {
        let inputs = || {
            let each = self.recording.tensors.iter().enumerate();
            each.filter_map(
                |(i, t)| if let Origin::Input(bit) = t.origin { Some((i, bit, t.name.as_str())) } else { None },
            )
        };
        let found = inputs().find(|(_, _, known)| *known == name).map(|(i, bit, _)| (i, bit));
        found.ok_or_else(|| self.unknown("input", name, inputs().map(|(_, _, known)| known).collect()))
    }

    fn find_output(&self, name: &str) -> Result<usize, GraphError> {
        let outputs = &self.recording.outputs;
        let found = outputs.iter().find(|(known, _)| known == name).map(|(_, tensor)| *tensor);
        if found.is_some() && self.unfinished {
            return Err(GraphError::Unfinished { name: name.to_owned() });
        }
        found.ok_or_else(|| self.unknown("output", name, outputs.iter().map(|(known, _)| known.as_str()).collect()))
    }

    /// Writes an input: dense values; a u32 input takes the bits of its integers.
    ///
    /// # Errors
    /// If there is no such input, the length is wrong, or the device is lost.
    pub fn write(&mut self, input: &str, values: &[f32]) -> Result<(), GraphError> {
        let (tensor, bit) = self.find_input(input)?;
        let info = &self.recording.tensors[tensor];
        let expected = elements(&info.shape);
        if values.len() != expected {
            return Err(GraphError::Length { name: input.to_owned(), expected, found: values.len() });
        }
        self.mark(bit);
        self.memory.write(&self.recording, tensor, values)
    }

    /// Writes an input of integers.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_u32(&mut self, input: &str, values: &[u32]) -> Result<(), GraphError> {
        self.write(input, &values.iter().map(|v| f32::from_bits(*v)).collect::<Vec<_>>())
    }

    /// Runs the steps that depend on an input written since the last run, which are all of them the first time.
    ///
    /// `go_on` is asked between steps on the CPU, and between chunks on a GPU, with the steps done and those of the
    /// run. If it says no, the run stops; the inputs count as written, and outputs are not read, until a run is complete.
    ///
    /// # Errors
    /// If an input was never written, the device is lost, or the run was stopped.
    pub fn run(&mut self, go_on: &mut (dyn FnMut(usize, usize) -> bool + Send)) -> Result<(), GraphError> {
        let steps = self.begin()?;
        self.memory.run(&self.recording, &steps, go_on)?;
        self.end();
        Ok(())
    }

    /// [`run`](Self::run) for where nobody may wait. A GPU computes while whoever polls this is free; the CPU device
    /// computes in the poll.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_async(&mut self, go_on: &mut (dyn FnMut(usize, usize) -> bool + Send)) -> Result<(), GraphError> {
        self.run_ahead(go_on).await?;
        match &mut self.memory {
            Memory::Cpu(_) => Ok(()),
            Memory::Gpu(memory) => memory.finish().await,
        }
    }

    /// [`run_async`](Self::run_async) that leaves a GPU's last steps on their way: for runs that follow each other, so that the
    /// device has no pause between two. What is written, run or read next comes behind them.
    ///
    /// # Errors
    /// As [`run`](Self::run). A loss of the device in the last steps comes out of the next call.
    pub async fn run_ahead(&mut self, go_on: &mut (dyn FnMut(usize, usize) -> bool + Send)) -> Result<(), GraphError> {
        let steps = self.begin()?;
        match &mut self.memory {
            Memory::Cpu(memory) => memory.run(&self.recording, &steps, go_on)?,
            Memory::Gpu(memory) => memory.run_ahead(&steps, go_on).await?,
        }
        self.end();
        Ok(())
    }

    /// Notes that an input was written.
    fn mark(&mut self, bit: u32) {
        self.dirty |= 1 << bit;
        self.written |= 1 << bit;
    }

    /// The steps of a run that begins. Without an input, steps that wait for it would be left out.
    fn begin(&mut self) -> Result<Vec<usize>, GraphError> {
        let missing = |t: &&TensorInfo| matches!(t.origin, Origin::Input(bit) if self.written & (1 << bit) == 0);
        if let Some(input) = self.recording.tensors.iter().find(missing) {
            return Err(GraphError::Unwritten { name: input.name.clone() });
        }
        self.unfinished = true;
        Ok(self.due())
    }

    /// Everything that was due is done, or on its way.
    fn end(&mut self) {
        (self.dirty, self.constants_done, self.unfinished) = (0, true, false);
    }

    /// Runs the steps that are due one by one and tells the seconds each took: by the GPU's timestamps where it has
    /// some, else by the wall clock, the way to the device and back included.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn run_timed(&mut self) -> Result<Vec<(usize, f64)>, GraphError> {
        let steps = self.begin()?;
        let seconds = match &mut self.memory {
            Memory::Cpu(memory) => memory.time(&self.recording, &steps),
            Memory::Gpu(memory) => memory.time(&steps)?,
        };
        self.end();
        Ok(steps.into_iter().zip(seconds).collect())
    }

    /// Seconds the host spends on encoding and submitting a run of all steps on a GPU; none on the CPU, where nothing is
    /// submitted. All inputs have to be written.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn overhead(&mut self) -> Result<Option<f64>, GraphError> {
        match &self.memory {
            Memory::Cpu(_) => Ok(None),
            Memory::Gpu(memory) => memory.overhead(&Vec::from_iter(0..self.recording.nodes.len())).map(Some),
        }
    }

    /// Steps of the next run.
    fn due(&self) -> Vec<usize> {
        let masks = &self.recording.masks;
        let due = |mask: u64| mask & self.dirty != 0 || (mask == 0 && !self.constants_done);
        (0..masks.len()).filter(|&step| due(masks[step])).collect()
    }

    /// Reads an output: dense values.
    ///
    /// # Errors
    /// If there is no such output, there was no run or it was stopped, or the device is lost.
    pub fn read(&mut self, output: &str) -> Result<Vec<f32>, GraphError> {
        let tensor = self.find_output(output)?;
        self.memory.read(&self.recording, tensor)
    }

    /// [`read`](Self::read) for where nobody may wait.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_async(&mut self, output: &str) -> Result<Vec<f32>, GraphError> {
        let tensor = self.find_output(output)?;
        match &mut self.memory {
            Memory::Cpu(memory) => Ok(memory.read(tensor)),
            Memory::Gpu(memory) => memory.read_async(tensor, &self.recording.tensors[tensor]).await,
        }
    }

    /// Reads an output of integers.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_u32(&mut self, output: &str) -> Result<Vec<u32>, GraphError> {
        Ok(self.read(output)?.into_iter().map(f32::to_bits).collect())
    }

    /// Copies an output to an input of the same shape, on the device: how a sampler's steps follow each other.
    ///
    /// # Errors
    /// If either is unknown, they differ in elements, channels or type, or the device is lost.
    pub fn feed_back(&mut self, output: &str, input: &str) -> Result<(), GraphError> {
        let from = self.find_output(output)?;
        let (to, bit) = self.find_input(input)?;
        let (a, b) = (&self.recording.tensors[from], &self.recording.tensors[to]);
        // The same number of values may lie in other rows, which devices pad.
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

//! Weights on a device. Each weight is loaded once and shared by all sessions that use it.

use crate::error::GraphError;
use crate::graph::{WeightRows, row_len, rows_of};
use crate::progress::{Flow, OnProgress};
use crate::record::Recording;
use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::check::with_exact_sums;
use mobilediffusion_kernels::kernel::{Shape, elements};
use mobilediffusion_kernels::panels::Aligned;
use mobilediffusion_kernels::{DType, GpuDevice, Layout, Operand, Storage, WeightType};
use mobilediffusion_runtime::{Bound, Buffer, Role};
use std::collections::HashMap;
use std::error::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Source of weights, such as a checkpoint. Values are f32, dense and in PyTorch's orientation, row by row.
pub trait WeightLoader {
    /// Returns the values with indices in `part` of the weight `name`, whose shape must be `shape`.
    ///
    /// Large weights are brought to a device in parts, so that the host never holds a whole one.
    ///
    /// # Errors
    /// If there is no such weight, it has another shape, or its values cannot be read.
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>;

    /// Returns all values of a weight.
    ///
    /// # Errors
    /// The errors of [`load_part`](Self::load_part).
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        self.load_part(name, shape, 0..elements(shape))
    }

    /// Checks the values of all weights, for a source that may hold some that no network can use. Called before the
    /// first weight is loaded.
    ///
    /// `on_progress` is called before each weight, and once all are good; a step is a weight. Once it asks to stop the
    /// check ends. Returns its last answer.
    ///
    /// # Errors
    /// If a value cannot be used.
    fn check(&self, on_progress: OnProgress<'_>) -> Result<Flow, Box<dyn Error + Send + Sync>> {
        let _ = on_progress;
        Ok(Flow::Continue)
    }

    /// Returns the error for a weight that has to be stored in f16, which does not hold its value `found`, or a sum of
    /// its values. Overridden to name the file too.
    fn too_large(&self, name: &str, found: f32) -> Box<dyn Error + Send + Sync> {
        let expected = "expected values from -65504 to 65504, which f16 holds";
        format!("{name}: {expected}, found {found} among them or their sums; f32 holds it").into()
    }

    /// Whether 16-bit floats hold all matrices without rounding. Devices then keep them so, in half the memory of f32.
    fn is_f16(&self) -> bool {
        false
    }
}

/// Approximate number of elements loaded at a time: all that the host holds of a weight besides what the device keeps.
const CHUNK: usize = 1 << 20;

/// Splits the first axis into ranges of rows that are loaded and packed together: one range for all rows if packing in
/// this layout moves values between rows.
fn chunks(shape: &[usize], layout: Layout) -> Vec<Range<usize>> {
    let rows = shape.first().copied().unwrap_or(1);
    let row = row_len(shape);
    let step = match layout.rows_together() {
        Some(together) if shape.len() > 1 => (CHUNK / row.max(1) / together).max(1) * together,
        _ => rows.max(1),
    };
    (0..rows).step_by(step).map(|first| first..(first + step).min(rows)).collect()
}

/// Returns the shape of a 1x1 convolution as a matrix, and other shapes as they are. Devices pad the last axis; of a
/// 1x1 convolution that has to be the input channels instead of the single tap.
fn matrix(shape: &[usize]) -> Shape {
    match *shape {
        [co, ci, 1, 1] => vec![co, ci],
        _ => shape.to_vec(),
    }
}

/// Weight in the memory of its device.
#[derive(Clone, Debug)]
pub(crate) enum Resident {
    /// Values in host memory, packed for the CPU form and without padding.
    Cpu(Arc<Aligned>),
    /// Buffer of a GPU: packed, padded and in the storage type.
    Gpu(Buffer),
}

impl Resident {
    /// Returns the number of bytes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Cpu(values) => size_of_val(&values[..]) as u64,
            Self::Gpu(buffer) => buffer.bytes(),
        }
    }
}

/// Weights whose rows make up an operand, and the layout and type in which it is stored.
type Key = (Vec<WeightRows>, Layout, DType);

/// Weights of a network on one device, shared by the sessions that use them.
///
/// A weight is loaded when [`load`](Self::load) or a [`Session`](crate::Session) first needs it, and stays on the
/// device until the `Weights` and all sessions that use it are dropped. Threads that need a weight at the same time may
/// all load it; one of the copies is kept.
pub struct Weights {
    device: Device,
    loader: Box<dyn WeightLoader + Send + Sync>,
    /// Whether the loader [has its matrices in f16](WeightLoader::is_f16).
    is_f16: bool,
    /// Whether the loader has [checked](WeightLoader::check) its values.
    checked: AtomicBool,
    /// Storage type to which values are rounded; see [`rounded`](Self::rounded).
    rounding: Storage,
    /// Locked to look up and to insert only. Weights are packed by rayon, and a thread that waits for rayon may take up
    /// any other of its jobs, even one that needs this lock.
    resident: Mutex<HashMap<Key, Resident>>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} resident)", self.resident().len())
    }
}

impl Weights {
    /// Creates an empty set of weights on `device`, to be loaded by `loader`. A device that would store matrices in f32
    /// stores them in 16 bits if the loader [has them so](WeightLoader::is_f16).
    pub fn new(device: Device, loader: Box<dyn WeightLoader + Send + Sync>) -> Self {
        let is_f16 = loader.is_f16();
        let device = match device.storage().weights {
            WeightType::Floats if is_f16 => device.with_weights(WeightType::F16),
            _ => device,
        };
        Self {
            device,
            loader,
            is_f16,
            checked: AtomicBool::new(false),
            rounding: Storage::F32,
            resident: Mutex::default(),
        }
    }

    /// Makes the CPU device and the references round weights as a device that stores tensors as `storage` does. In a
    /// comparison with that device, its rounding of weights then does not count as an error.
    ///
    /// Both sides have to be told: weights of which a GPU stores sums are replaced by weights whose sums are exact, see
    /// [`with_exact_sums`], on every device. This is the only effect on a GPU.
    #[must_use]
    pub fn rounded(self, storage: Storage) -> Self {
        let device = match self.device {
            // Halves do not hold the values that 8 bits and a scale stand for.
            Device::Cpu(WeightType::F16) if storage.weights == WeightType::Int8 => Device::CPU,
            device => device,
        };
        Self { device, rounding: storage, resident: Mutex::default(), ..self }
    }

    /// Returns the device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the bytes of all weights that have been loaded.
    pub fn bytes(&self) -> u64 {
        self.resident().values().map(Resident::bytes).sum()
    }

    /// Returns the bytes of those weights of a recording that have been loaded.
    pub fn bytes_of(&self, recording: &Recording) -> u64 {
        let resident = self.resident();
        let bytes = |(sources, operand): (&[WeightRows], Operand)| {
            resident.get(&self.key(sources, &operand)).map_or(0, Resident::bytes)
        };
        recording.weights().map(bytes).sum()
    }

    /// Returns what tells the weights `sources`, packed for `operand`, from all others.
    fn key(&self, sources: &[WeightRows], operand: &Operand) -> Key {
        let layout = match self.device {
            Device::Cpu(weights) => operand.host_layout(weights),
            Device::Gpu(..) => operand.layout,
        };
        (sources.to_vec(), layout, operand.dtype)
    }

    /// Checks the values of all weights, unless that was done before. Otherwise [`load`](Self::load) and new sessions do
    /// it first, without a way to follow or stop it.
    ///
    /// `on_progress` is called before each weight, and once all are good; a step is a weight.
    ///
    /// # Errors
    /// If a value cannot be used, or `on_progress` asked to stop.
    pub fn check(&self, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        if self.checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (mut done, mut total) = (0, 0);
        let flow = self.loader.check(&mut |now, of| {
            (done, total) = (now, of);
            on_progress(now, of)
        });
        let flow = flow.map_err(GraphError::Weight)?;
        if flow == Flow::Continue || done == total {
            self.checked.store(true, Ordering::Relaxed);
        }
        flow.check(done, total)
    }

    /// Loads all weights of a recording that are not on the device yet.
    ///
    /// `on_progress` is called before each weight; a step is a weight.
    ///
    /// # Errors
    /// If the loader fails, a value cannot be used, the device has no room, or `on_progress` asked to stop.
    pub fn load(&self, recording: &Recording, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
        self.check(&mut |_, _| Flow::Continue)?;
        let weights: Vec<_> = recording.weights().collect();
        for (done, (sources, operand)) in weights.iter().enumerate() {
            on_progress(done, weights.len()).check(done, weights.len())?;
            self.get(sources, operand)?;
        }
        Ok(())
    }

    /// Returns the weights `sources`, one below the other, packed for `operand`. Loads them if necessary.
    pub(crate) fn get(&self, sources: &[WeightRows], operand: &Operand) -> Result<Resident, GraphError> {
        let key = self.key(sources, operand);
        if let Some(resident) = self.resident().get(&key) {
            return Ok(resident.clone());
        }
        let loaded = match self.device {
            Device::Cpu(weights) => self.to_cpu(weights, sources, operand)?,
            Device::Gpu(ref gpu, storage) => self.to_gpu(GpuDevice { gpu, storage }, sources, operand)?,
        };
        Ok(self.resident().entry(key).or_insert(loaded).clone())
    }

    /// Locks the weights that are on the device.
    fn resident(&self) -> MutexGuard<'_, HashMap<Key, Resident>> {
        // A thread that panicked has left the map whole.
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the selected rows of weights in the order of the checkpoint, rounded for operands of type `dtype`.
    pub(crate) fn values(&self, sources: &[WeightRows], dtype: DType) -> Result<Vec<f32>, GraphError> {
        let mut all = Vec::new();
        for source in sources {
            let values = self.packed(source, (Layout::Rows, dtype), &(0..source.rows.len()))?;
            all.extend(self.rounding.rounded(without_sums(dtype), &source.selected_shape(), values));
        }
        Ok(all)
    }

    /// Loads the selected rows of a weight for a GPU in chunks. Calls `take` with the packed shape of each chunk and its
    /// packed values; its first error ends the work.
    pub(crate) fn in_chunks(
        &self,
        source: &WeightRows,
        operand: &Operand,
        mut take: impl FnMut(Shape, Vec<f32>) -> Result<(), GraphError>,
    ) -> Result<(), GraphError> {
        let (shape, layout) = (&source.selected_shape(), operand.layout);
        for chunk in chunks(shape, layout) {
            let values = self.packed(source, (layout, operand.dtype), &chunk)?;
            take(matrix(&layout.packed_shape(&rows_of(shape, chunk.len()))), values)?;
        }
        Ok(())
    }

    /// Loads and packs the rows `chunk`, counted from the first selected row, for operands of type `dtype`.
    fn packed(
        &self,
        source: &WeightRows,
        (layout, dtype): (Layout, DType),
        chunk: &Range<usize>,
    ) -> Result<Vec<f32>, GraphError> {
        let WeightRows { name, shape, .. } = source;
        let row = row_len(shape);
        let first = source.rows.start;
        let part = (first + chunk.start) * row..(first + chunk.end) * row;
        let values = self.loader.load_part(name, shape, part).map_err(GraphError::Weight)?;
        let shape = rows_of(shape, chunk.len());
        let summed = dtype == DType::WeightSum;
        let packed = layout.pack(&shape, if summed { with_exact_sums(self.rounding, &shape, values) } else { values });
        for storage in [self.device.storage(), self.rounding] {
            self.check_range(name, (storage, dtype), &packed)?;
        }
        Ok(packed)
    }

    /// Checks that values of a weight can be stored. Activations that are too large saturate; such a weight is wrong.
    pub(crate) fn check_range(
        &self,
        name: &str,
        (storage, dtype): (Storage, DType),
        values: &[f32],
    ) -> Result<(), GraphError> {
        let found = storage.beyond(dtype, values);
        found.map_or(Ok(()), |found| Err(GraphError::Weight(self.loader.too_large(name, found))))
    }

    fn to_cpu(&self, weights: WeightType, sources: &[WeightRows], operand: &Operand) -> Result<Resident, GraphError> {
        let host = operand.host_layout(weights).of_layer();
        let rounding = match weights {
            // Packing in these formats rounds by itself.
            _ if matches!(host, Layout::Panels { format, .. } if format.rounds()) => Storage::F32,
            WeightType::Floats => self.rounding,
            // Halves are not rounded again.
            WeightType::F16 if self.is_f16 => self.rounding,
            WeightType::F16 | WeightType::Int8 => self.rounding.with_weights(weights),
        };
        let len = sources.iter().map(|source| elements(&host.packed_shape(&source.selected_shape()))).sum();
        let out_of_memory = |_| GraphError::out_of_host_memory(&sources[0].name, 4 * len);
        let mut all = Aligned::zeros(len).map_err(out_of_memory)?;
        let mut at = 0;
        for source in sources {
            let shape = source.selected_shape();
            for chunk in chunks(&shape, host) {
                let shape = rows_of(&shape, chunk.len());
                let values = self.packed(source, (Layout::Rows, operand.dtype), &chunk)?;
                let matrix = [chunk.len(), row_len(&shape)];
                let rounded = rounding.rounded(without_sums(operand.dtype), &matrix, values);
                let values = host.pack(&shape, rounded);
                all[at..at + values.len()].copy_from_slice(&values);
                at += values.len();
            }
        }
        Ok(Resident::Cpu(Arc::new(all)))
    }

    fn to_gpu(
        &self,
        GpuDevice { gpu, storage }: GpuDevice<'_>,
        sources: &[WeightRows],
        operand: &Operand,
    ) -> Result<Resident, GraphError> {
        let Operand { layout, dtype, .. } = *operand;
        let bytes_of = |source: &WeightRows| {
            storage.tensor_bytes(dtype, &matrix(&layout.packed_shape(&source.selected_shape()))) as u64
        };
        let name = &sources[0].name;
        let all = sources.iter().map(bytes_of).sum();
        let buffer = gpu.buffer(name, all, Role::Storage).map_err(GraphError::at(name))?;
        let mut offset = 0;
        for source in sources {
            self.in_chunks(source, operand, |shape, values| {
                let bytes = storage.encode(dtype, &shape, &values);
                let to = Bound { buffer: &buffer, offset, bytes: buffer.bytes() - offset };
                gpu.upload(to, &bytes).map_err(GraphError::at(&source.name))?;
                offset += bytes.len() as u64;
                Ok(())
            })?;
        }
        Ok(Resident::Gpu(buffer))
    }
}

/// Returns the type to which weights are rounded on the host, which has no sums of weights to round.
fn without_sums(dtype: DType) -> DType {
    if dtype == DType::WeightSum { DType::Elem } else { dtype }
}

#[cfg(test)]
mod tests;

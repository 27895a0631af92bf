//! Weights on a device, each loaded once and shared by every plan that uses it.

use crate::error::GraphError;
use crate::graph::{Origin, WeightRows};
use crate::record::Recording;
use mobilediffusion_kernels::kernel::{Shape, elements};
use mobilediffusion_kernels::panels::Aligned;
use mobilediffusion_kernels::{DType, Layout, Operand, Storage, WeightType};
use mobilediffusion_runtime::{Bound, Buffer, Gpu, Role, RuntimeError};
use std::collections::HashMap;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

/// Where a plan runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host's cores, which compute in f32, and how they store matrices of weights.
    Cpu(WeightType),
    /// A GPU, and how it stores tensors.
    Gpu(Arc<Gpu>, Storage),
}

impl Device {
    /// The host's cores, with everything in f32.
    pub const CPU: Self = Self::Cpu(WeightType::Floats);

    /// How it stores tensors.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Cpu(weights) => Storage::F32.with_weights(*weights),
            Self::Gpu(_, storage) => *storage,
        }
    }
}

/// Gives the values of a weight by its name in the checkpoint, dense, in PyTorch's orientation.
pub trait WeightLoader {
    /// Values of the weight `name`, whose shape must be `shape`.
    ///
    /// # Errors
    /// If there is no such weight or its values are refused.
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>;

    /// These of the values of `name`: how large weights are brought to a device without the whole of them beside it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(self.load(name, shape)?[part].to_vec())
    }
}

/// Elements loaded at a time, about: all that the host holds of a weight besides what the device keeps.
const PART: usize = 1 << 20;

/// Rows of the first axis that are loaded together, as ranges. Where a layout moves values from one row to another, all.
fn parts(shape: &[usize], layout: Layout) -> Vec<Range<usize>> {
    let rows = shape.first().copied().unwrap_or(1);
    let row = elements(shape) / rows.max(1);
    let step = match layout.rows_together() {
        Some(together) if shape.len() > 1 => (PART / row.max(1) / together).max(1) * together,
        _ => rows.max(1),
    };
    (0..rows).step_by(step).map(|first| first..(first + step).min(rows)).collect()
}

/// A 1x1 convolution is a matrix: its rows are what is padded, not its single taps.
fn matrix(shape: &[usize]) -> Shape {
    match *shape {
        [co, ci, 1, 1] => vec![co, ci],
        _ => shape.to_vec(),
    }
}

/// A tensor that does not change, where its device wants it.
#[derive(Clone, Debug)]
pub(crate) enum Resident {
    /// Packed and dense.
    Host(Arc<Aligned>),
    /// Packed, padded and in the storage type.
    Device(Buffer),
}

/// The weights of a model on one device.
pub struct Weights {
    device: Device,
    loader: Box<dyn WeightLoader + Send>,
    /// How the host rounds what it holds.
    rounding: Storage,
    resident: HashMap<(String, Range<usize>, Layout, DType), Resident>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} resident)", self.resident.len())
    }
}

impl Weights {
    /// No weight yet; they are loaded when a session first needs them.
    pub fn new(device: Device, loader: Box<dyn WeightLoader + Send>) -> Self {
        Self { device, loader, rounding: Storage::F32, resident: HashMap::new() }
    }

    /// The same, with values on the host rounded as by a device that stores tensors like this: what such a device is held
    /// to.
    pub fn rounded(self, storage: Storage) -> Self {
        Self { rounding: storage, ..self }
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of those that are there.
    pub fn bytes(&self) -> u64 {
        let bytes = |resident: &Resident| match resident {
            Resident::Host(values) => size_of_val(&values[..]) as u64,
            Resident::Device(buffer) => buffer.bytes(),
        };
        self.resident.values().map(bytes).sum()
    }

    /// Brings every weight of a recording that is not there yet to the device. `go_on` is asked before each with the
    /// weights done and those of the recording.
    ///
    /// # Errors
    /// If a weight is missing or refused, the device has no room, or `go_on` said no.
    pub fn load(
        &mut self,
        recording: &Recording,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), GraphError> {
        let operands = recording.nodes.iter().flat_map(|node| node.kernel.operands().into_iter().zip(&node.operands));
        let weights = operands.filter_map(|(declared, tensor)| {
            let info = &recording.tensors[(*tensor)?];
            if let Origin::Weight(source) = &info.origin { Some((&info.name, source, declared)) } else { None }
        });
        let weights: Vec<_> = weights.collect();
        for (done, (name, source, operand)) in weights.iter().enumerate() {
            if !go_on(done, weights.len()) {
                return Err(GraphError::Stopped { done, total: weights.len() });
            }
            self.get(name, source, operand)?;
        }
        Ok(())
    }

    /// The weight `name` as `operand` wants it.
    pub(crate) fn get(&mut self, name: &str, source: &WeightRows, operand: &Operand) -> Result<Resident, GraphError> {
        let layout = match self.device {
            Device::Cpu(weights) => operand.host_layout(weights),
            Device::Gpu(..) => operand.layout,
        };
        let key = (name.to_owned(), source.rows.clone(), layout, operand.dtype);
        if let Some(resident) = self.resident.get(&key) {
            return Ok(resident.clone());
        }
        let resident = match &self.device {
            Device::Cpu(weights) => self.to_host(*weights, (name, source, operand))?,
            Device::Gpu(gpu, storage) => self.to_gpu(gpu, *storage, (name, source, operand))?,
        };
        self.resident.insert(key, resident.clone());
        Ok(resident)
    }

    /// All rows that are wanted, as in the checkpoint, for operands of this type.
    pub(crate) fn values(&self, name: &str, source: &WeightRows, dtype: DType) -> Result<Vec<f32>, GraphError> {
        let values = self.packed(name, source, Layout::Rows, &(0..source.rows.len()))?;
        Ok(self.rounding.rounded(dtype, &source.part(), values))
    }

    /// Hands over all of a weight, packed, in parts: their shape as it is padded, and their values.
    pub(crate) fn in_parts(
        &self,
        (name, source): (&str, &WeightRows),
        layout: Layout,
        mut take: impl FnMut(Shape, Vec<f32>),
    ) -> Result<(), GraphError> {
        let shape = &source.part();
        for part in parts(shape, layout) {
            let values = self.packed(name, source, layout, &part)?;
            take(matrix(&layout.packed_shape(&rows_of(shape, part.len()))), values);
        }
        Ok(())
    }

    /// Rows `part` of those that are wanted, packed.
    fn packed(
        &self,
        name: &str,
        source: &WeightRows,
        layout: Layout,
        part: &Range<usize>,
    ) -> Result<Vec<f32>, GraphError> {
        let shape = &source.shape;
        let row = elements(shape) / shape.first().copied().unwrap_or(1).max(1);
        let first = source.rows.start;
        let values = match part.len() * row == elements(shape) {
            true => self.loader.load(name, shape),
            false => self.loader.load_part(name, shape, (first + part.start) * row..(first + part.end) * row),
        };
        Ok(layout.pack(&rows_of(shape, part.len()), values.map_err(GraphError::Weight)?))
    }

    fn to_host(
        &self,
        weights: WeightType,
        (name, source, operand): (&str, &WeightRows, &Operand),
    ) -> Result<Resident, GraphError> {
        let shape = source.part();
        let host = operand.host_layout(weights);
        let rounding = match weights {
            // Packing rounds what is kept in 8 bits.
            _ if host == Layout::Int8Panels => Storage::F32,
            WeightType::Int8 => self.rounding.with_weights(weights),
            WeightType::Floats => self.rounding,
        };
        let len = elements(&host.packed_shape(&shape));
        let refused = |_| RuntimeError::OutOfMemory { what: name.to_owned(), bytes: Some(4 * len as u64) };
        let mut all = Aligned::zeros(len).map_err(refused).map_err(GraphError::at(name))?;
        let mut at = 0;
        for part in parts(&shape, host) {
            // Rounded as they lie on the device that this one stands for.
            let (shape, layout) = (rows_of(&shape, part.len()), operand.layout);
            let values = self.packed(name, source, layout, &part)?;
            let values = rounding.rounded(operand.dtype, &matrix(&layout.packed_shape(&shape)), values);
            let values = if layout == host { values } else { host.pack(&shape, layout.unpack(&shape, values)) };
            all[at..at + values.len()].copy_from_slice(&values);
            at += values.len();
        }
        Ok(Resident::Host(Arc::new(all)))
    }

    fn to_gpu(
        &self,
        gpu: &Gpu,
        storage: Storage,
        (name, source, operand): (&str, &WeightRows, &Operand),
    ) -> Result<Resident, GraphError> {
        let shape = &source.part();
        let Operand { layout, dtype, .. } = *operand;
        let packed_shape = |rows: usize| matrix(&layout.packed_shape(&rows_of(shape, rows)));
        let bytes_of = |rows: usize| match rows {
            0 => 0,
            _ => storage.tensor_bytes(dtype, &packed_shape(rows)) as u64,
        };
        let all = bytes_of(shape.first().copied().unwrap_or(1));
        let buffer = gpu.buffer(name, all, Role::Storage).map_err(GraphError::at(name))?;
        for part in parts(shape, layout) {
            let values = self.packed(name, source, layout, &part)?;
            let bytes = storage.encode(dtype, &packed_shape(part.len()), &values);
            let offset = bytes_of(part.start);
            let to = Bound { buffer: &buffer, offset, bytes: buffer.bytes() - offset };
            gpu.upload(to, &bytes).map_err(GraphError::at(name))?;
        }
        Ok(Resident::Device(buffer))
    }
}

/// A tensor of `rows` rows that otherwise is of this shape.
fn rows_of(shape: &[usize], rows: usize) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows;
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_weights_come_in_parts_and_small_ones_whole() {
        for (shape, layout) in [
            (&[640][..], Layout::Rows),
            (&[64, 64, 3, 3], Layout::Taps),
            (&[1, 8 << 20], Layout::Rows),
            // The taps come first there, so that no part of the rows is a part of the packed whole.
            (&[8 << 20, 1, 3, 3], Layout::DepthwiseTaps),
        ] {
            let found = parts(shape, layout);
            assert!(found.len() == 1 && found[0] == (0..shape[0]), "{shape:?}: {found:?}");
        }
        assert_eq!(parts(&[5, 1 << 19], Layout::Rows), [0..2, 2..4, 4..5]);
        let vocabulary = parts(&[49_408, 768], Layout::Rows);
        assert!(vocabulary.iter().all(|part| part.len() * 768 <= PART) && vocabulary.len() == 37, "{vocabulary:?}");
        assert_eq!(vocabulary.iter().map(Range::len).sum::<usize>(), 49_408);
    }

    /// Every value its place in the file.
    struct Counting;

    impl WeightLoader for Counting {
        fn load(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
            Ok((0..elements(shape)).map(|i| (i % 4093) as f32).collect())
        }
    }

    #[test]
    fn parts_make_up_the_packed_whole() {
        let weights = Weights::new(Device::CPU, Box::new(Counting));
        let (matrix, taps) = (vec![3, 2 << 20], vec![600, 1000, 3, 3]);
        for (shape, layout) in [
            (matrix, Layout::Rows),
            (taps.clone(), Layout::Taps),
            (taps.clone(), Layout::Panels),
            (taps.clone(), Layout::Int8Panels),
            (taps, Layout::Winograd(4)),
            (vec![130, 80_000], Layout::Panels),
            (vec![130, 80_000], Layout::Int8Panels),
        ] {
            assert!(parts(&shape, layout).len() > 1, "{shape:?}");
            let own = if shape.len() == 4 { Layout::Taps } else { Layout::Rows };
            let operand = Operand::read("w", shape.clone()).layout(own).host(layout);
            let Ok(Resident::Host(got)) =
                weights.to_host(WeightType::Floats, ("w", &WeightRows::whole(shape.clone()), &operand))
            else {
                panic!("the host has room")
            };
            let want = layout.pack(&shape, Counting.load("w", &shape).unwrap());
            // Of words that are no floats the bits count.
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(bits(&got) == bits(&want), "{shape:?} {layout:?}");
        }
        // The last rows of one that comes as two weights.
        let last = WeightRows { shape: vec![5, 2 << 20], rows: 2..5 };
        let Ok(Resident::Host(got)) =
            weights.to_host(WeightType::Floats, ("w", &last, &Operand::read("w", last.part())))
        else {
            panic!("the host has room")
        };
        assert!(got[..] == Counting.load("w", &last.shape).unwrap()[4 << 20..], "another part");
    }
}

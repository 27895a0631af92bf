//! Weights on a device, each loaded once and shared by every plan that uses it.

use crate::error::GraphError;
use mobilediffusion_kernels::{DType, Layout, Storage};
use mobilediffusion_runtime::{Buffer, Gpu, Role};
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

/// Where a plan runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host's cores.
    Cpu,
    /// A GPU, and how it stores floats.
    Gpu(Arc<Gpu>, Storage),
}

/// Gives the values of a weight by its name in the checkpoint, dense, in PyTorch's orientation.
pub trait WeightLoader {
    /// Values of the weight `name`, whose shape must be `shape`.
    ///
    /// # Errors
    /// If there is no such weight or its values are refused.
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>;
}

/// A tensor that does not change, where its device wants it.
#[derive(Clone, Debug)]
pub(crate) enum Resident {
    /// Packed and dense.
    Host(Arc<Vec<f32>>),
    /// Packed, padded and in the storage type.
    Device(Buffer),
}

/// The weights of a model on one device.
pub struct Weights {
    device: Device,
    loader: Box<dyn WeightLoader + Send>,
    resident: HashMap<(String, Layout), Resident>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} resident)", self.resident.len())
    }
}

impl Weights {
    /// No weight yet; they are loaded when a session first needs them.
    pub fn new(device: Device, loader: Box<dyn WeightLoader + Send>) -> Self {
        Self { device, loader, resident: HashMap::new() }
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn get(&mut self, name: &str, shape: &[usize], layout: Layout) -> Result<Resident, GraphError> {
        let key = (name.to_owned(), layout);
        if let Some(resident) = self.resident.get(&key) {
            return Ok(resident.clone());
        }
        let values = self.loader.load(name, shape).map_err(GraphError::Weight)?;
        let packed = layout.pack(shape, values);
        let resident = self.device.place(name, DType::Elem, &layout.packed_shape(shape), packed)?;
        self.resident.insert(key, resident.clone());
        Ok(resident)
    }
}

impl Device {
    /// Puts a packed tensor where the device wants it.
    pub(crate) fn place(
        &self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<Resident, GraphError> {
        match self {
            Self::Cpu => Ok(Resident::Host(Arc::new(values))),
            Self::Gpu(gpu, storage) => {
                // A 1x1 convolution is a matrix: its rows are what is padded, not its single taps.
                let rows: Vec<usize> = match *shape {
                    [co, ci, 1, 1] => vec![co, ci],
                    _ => shape.to_vec(),
                };
                let bytes = storage.encode(dtype, &rows, &values);
                let buffer = gpu.buffer(name, bytes.len() as u64, Role::Storage).map_err(GraphError::at(name))?;
                gpu.upload(&buffer, &bytes).map_err(GraphError::at(name))?;
                Ok(Resident::Device(buffer))
            }
        }
    }
}

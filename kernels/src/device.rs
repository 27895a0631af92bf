//! Devices that kernels run on.

use crate::storage::{Storage, WeightType};
use mobilediffusion_runtime::Gpu;
use std::sync::Arc;

/// Device on which kernels run, with the types in which it stores tensors.
#[derive(Clone, Debug)]
pub enum Device {
    /// The host's cores, through the CPU forms. Activations are f32; the argument is the type of weight matrices.
    Cpu(WeightType),
    /// A GPU, through the shaders. The argument is the storage type of activations and weights.
    Gpu(Arc<Gpu>, Storage),
}

/// GPU with the types in which it stores tensors: a [`Device::Gpu`] that is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct GpuDevice<'a> {
    /// Open device.
    pub gpu: &'a Gpu,
    /// Storage type of activations and weights.
    pub storage: Storage,
}

impl Device {
    /// The host's cores, with activations and weights in f32.
    pub const CPU: Self = Self::Cpu(WeightType::Floats);

    /// Returns the device with another type for matrices of weights.
    #[must_use]
    pub fn with_weights(self, weights: WeightType) -> Self {
        match self {
            Self::Cpu(_) => Self::Cpu(weights),
            Self::Gpu(gpu, storage) => Self::Gpu(gpu, storage.with_weights(weights)),
        }
    }

    /// Returns the GPU with its storage types; `None` for the CPU.
    pub fn gpu(&self) -> Option<GpuDevice<'_>> {
        match self {
            Self::Cpu(_) => None,
            Self::Gpu(gpu, storage) => Some(GpuDevice { gpu, storage: *storage }),
        }
    }

    /// Returns the types in which the device stores tensors.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Cpu(weights) => Storage::F32.with_weights(*weights),
            Self::Gpu(_, storage) => *storage,
        }
    }
}

//! Where a model runs, how it stores its floats, and what it may use.

use crate::error::ModelError;
use mobilediffusion_graph::Device;
use mobilediffusion_kernels::{Storage, WeightType};
use mobilediffusion_runtime::{AdapterKind, Gpu, RuntimeError, Select};
use std::sync::Arc;

/// Where a pipeline runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware GPU if there is one, else the CPU device.
    #[default]
    Auto,
    /// The CPU device.
    Cpu,
    /// The best GPU adapter, a software one if there is no other.
    Gpu,
    /// The adapter of this index, or whose name or driver contains this.
    Named(String),
}

impl DeviceChoice {
    /// Which adapter that is; none for the CPU device.
    pub fn select(&self) -> Option<Select> {
        match self {
            Self::Cpu => None,
            Self::Auto => Some(Select::Hardware),
            Self::Gpu => Some(Select::Best),
            Self::Named(name) => Some(Select::Named(name.clone())),
        }
    }
}

/// How a GPU stores weights and activations; sums are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Floats {
    /// 16 bits on a hardware GPU that computes with them, which is where matrix units are; else 32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits: half the memory. The CPU device computes in f32 only and refuses it.
    F16,
}

impl Floats {
    /// How an adapter stores them, which computes with 16 bits or does not.
    pub fn stored(self, adapter: AdapterKind, shader_f16: bool) -> Storage {
        match (self, shader_f16) {
            (Self::F16, true) => Storage::F16,
            (Self::F16, false) => Storage::F16_PACKED,
            (Self::Auto, true) if adapter != AdapterKind::Software => Storage::F16,
            (Self::Auto | Self::F32, _) => Storage::F32,
        }
    }
}

/// What holds for everything a model draws. What a GPU's driver compiled, and the variants that were measured, are kept in
/// the user's cache folder, in `mobilediffusion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where.
    pub device: DeviceChoice,
    /// How floats are stored.
    pub floats: Floats,
    /// How matrices of weights are stored. In 8 bits they are made of what the files hold as they are loaded: files of 8-bit
    /// weights are not read. The CPU device keeps in f32 what is no matrix of a product: weights of 3x3 convolutions.
    pub weights: WeightType,
    /// Most bytes of the weights and of one pipeline's plans, none for what the machine has free.
    pub memory: Option<u64>,
    /// Most plans that a pipeline keeps ready. A request needs up to four; a change of size needs two or three others.
    pub plans: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, floats: Floats::Auto, weights: WeightType::Floats, memory: None, plans: 10 }
    }
}

impl Options {
    /// Opens the chosen device and says in one line which and why.
    pub(super) async fn open(&self) -> Result<(Device, String), ModelError> {
        let Some(select) = self.device.select() else { return self.cpu("as asked") };
        match Gpu::open(&select).await.map(Gpu::with_user_cache) {
            Ok(gpu) => {
                let why = if self.device == DeviceChoice::Auto { "the best GPU" } else { "as asked" };
                let storage = self.floats.stored(gpu.adapter().kind, gpu.caps().shader_f16);
                let line = format!("{} ({why})", gpu.adapter());
                Ok((Device::Gpu(Arc::new(gpu), storage.with_weights(self.weights)), line))
            }
            Err(RuntimeError::NoAdapter { .. }) if self.device == DeviceChoice::Auto => {
                self.cpu("there is no hardware GPU")
            }
            Err(error) if self.device == DeviceChoice::Auto => self.cpu(&format!("no GPU could be opened: {error}")),
            Err(error) => Err(error.into()),
        }
    }

    fn cpu(&self, why: &str) -> Result<(Device, String), ModelError> {
        self.check_cpu()?;
        Ok((Device::Cpu(self.weights), format!("CPU, {} threads ({why})", rayon::current_num_threads())))
    }

    /// Whether the CPU device stores floats like this: in f32 only.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_cpu(&self) -> Result<(), ModelError> {
        if self.floats == Floats::F16 {
            let (expected, found) = ("f32 on the CPU device".to_owned(), "f16".to_owned());
            return Err(ModelError::Request { key: "dtype", expected, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_for_hardware_that_computes_with_them() {
        let (hardware, software) = (AdapterKind::Discrete, AdapterKind::Software);
        assert_eq!(Floats::Auto.stored(hardware, true), Storage::F16);
        assert_eq!(Floats::Auto.stored(hardware, false), Storage::F32);
        assert_eq!(Floats::Auto.stored(software, true), Storage::F32);
        assert_eq!(Floats::F32.stored(hardware, true), Storage::F32);
        assert_eq!(Floats::F16.stored(software, true), Storage::F16);
        assert_eq!(Floats::F16.stored(hardware, false), Storage::F16_PACKED);
    }
}

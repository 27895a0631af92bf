//! Options: where a model runs, how it stores its floats, and how much memory it may use.

use crate::error::ModelError;
use mobilediffusion_graph::Device;
use mobilediffusion_kernels::{Storage, WeightType};
use mobilediffusion_runtime::{AdapterKind, AdapterSummary, Gpu, RuntimeError, Select};
use std::path::PathBuf;
use std::sync::Arc;

/// Device that a pipeline runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Hardware GPU if there is one, else the CPU device.
    #[default]
    Auto,
    /// CPU device.
    Cpu,
    /// Best GPU adapter; a software adapter if there is no other.
    Gpu,
    /// Adapter with this index, or with this text in its name or driver.
    Named(String),
}

impl DeviceChoice {
    /// Returns the rule that selects an adapter, or `None` for the CPU device.
    fn select(&self) -> Option<Select> {
        match self {
            Self::Cpu => None,
            Self::Auto => Some(Select::Hardware),
            Self::Gpu => Some(Select::Best),
            Self::Named(name) => Some(Select::Named(name.clone())),
        }
    }

    /// Opens the GPU of this choice, with what `cache` holds for it. [`Auto`](Self::Auto) falls back to the CPU device.
    ///
    /// # Errors
    /// [`RuntimeError`] if the GPU of another choice does not exist or cannot be opened.
    pub async fn open(&self, cache: &Cache) -> Result<Opened, RuntimeError> {
        let Some(select) = self.select() else { return Ok(Opened::Cpu { failure: None }) };
        match Gpu::open(&select).await {
            Ok(gpu) => Ok(Opened::Gpu(Box::new(cache.of(gpu)))),
            Err(RuntimeError::NoAdapter { .. }) if *self == Self::Auto => Ok(Opened::Cpu { failure: None }),
            Err(error) if *self == Self::Auto => Ok(Opened::Cpu { failure: Some(error) }),
            Err(error) => Err(error),
        }
    }
}

/// What a [`DeviceChoice`] led to.
#[derive(Debug)]
pub enum Opened {
    /// Open GPU.
    Gpu(Box<Gpu>),
    /// CPU device.
    Cpu {
        /// Why the hardware GPU that there is could not be opened, if that is why the CPU was taken.
        failure: Option<RuntimeError>,
    },
}

/// Place where a GPU's compiled kernels are kept from one start to the next on Vulkan, and where [measured variants]
/// are looked for on every GPU. Metal and Direct3D depend on caches of the driver or the system. Whoever can write to
/// the place is trusted by the driver.
///
/// [measured variants]: mobilediffusion_kernels::tuning
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Folder `mobilediffusion` in the user's cache folder, which all programs share. Nothing is kept where the system has
    /// no such folder.
    #[default]
    User,
    /// Folder of the application's own. It is created when something is kept.
    Folder(PathBuf),
    /// No place: every start compiles, unless the driver or the system has a cache.
    Nowhere,
}

impl Cache {
    /// Returns the device with this cache.
    fn of(&self, gpu: Gpu) -> Gpu {
        match self {
            Self::User => gpu.with_user_cache(),
            Self::Folder(folder) => gpu.with_pipeline_cache(folder),
            Self::Nowhere => gpu,
        }
    }
}

/// Type in which a GPU stores weights and activations. Sums are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Floats {
    /// 16 bits on a hardware GPU, else 32 bits.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, which takes half the memory. The CPU device computes in f32 only and refuses it; the error calls it
    /// `dtype`, as the command line does.
    F16,
}

impl Floats {
    /// Returns the storage on an adapter. Where its shaders do not know 16-bit floats, as on GPUs of many phones, these
    /// are stored in pairs: steps that wait for memory gain as much by that.
    pub fn storage_on(self, adapter: &AdapterSummary) -> Storage {
        let halves = match self {
            Self::Auto => adapter.kind != AdapterKind::Software,
            Self::F32 => false,
            Self::F16 => true,
        };
        match (halves, adapter.caps.shader_f16) {
            (false, _) => Storage::F32,
            (true, false) => Storage::F16_PACKED,
            (true, true) => Storage::F16,
        }
    }
}

/// Options that hold for everything a model draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Device to run on. The CPU device uses rayon's global pool, which an application that wants fewer threads builds
    /// before it loads a model.
    pub device: DeviceChoice,
    /// Type in which floats are stored.
    pub floats: Floats,
    /// Type in which matrices of weights are stored.
    ///
    /// With [`WeightType::Floats`], a network whose file has all its matrices in f16 keeps them so, also where other
    /// floats are stored in f32: the values are the same, in half the memory.
    ///
    /// Int8 weights are computed from the floats of the files while these are loaded; files of 8-bit weights are not
    /// supported. The CPU device rounds the weights of 3x3 convolutions by Winograd's algorithm or to fewer than 16
    /// channels as well, but keeps them in f32, and does not round those of convolutions that upsample.
    pub weights: WeightType,
    /// Place for what a GPU's driver compiled.
    pub cache: Cache,
    /// Largest number of bytes for the weights and one pipeline's plans together; `None` for what the machine or,
    /// if the device has memory of its own, the device has free, as far as that is known.
    pub memory: Option<u64>,
    /// Largest number of plans that a pipeline keeps ready. A request needs up to four, or six if its batches have two
    /// sizes; a change of size needs two to five others.
    pub plans: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            floats: Floats::Auto,
            weights: WeightType::Floats,
            cache: Cache::User,
            memory: None,
            plans: 10,
        }
    }
}

impl Options {
    /// Opens the chosen device and describes it, with the reason for the choice, in one line.
    pub(super) async fn open(&self) -> Result<(Device, String), ModelError> {
        let auto = self.device == DeviceChoice::Auto;
        match self.device.open(&self.cache).await? {
            Opened::Gpu(gpu) => {
                let why = if auto { "the best GPU" } else { "as asked" };
                let storage = self.floats.storage_on(gpu.adapter());
                let line = format!("{} ({why})", gpu.adapter());
                Ok((Device::Gpu(Arc::new(*gpu), storage.with_weights(self.weights)), line))
            }
            Opened::Cpu { failure: Some(error) } => self.cpu(&format!("no GPU could be opened: {error}")),
            Opened::Cpu { failure: None } => self.cpu(if auto { "there is no hardware GPU" } else { "as asked" }),
        }
    }

    /// Returns the CPU device and its description.
    fn cpu(&self, why: &str) -> Result<(Device, String), ModelError> {
        self.check_cpu()?;
        Ok((Device::Cpu(self.weights), format!("CPU, {} threads ({why})", rayon::current_num_threads())))
    }

    /// Checks that the CPU device supports these options: it stores floats in f32 only.
    ///
    /// # Errors
    /// [`ModelError::Request`] if [`floats`](Self::floats) is [`Floats::F16`].
    pub fn check_cpu(&self) -> Result<(), ModelError> {
        if self.floats == Floats::F16 {
            return Err(ModelError::request("dtype", "f32 on the CPU device", "f16"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_runtime::Caps;

    #[test]
    fn halves_are_for_hardware() {
        let stored = |floats: Floats, kind, shader_f16| {
            let (name, backend, driver) = (String::new(), String::new(), String::new());
            let caps = Caps { shader_f16, ..Caps::PORTABLE };
            floats.storage_on(&AdapterSummary { index: 0, name, backend, driver, kind, vendor: 0, units: None, caps })
        };
        let (hardware, software) = (AdapterKind::Discrete, AdapterKind::Software);
        assert_eq!(stored(Floats::Auto, hardware, true), Storage::F16);
        assert_eq!(stored(Floats::Auto, hardware, false), Storage::F16_PACKED);
        assert_eq!(stored(Floats::Auto, software, true), Storage::F32);
        assert_eq!(stored(Floats::F32, hardware, true), Storage::F32);
        assert_eq!(stored(Floats::F16, software, true), Storage::F16);
        assert_eq!(stored(Floats::F16, hardware, false), Storage::F16_PACKED);
    }
}

//! The options `--device`, `--dtype` and `--weights-dtype` of all commands, and the device that they choose.

use crate::Failure;
use crate::terminal::{note, one_line};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use mobilediffusion_kernels::{Device, FloatType, Storage, WeightType};
use mobilediffusion_model::{Cache, DeviceChoice, ModelError, Opened, Options};
use mobilediffusion_runtime::Gpu;
use std::sync::Arc;

/// Storage type of floating-point tensors, as `--dtype` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Floats {
    #[default]
    F32,
    F16,
}

/// Storage types of weight matrices, as `--weights-dtype` names and explains them.
const WEIGHTS: [(WeightType, &str, &str); 3] = [
    (WeightType::Floats, "floats", "In 16 bits if the files have them so, else in the type of all other floats"),
    (WeightType::F16, "f16", "In 16 bits; those of convolutions that upsample as all other floats"),
    (WeightType::Int8, "int8", "In 8 bits, with one scale per output channel, or four where a GPU upsamples"),
];

/// Parses `--weights-dtype`.
pub(crate) fn weights_dtype() -> impl TypedValueParser<Value = WeightType> {
    let values = WEIGHTS.map(|(_, name, help)| PossibleValue::new(name).help(help));
    let of_name = |given: String| WEIGHTS.into_iter().find(|(_, name, _)| *name == given);
    PossibleValuesParser::new(values).map(move |name| of_name(name).expect("others are refused").0)
}

/// Returns the name of a storage type of weight matrices on the command line.
pub(crate) fn weights_name(weights: WeightType) -> &'static str {
    WEIGHTS.into_iter().find(|(listed, ..)| *listed == weights).expect("all are listed").1
}

impl From<Floats> for mobilediffusion_model::Floats {
    fn from(floats: Floats) -> Self {
        match floats {
            Floats::F32 => Self::F32,
            Floats::F16 => Self::F16,
        }
    }
}

impl Floats {
    /// Returns the type that a model is asked for; without one, the default of its device.
    pub(crate) fn or_auto(asked: Option<Self>) -> mobilediffusion_model::Floats {
        asked.map_or_else(Default::default, Into::into)
    }

    /// Returns the storage to plan with. Both forms of f16 take the same bytes, so one stands for both.
    pub(crate) fn planned(self) -> Storage {
        if self == Self::F32 { Storage::F32 } else { Storage::F16 }
    }

    /// Returns the type's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        if self == Self::F32 { "f32" } else { "f16" }
    }

    /// Returns the type of the floats in a storage.
    pub(crate) fn of(storage: Storage) -> Self {
        if storage.floats == FloatType::F32 { Self::F32 } else { Self::F16 }
    }

    /// Returns how a GPU stores this type: f16 is packed in pairs where shaders cannot compute in f16.
    pub(crate) fn storage(self, gpu: &Gpu) -> Storage {
        mobilediffusion_model::Floats::from(self).storage_on(gpu.adapter())
    }
}

pub(crate) fn device_choice(text: &str) -> Result<DeviceChoice, String> {
    Ok(match text.trim().to_ascii_lowercase().as_str() {
        "auto" => DeviceChoice::Auto,
        "cpu" => DeviceChoice::Cpu,
        "gpu" => DeviceChoice::Gpu,
        "" => return Err("expected auto, gpu, cpu, or an adapter's index or part of its name".into()),
        _ => DeviceChoice::Named(text.into()),
    })
}

/// Opens the selected GPU, and says which of its matrix units are not used. Returns `None` for the CPU, also if `auto`
/// finds no GPU or cannot open it.
pub(crate) fn open(choice: &DeviceChoice) -> Result<Option<Gpu>, Failure> {
    match pollster::block_on(choice.open(&Cache::User))? {
        Opened::Gpu(gpu) => {
            gpu.refused_matrices().iter().for_each(|refused| note(&format!("warning: {refused}")));
            Ok(Some(*gpu))
        }
        Opened::Cpu { failure } => {
            if let Some(error) = failure {
                note(&format!("warning: no GPU could be opened: {}", one_line(&error.to_string())));
            }
            Ok(None)
        }
    }
}

/// Describes a device and how it stores tensors, in one line.
pub(crate) fn shown_as(device: &Device) -> String {
    match device {
        Device::Cpu(_) => format!("device: CPU, {}", device.storage()),
        Device::Gpu(gpu, storage) => format!("device: {}, {storage}", gpu.adapter()),
    }
}

/// Returns where kernels run and how tensors are stored there. `floats` is `None` for the default of the device.
///
/// # Errors
/// If the CPU was to store floats in f16, with the message that `generate` has for it.
pub(crate) fn device(
    gpu: Option<&Arc<Gpu>>,
    floats: Option<Floats>,
    weights: WeightType,
) -> Result<Device, ModelError> {
    let floats = Floats::or_auto(floats);
    let Some(gpu) = gpu else {
        Options { floats, ..Options::default() }.check_cpu()?;
        return Ok(Device::Cpu(weights));
    };
    let storage = floats.storage_on(gpu.adapter());
    Ok(Device::Gpu(Arc::clone(gpu), storage.with_weights(weights)))
}

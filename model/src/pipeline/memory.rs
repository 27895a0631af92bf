//! Whether a request fits into memory, decided before anything is made, and what would fit if it does not.

use super::plans::Key;
use crate::config::{ModelConfig, PIXELS_PER_LATENT, SIZE_MULTIPLE};
use crate::error::{ModelError, mib};
use crate::networks::Shape;
use mobilediffusion_graph::plan::{Lifetime, lower_bound};
use mobilediffusion_graph::{Device, Recording};
use mobilediffusion_kernels::{FloatType, Storage, WeightType};
use mobilediffusion_runtime::AdapterKind;
use std::sync::Arc;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes of one plan, or of all plans of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Of its weights, which plans of one network share.
    pub(super) weights: u64,
    /// Of everything else.
    pub(super) plan: u64,
    /// Of its largest operand; 0 on the CPU device, which has no limit to one.
    pub(super) largest: u64,
}

impl Need {
    /// What a recording needs on a device: at least, a plan takes a few per cent more than its most crowded step, and stages
    /// of a step may share some memory.
    pub(super) fn of(recording: &Recording, device: &Device) -> Self {
        let storage = storage(device);
        let lifetimes = recording.lifetimes(|tensor| storage.tensor_bytes(tensor.dtype, &tensor.shape));
        let lifetimes: Vec<Lifetime> = lifetimes.into_iter().map(|(_, lifetime)| lifetime).collect();
        let operands = recording.nodes.iter().flat_map(|node| node.kernel.operands());
        let bytes = operands.map(|o| storage.tensor_bytes(o.dtype, &o.layout.packed_shape(&o.shape)));
        let largest = if matches!(device, Device::Cpu) { 0 } else { bytes.max().unwrap_or(0) };
        let weights = match device {
            Device::Cpu => recording.host_weight_bytes(),
            Device::Gpu(..) => recording.weight_bytes(storage),
        };
        let plan = lower_bound(&lifetimes);
        Self { weights: weights as u64, plan: plan as u64, largest: largest as u64 }
    }

    fn and(self, other: Self) -> Self {
        let largest = self.largest.max(other.largest);
        Self { weights: self.weights + other.weights, plan: self.plan + other.plan, largest }
    }

    pub(super) fn total(self) -> u64 {
        self.weights + self.plan
    }
}

/// How a device stores floats.
pub(super) fn storage(device: &Device) -> Storage {
    match device {
        Device::Cpu => Storage::F32,
        Device::Gpu(_, storage) => *storage,
    }
}

/// How a GPU could store the same in fewer bytes, what rounds least first, and how an offer says so.
fn smaller(storage: Storage) -> Vec<(Storage, &'static str)> {
    let half = Storage { floats: FloatType::F16, ..storage };
    let int8 = storage.with_weights(WeightType::Int8);
    let both = half.with_weights(WeightType::Int8);
    match (storage.floats, storage.weights) {
        (FloatType::F32, WeightType::Floats) => {
            vec![
                (half, " in 16-bit floats"),
                (int8, " with int8 weights"),
                (both, " in 16-bit floats with int8 weights"),
            ]
        }
        (FloatType::F32, WeightType::Int8) => vec![(half, " in 16-bit floats")],
        (_, WeightType::Floats) => vec![(int8, " with int8 weights")],
        (_, WeightType::Int8) => Vec::new(),
    }
}

/// What may help where nobody can say how much memory there is, as a GPU stores tensors or, without one, on the CPU device.
fn may_fit(gpu: Option<Storage>) -> &'static str {
    match gpu.map(|Storage { floats, weights }| (floats, weights)) {
        Some((FloatType::F32, WeightType::Floats)) => "a smaller picture, 16-bit floats or int8 weights may fit",
        Some((FloatType::F32, WeightType::Int8)) => "a smaller picture or 16-bit floats may fit",
        Some((_, WeightType::Floats)) => "a smaller picture or int8 weights may fit",
        Some((_, WeightType::Int8)) | None => "a smaller picture may fit",
    }
}

/// Most bytes a device takes in one buffer.
fn most_in_one(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => None,
        Device::Gpu(gpu, _) => Some(gpu.caps().max_binding_bytes.min(gpu.caps().max_buffer_bytes)),
    }
}

/// Bytes the machine has free for a device; none where nobody can say: a GPU with memory of its own.
pub(super) fn free(device: &Device) -> Option<u64> {
    if let Device::Gpu(gpu, _) = device
        && matches!(gpu.adapter().kind, AdapterKind::Discrete | AdapterKind::Other)
    {
        return None;
    }
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory)).ok()?;
    // A container may be allowed less than the machine has.
    let allowed = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    Some(system.available_memory().min(allowed)).filter(|bytes| *bytes > 0)
}

/// A request as far as its memory goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) device: &'a Device,
    pub(super) shape: &'a Shape,
    pub(super) keys: &'a [Key],
}

impl Ask<'_> {
    /// Refuses what no device memory would help: a buffer larger than the device takes.
    pub(super) fn check_buffers(&self, needs: &[Need]) -> Result<(), ModelError> {
        let largest = needs.iter().map(|need| need.largest).max().unwrap_or(0);
        match most_in_one(self.device) {
            Some(most) if largest > most => Err(self.refused("in one buffer", largest, None, Some(most))),
            _ => Ok(()),
        }
    }

    /// The error for a request that needs more than `available`; none where the device does not say how much there is.
    pub(super) fn too_much(&self, needed: u64, available: Option<u64>) -> ModelError {
        self.refused("for weights and plans", needed, available, available)
    }

    fn refused(&self, what: &'static str, needed: u64, budget: Option<u64>, available: Option<u64>) -> ModelError {
        let Shape { latent_width, latent_height, .. } = *self.shape;
        let (width, height) = (PIXELS_PER_LATENT * latent_width, PIXELS_PER_LATENT * latent_height);
        let advice = match available {
            Some(_) => self.advice(budget),
            None => {
                let gpu = if let Device::Gpu(_, storage) = self.device { Some(*storage) } else { None };
                may_fit(gpu).to_owned()
            }
        };
        ModelError::Memory { width, height, what, needed, available, advice }
    }

    /// The largest picture that fits as the device stores it now, then every other way to store it in which a larger one
    /// fits than in those before, with the bytes it takes.
    fn advice(&self, budget: Option<u64>) -> String {
        let others = match self.device {
            Device::Gpu(gpu, storage) => smaller(*storage)
                .into_iter()
                .map(|(storage, how)| (Device::Gpu(Arc::clone(gpu), storage), how))
                .collect(),
            Device::Cpu => Vec::new(),
        };
        let (mut offers, mut most_pixels) = (Vec::new(), 0);
        for (device, how) in std::iter::once((self.device.clone(), "")).chain(others) {
            let Some((width, height, bytes)) = Ask { device: &device, ..*self }.largest(budget) else { continue };
            if width * height > most_pixels {
                most_pixels = width * height;
                offers.push(format!("{width}x{height}{how} would fit with {} for weights and plans", mib(bytes)));
            }
        }
        if offers.is_empty() { "no picture would fit".to_owned() } else { offers.join("; ") }
    }

    /// Width, height and bytes of the largest picture of nearly the same form, and at most this size, that fits.
    fn largest(&self, budget: Option<u64>) -> Option<(usize, usize, u64)> {
        let unit = SIZE_MULTIPLE / PIXELS_PER_LATENT;
        let longest = self.shape.latent_width.max(self.shape.latent_height) / unit;
        let scaled = |side: usize, k: usize| (side * k / (longest * unit)).max(1) * unit;
        let (mut fits, mut too_much, mut best) = (0, longest + 1, None);
        while fits + 1 < too_much {
            let k = usize::midpoint(fits, too_much);
            let latent_width = scaled(self.shape.latent_width, k);
            let latent_height = scaled(self.shape.latent_height, k);
            let need = self.need_of(&Shape { latent_width, latent_height, ..*self.shape })?;
            let in_one = most_in_one(self.device).is_none_or(|most| need.largest <= most);
            if in_one && budget.is_none_or(|budget| need.total() <= budget) {
                best = Some((PIXELS_PER_LATENT * latent_width, PIXELS_PER_LATENT * latent_height, need.total()));
                fits = k;
            } else {
                too_much = k;
            }
        }
        best
    }

    /// What all plans of another shape would need, with their weights.
    fn need_of(&self, shape: &Shape) -> Option<Need> {
        let need = |key: &Key| {
            let graph = key.of_shape(shape).graph(self.config, shape).ok()?;
            Some(Need::of(&Recording::new(graph), self.device))
        };
        self.keys.iter().try_fold(Need::default(), |sum, key| Some(sum.and(need(key)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::DType;

    #[test]
    fn only_what_takes_fewer_bytes_is_offered() {
        const HALF: &str = "16-bit floats";
        const INT8: &str = "int8 weights";
        let int8 = |storage: Storage| storage.with_weights(WeightType::Int8);
        for (storage, offered) in [
            (Storage::F32, &[HALF, INT8][..]),
            (Storage::F16, &[INT8]),
            (Storage::F16_PACKED, &[INT8]),
            (int8(Storage::F32), &[HALF]),
            (int8(Storage::F16), &[]),
            (int8(Storage::F16_PACKED), &[]),
        ] {
            let (others, said) = (smaller(storage), may_fit(Some(storage)));
            for what in [HALF, INT8] {
                let named = others.iter().any(|(_, how)| how.contains(what));
                let expected = offered.contains(&what);
                assert_eq!((named, said.contains(what)), (expected, expected), "{storage}, {what}: {said}");
            }
            let bytes = |storage: Storage| {
                [DType::Elem, DType::Weight].map(|t| storage.tensor_bytes(t, &[64, 64])).iter().sum::<usize>()
            };
            assert!(others.iter().all(|(other, _)| bytes(*other) < bytes(storage)), "{storage}: {others:?}");
        }
        assert_eq!(may_fit(None), "a smaller picture may fit", "the CPU device stores in f32 only");
    }
}

//! Memory check: decides whether a request fits before anything is allocated, and finds what would fit otherwise.

use super::plans::Key;
use super::shared::Model;
use crate::config::PIXELS_PER_LATENT;
use crate::error::{ModelError, mib};
use crate::networks::{LatentSize, Network};
use mobilediffusion_graph::{Device, Need, Recording};
use mobilediffusion_kernels::{FloatType, Storage, WeightType};
use mobilediffusion_runtime::AdapterKind;
use std::collections::HashSet;
use std::sync::Arc;
use sysinfo::{CGroupLimits, MemoryRefreshKind, RefreshKind, System};

/// Returns what several plans need. Plans of one network share its weights.
pub(super) fn together(plans: impl IntoIterator<Item = (Key, Need)>) -> Need {
    let (mut all, mut networks) = (Need::default(), HashSet::new());
    for (key, need) in plans {
        all.plan += need.plan;
        all.largest = all.largest.max(need.largest);
        if networks.insert(key.network()) {
            all.weights += need.weights;
        }
    }
    all
}

/// Returns whether a device with this storage would need fewer bytes with 16-bit floats, which only GPUs support, with
/// 16-bit weights alone, and with int8 weights.
fn could_store(storage: Storage, on_gpu: bool) -> (bool, bool, bool) {
    let f32 = storage.floats == FloatType::F32;
    (on_gpu && f32, f32 && storage.weights == WeightType::Floats, storage.weights != WeightType::Int8)
}

/// Returns the storages that need fewer bytes, the one with the smallest rounding error first, each with its
/// description in an offer.
fn smaller(storage: Storage, on_gpu: bool) -> Vec<(Storage, &'static str)> {
    let (halves, weights, int8) = could_store(storage, on_gpu);
    let half = Storage::F16.with_weights(storage.weights);
    let all = [
        (weights, storage.with_weights(WeightType::F16), " with 16-bit weights"),
        (halves, half, " in 16-bit floats"),
        (int8, storage.with_weights(WeightType::Int8), " with int8 weights"),
        (halves && int8, half.with_weights(WeightType::Int8), " in 16-bit floats with int8 weights"),
    ];
    all.into_iter().filter(|(could, ..)| *could).map(|(_, storage, how)| (storage, how)).collect()
}

/// Returns the advice for so many pictures at once where the amount of memory is unknown.
fn may_fit(pictures: usize, storage: Storage, on_gpu: bool) -> String {
    let (halves, weights, int8) = could_store(storage, on_gpu);
    let all = [
        (pictures > 1, "fewer pictures at once"),
        (true, "a smaller picture"),
        (halves, "16-bit floats"),
        (weights && !halves, "16-bit weights"),
        (int8, "int8 weights"),
    ];
    let ways: Vec<&str> = all.into_iter().filter_map(|(could, way)| could.then_some(way)).collect();
    match ways.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last} may fit", first.join(", ")),
        _ => format!("{} may fit", ways.join("")),
    }
}

/// Returns the same device with another storage.
fn storing(device: &Device, storage: Storage) -> Device {
    match device {
        Device::Cpu(_) => Device::Cpu(storage.weights),
        Device::Gpu(gpu, _) => Device::Gpu(Arc::clone(gpu), storage),
    }
}

/// Whether the device is a GPU.
fn is_gpu(device: &Device) -> bool {
    matches!(device, Device::Gpu(..))
}

/// Returns the size limit of one buffer in bytes, if the device has one.
fn most_in_one(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu(_) => None,
        Device::Gpu(gpu, _) => Some(gpu.caps().max_binding_bytes.min(gpu.caps().max_buffer_bytes)),
    }
}

/// Returns the number of bytes that are free for a device, or `None` where it is unknown: where the system does not say
/// it, and on a GPU with memory of its own whose driver does not say it.
pub(crate) fn free(device: &Device) -> Option<u64> {
    if let Device::Gpu(gpu, _) = device
        && matches!(gpu.adapter().kind, AdapterKind::Discrete | AdapterKind::Other)
    {
        return gpu.free_memory();
    }
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory)).ok()?;
    free_of(system.available_memory(), system.cgroup_limits().as_ref())
}

/// Returns the smaller of what the machine has free and what is left of the limit of the container, which may be
/// allowed less. A system that says 0 for the machine does not know.
fn free_of(available: u64, container: Option<&CGroupLimits>) -> Option<u64> {
    let available = (available > 0).then_some(available);
    // `free_memory` counts files in the page cache as used, although the system drops them where memory is needed. Memory
    // that is shared, as that of some drivers, is not counted as used here.
    let allowed = container.map(|limits| limits.total_memory.saturating_sub(limits.rss));
    available.into_iter().chain(allowed).min()
}

/// Request, as far as its memory is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) model: &'a Model,
    pub(super) device: &'a Device,
    pub(super) latent: LatentSize,
    /// Number of pictures that are drawn at once.
    pub(super) pictures: usize,
    pub(super) keys: &'a [Key],
}

impl Ask<'_> {
    /// Refuses a request that needs a larger buffer than the device supports, whatever its memory.
    pub(super) fn check_buffers(&self, needs: impl Iterator<Item = Need>) -> Result<(), ModelError> {
        let largest = needs.map(|need| need.largest).max().unwrap_or(0);
        match most_in_one(self.device) {
            Some(most) if largest > most => Err(self.refused("in one buffer", largest, None, Some(most))),
            _ => Ok(()),
        }
    }

    /// Returns the error for a request that needs more than `available` bytes. `available` is `None` where the device
    /// does not report its memory.
    pub(super) fn too_much(&self, needed: u64, available: Option<u64>) -> ModelError {
        self.refused("for weights and plans", needed, available, available)
    }

    /// Returns the types in which the UNet is stored, the largest network.
    fn storage(&self) -> Storage {
        let unet = self.keys.iter().find(|key| matches!(key.network(), Network::Unet(_)));
        let device = unet.and_then(|key| self.model.device_of(key.network()).ok());
        device.as_ref().unwrap_or(self.device).storage()
    }

    /// Returns the error with advice.
    fn refused(&self, what: &'static str, needed: u64, budget: Option<u64>, available: Option<u64>) -> ModelError {
        let (width, height) = self.latent.pixels();
        let advice = match available {
            Some(_) => self.advice(budget),
            None => may_fit(self.pictures, self.storage(), is_gpu(self.device)),
        };
        ModelError::Memory { pictures: self.pictures, width, height, what, needed, available, advice }
    }

    /// Describes the largest picture that fits by itself if several were to be drawn at once, the largest that fits with
    /// the current storage, and each other storage that allows a larger picture than those before it, with the bytes it
    /// needs.
    fn advice(&self, budget: Option<u64>) -> String {
        let (mut offers, mut most_pixels) = (Vec::new(), 0);
        let mut alone: Vec<Key> = Vec::new();
        for key in self.keys.iter().map(|key| key.of_one()) {
            if !alone.contains(&key) {
                alone.push(key);
            }
        }
        if alone != self.keys
            && let Some((width, height, bytes)) = (Ask { keys: &alone, ..*self }).largest(None, budget)
        {
            most_pixels = width * height;
            offers.push(format!("{width}x{height} one by one would fit with {} for weights and plans", mib(bytes)));
        }
        let others =
            smaller(self.storage(), is_gpu(self.device)).into_iter().map(|(storage, how)| (Some(storage), how));
        for (storage, how) in std::iter::once((None, "")).chain(others) {
            let Some((width, height, bytes)) = self.largest(storage, budget) else { continue };
            if width * height > most_pixels {
                most_pixels = width * height;
                offers.push(format!("{width}x{height}{how} would fit with {} for weights and plans", mib(bytes)));
            }
        }
        if offers.is_empty() { "no picture would fit".to_owned() } else { offers.join("; ") }
    }

    /// Returns width, height and bytes of the largest picture that fits, with nearly the same aspect ratio and at
    /// most the size that was asked for. `storage` is another storage than the one that the networks have now.
    fn largest(&self, storage: Option<Storage>, budget: Option<u64>) -> Option<(usize, usize, u64)> {
        let unit = self.model.config().size_multiple() / PIXELS_PER_LATENT;
        let longest = self.latent.width.max(self.latent.height) / unit;
        let scaled = |side: usize, k: usize| (side * k / (longest * unit)).max(1) * unit;
        let (mut fits, mut too_much, mut best) = (0, longest + 1, None);
        while fits + 1 < too_much {
            let k = usize::midpoint(fits, too_much);
            let latent = LatentSize { height: scaled(self.latent.height, k), width: scaled(self.latent.width, k) };
            let need = self.need_of(latent, storage)?;
            let in_one = most_in_one(self.device).is_none_or(|most| need.largest <= most);
            if in_one && budget.is_none_or(|budget| need.total() <= budget) {
                let (width, height) = latent.pixels();
                best = Some((width, height, need.total()));
                fits = k;
            } else {
                too_much = k;
            }
        }
        best
    }

    /// Returns what all plans for another size would need, weights included.
    fn need_of(&self, latent: LatentSize, storage: Option<Storage>) -> Option<Need> {
        let need = |key: &Key| {
            let graph = key.of_size(latent).graph(self.model.config()).ok()?;
            let device = match storage {
                Some(storage) => storing(self.device, storage),
                None => self.model.device_of(key.network()).ok()?,
            };
            Some((*key, Recording::new(graph).need(&device)))
        };
        Some(together(self.keys.iter().map(need).collect::<Option<Vec<_>>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::DType;

    #[test]
    fn a_container_may_use_less_than_is_free_and_never_more() {
        // Files in the page cache fill every container here.
        let limits = |total_memory, rss| CGroupLimits { total_memory, free_memory: 0, free_swap: 0, rss };
        for (available, container, free) in [
            (8 << 30, None, Some(8 << 30)),
            (8 << 30, Some(limits(4 << 30, 3 << 30)), Some(1 << 30)),
            (8 << 30, Some(limits(1 << 40, 1 << 30)), Some(8 << 30)),
            (0, None, None),
            (0, Some(limits(4 << 30, 3 << 30)), Some(1 << 30)),
            // Full is not unknown.
            (8 << 30, Some(limits(4 << 30, 4 << 30)), Some(0)),
            (8 << 30, Some(limits(4 << 30, 5 << 30)), Some(0)),
        ] {
            assert_eq!(free_of(available, container.as_ref()), free, "{available} bytes free, {container:?}");
        }
    }

    #[test]
    fn advice_is_a_sentence_of_what_is_possible() {
        let int8 = Storage::F32.with_weights(WeightType::Int8);
        for (pictures, storage, advice) in [
            (1, int8, "a smaller picture may fit"),
            (2, int8, "fewer pictures at once or a smaller picture may fit"),
            (2, Storage::F32, "fewer pictures at once, a smaller picture, 16-bit weights or int8 weights may fit"),
        ] {
            assert_eq!(may_fit(pictures, storage, false), advice, "{pictures} pictures, {storage}");
        }
    }

    #[test]
    fn only_what_takes_fewer_bytes_is_offered() {
        const HALF: &str = "16-bit";
        const INT8: &str = "int8 weights";
        let int8 = |storage: Storage| storage.with_weights(WeightType::Int8);
        let f16_weights = Storage::F32.with_weights(WeightType::F16);
        for (on_gpu, storage, offered) in [
            (true, Storage::F32, &[HALF, INT8][..]),
            (true, f16_weights, &[HALF, INT8]),
            (true, Storage::F16, &[INT8]),
            (true, Storage::F16_PACKED, &[INT8]),
            (true, int8(Storage::F32), &[HALF]),
            (true, int8(Storage::F16), &[]),
            (true, int8(Storage::F16_PACKED), &[]),
            (false, Storage::F32, &[HALF, INT8]),
            (false, f16_weights, &[INT8]),
            (false, int8(Storage::F32), &[]),
        ] {
            let (others, said) = (smaller(storage, on_gpu), may_fit(1, storage, on_gpu));
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
    }
}

//! Operands of a kernel in the memory of a GPU, each between two fences of poison, so that a write out of bounds is found.

use crate::check::POISON;
use crate::device::GpuDevice;
use crate::kernel::{Access, DType, Kernel, Operand, split};
use crate::runner::RunError;
use crate::storage::Storage;
use crate::variant::Variant;
use mobilediffusion_runtime::{Bound, Buffer, Gpu, Role, RuntimeError};

/// Number of poisoned bytes on each side of an operand. A multiple of every alignment.
const FENCE_BYTES: usize = 256;

/// Operand in a buffer of its own, between fences of poison.
#[derive(Clone, Debug)]
pub struct Fenced {
    /// Operand that the buffer holds.
    pub operand: Operand,
    /// Buffer with the fences.
    pub buffer: Buffer,
    /// Number of bytes between the fences.
    bytes: usize,
}

impl Fenced {
    /// Allocates the memory of an operand, all of it poisoned.
    fn new(GpuDevice { gpu, storage }: GpuDevice<'_>, operand: Operand) -> Result<Self, RuntimeError> {
        let bytes = operand.bytes(storage);
        let buffer = gpu.buffer(operand.name, (bytes + 2 * FENCE_BYTES) as u64, Role::Storage)?;
        gpu.poison(&buffer)?;
        Ok(Self { operand, buffer, bytes })
    }

    /// Returns the part of the buffer between the fences.
    pub fn bound(&self) -> Bound<'_> {
        Bound { buffer: &self.buffer, offset: FENCE_BYTES as u64, bytes: self.bytes.next_multiple_of(4) as u64 }
    }

    /// Returns everything in the buffer, fences included.
    fn download(&self, gpu: &Gpu) -> Result<Vec<u8>, RuntimeError> {
        gpu.download(&self.buffer, &gpu.buffer("staging", self.buffer.bytes(), Role::Staging)?)
    }

    /// Checks the fences. `kernel` names the kernel in an error.
    pub(crate) fn check(&self, gpu: &Gpu, kernel: impl FnOnce() -> String) -> Result<(), RunError> {
        if fences_stand(&self.download(gpu)?, self.bytes) {
            return Ok(());
        }
        Err(RunError::Outside { kernel: kernel(), operand: self.operand.name })
    }
}

/// Allocates the operands of a kernel that are present, and uploads those that it reads. `inputs` holds the values of
/// all that it reads, absent ones included. Returns the operands in binding order.
///
/// # Errors
/// If the device has no room or is lost.
pub fn upload(device: GpuDevice<'_>, kernel: &dyn Kernel, inputs: &[Vec<f32>]) -> Result<Vec<Fenced>, RuntimeError> {
    let mut values = inputs.iter();
    let valued = kernel.operands().into_iter().map(|operand| {
        let values = if operand.access == Access::Read { values.next() } else { None };
        (operand, values)
    });
    let one = |(operand, values): (Operand, Option<&Vec<f32>>)| {
        let fenced = Fenced::new(device, operand)?;
        let operand = &fenced.operand;
        if let Some(values) = values {
            let packed = operand.layout.pack(&operand.shape, values.clone());
            let encoded = device.storage.encode(operand.dtype, &operand.layout.packed_shape(&operand.shape), &packed);
            device.gpu.upload(Bound { bytes: fenced.bytes as u64, ..fenced.bound() }, &encoded)?;
        }
        Ok(fenced)
    };
    valued.filter(|(operand, _)| operand.present).map(one).collect()
}

/// Allocates the memory that the stages of a variant share. `None` if they share none.
///
/// # Errors
/// If the device cannot allocate the memory.
pub fn shared(device: GpuDevice<'_>, kernel: &dyn Kernel, variant: &Variant) -> Result<Option<Fenced>, RuntimeError> {
    let (stages, operands) = (kernel.stages(variant), kernel.operands().len());
    let shared = stages.iter().find_map(|stage| stage.shared(operands));
    shared.map(|operand| Fenced::new(device, operand.clone())).transpose()
}

/// Returns the values of the operands that the kernel writes, without padding. An operand that is absent has none.
/// `operands` are those from [`upload`].
///
/// # Errors
/// [`RunError::Outside`] or [`RunError::Padding`] if the kernel wrote where it should not, or an error of the device.
pub fn download(device: GpuDevice<'_>, kernel: &dyn Kernel, operands: &[Fenced]) -> Result<Vec<Vec<f32>>, RunError> {
    let one = |written: Operand| match operands.iter().find(|fenced| fenced.operand.name == written.name) {
        Some(fenced) => unfenced(kernel, &fenced.operand, device.storage, &fenced.download(device.gpu)?, fenced.bytes),
        None => Ok(Vec::new()),
    };
    split(kernel).1.into_iter().map(one).collect()
}

fn poison(bytes: usize) -> Vec<u8> {
    POISON.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

/// Returns whether the fences around a tensor of `bytes` bytes are intact.
fn fences_stand(all: &[u8], bytes: usize) -> bool {
    let whole = |fence: &[u8]| fence.iter().zip(poison(fence.len())).all(|(got, want)| *got == want);
    [&all[..FENCE_BYTES], &all[FENCE_BYTES + bytes..]].into_iter().all(whole)
}

/// Decodes the tensor between the fences, and checks the fences and the padding.
fn unfenced(
    kernel: &dyn Kernel,
    operand: &Operand,
    storage: Storage,
    all: &[u8],
    bytes: usize,
) -> Result<Vec<f32>, RunError> {
    let (kernel, end) = (|| format!("{kernel:?} {storage}"), FENCE_BYTES + bytes);
    if bytes.is_multiple_of(4) && !fences_stand(all, bytes) {
        return Err(RunError::Outside { kernel: kernel(), operand: operand.name });
    }
    let inside = &all[FENCE_BYTES..end];
    let values = storage.decode(operand.dtype, &operand.shape, inside);
    // Encoding again puts zeros into the padding. Any other byte there is a mistake of the kernel.
    let clean = operand.dtype == DType::U32
        || storage.encode(operand.dtype, &operand.shape, &values) == inside
        || values.iter().any(|v| v.is_nan());
    if clean { Ok(values) } else { Err(RunError::Padding { kernel: kernel(), operand: operand.name }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Add;

    #[test]
    fn fences_and_padding_are_looked_at() {
        let kernel = Add { rows: 2, c: 3 };
        let (operand, values) = (Operand::write("y", [2, 3]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for storage in [Storage::F32, Storage::F16, Storage::F16_PACKED] {
            let inside = storage.encode(DType::Elem, &operand.shape, &values);
            let all = [poison(FENCE_BYTES), inside.clone(), poison(FENCE_BYTES)].concat();
            let said = |all: &[u8]| unfenced(&kernel, &operand, storage, all, inside.len());
            assert_eq!(said(&all).expect("nothing is wrong"), values);
            for at in [0, FENCE_BYTES - 1, FENCE_BYTES + inside.len(), all.len() - 1] {
                let mut all = all.clone();
                all[at] ^= 1;
                assert!(matches!(said(&all), Err(RunError::Outside { operand: "y", .. })), "byte {at} was changed");
            }
            let mut all = all.clone();
            all[FENCE_BYTES + inside.len() - 1] = 1;
            assert!(matches!(said(&all), Err(RunError::Padding { operand: "y", .. })), "the padding is not zero");
        }
    }
}

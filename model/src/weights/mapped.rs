//! Memory-mapped files that are read in parallel and whose pages are released after use.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;
use std::ops::Range;
use std::path::Path;

/// Number of values that are converted or checked at a time: few enough to stay in the cache, enough to be worth a
/// thread's while.
const CHUNK: usize = 1 << 16;

/// File that is mapped into memory.
#[derive(Debug)]
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// Maps a file.
    #[expect(unsafe_code, reason = "mapping a file is unsafe; weights are far too large to be read whole")]
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = mobilediffusion_runtime::open_file(path)?;
        // SAFETY: the map is private and never written to. Every user of a mapped file has to assume that nobody
        // truncates or rewrites it meanwhile; `Checkpoint::open` says so. Its content is checked before use.
        Ok(Self(unsafe { Mmap::map(&file) }?))
    }

    /// Returns the bytes of the whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the result of `read` for some bytes and then releases their pages: the operating system still caches
    /// them, but they no longer count as this process's memory.
    pub(crate) fn read<T>(&self, bytes: Range<usize>, read: impl FnOnce(&[u8]) -> T) -> T {
        let value = read(&self.0[bytes.clone()]);
        self.release(bytes);
        value
    }

    #[cfg(unix)]
    #[expect(unsafe_code, reason = "dropping pages is unsafe; without it, weights would be in memory twice")]
    fn release(&self, bytes: Range<usize>) {
        // SAFETY: dropping pages loses what was written to them, and this map is a read-only map of a file: any
        // thread that reads a dropped page again gets the file's content again.
        let advised =
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        // If the system refuses, memory stays in use; nothing else changes.
        drop(advised);
    }

    #[cfg(not(unix))]
    fn release(&self, _: Range<usize>) {}
}

/// Returns the number of bytes of a stored value, or `None` for an unsupported type.
pub(super) fn size_of(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes))
}

/// Whether no value is a NaN or an infinity, whose exponents have every bit set. False for an unsupported type.
pub(super) fn is_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    // A sum over a chunk has no branch, so it vectorises; an early exit would not.
    let spoilt = |bytes: &[u8], exponent: u16| words(bytes).map(|w| u32::from(w & exponent == exponent)).sum::<u32>();
    bytes.par_chunks(4 * CHUNK).all(|bytes| match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
            words.map(|word| u32::from(word & 0x7f80_0000 == 0x7f80_0000)).sum::<u32>() == 0
        }
        Dtype::F16 => spoilt(bytes, 0x7c00) == 0,
        Dtype::BF16 => spoilt(bytes, 0x7f80) == 0,
        _ => false,
    })
}

/// Converts little-endian floats of a supported type to f32. The bytes need not be aligned.
pub(super) fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let size = size_of(dtype).unwrap_or(4);
    let mut values = vec![0.0_f32; bytes.len() / size];
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).for_each(|(values, bytes)| match dtype {
        Dtype::F16 => {
            let words: Vec<u16> = words(bytes).collect();
            bytemuck::cast_slice::<u16, f16>(&words).convert_to_f32_slice(values);
        }
        Dtype::BF16 => {
            let words: Vec<u16> = words(bytes).collect();
            bytemuck::cast_slice::<u16, bf16>(&words).convert_to_f32_slice(values);
        }
        _ => {
            for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(bytes);
            }
        }
    });
    values
}

//! Storage of tensors in device memory: element types and padding, and conversion from and to dense values.

pub(crate) mod int8;

use crate::kernel::{DType, elements, padded};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use std::fmt;

/// Number of values that one thread encodes at a time.
const TASK: usize = 1 << 16;

/// Largest finite value of an f16.
const F16_MAX: f32 = f16::MAX.to_f32_const();

/// Returns the nearest value that f16 can round without overflow, as shaders do when they store.
pub(crate) fn saturated(value: f32) -> f32 {
    value.clamp(-F16_MAX, F16_MAX)
}

/// Storage type of floats on a device: of operands of type [`DType::Elem`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits. Supported by every device.
    #[default]
    F32,
    /// 16 bits. Supported by devices with the feature `SHADER_F16`.
    F16,
    /// 16 bits, two values in a u32. Supported by every device; the bytes equal those of `F16`.
    F16Packed,
}

/// Storage type of matrices of weights on a device: of operands of type [`DType::Weight`] and [`DType::WeightSum`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// The storage type of all other floats.
    #[default]
    Floats,
    /// 16 bits, whatever the type of other floats; sums of weights in that type.
    F16,
    /// 8 bits, and one f32 scale for each output channel, or for each of its phases. See `kernels/src/storage/int8.rs`.
    Int8,
}

/// Storage types of tensors on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    /// Storage type of activations, and of weights unless `weights` says otherwise.
    pub floats: FloatType,
    /// Storage type of matrices of weights.
    pub weights: WeightType,
}

impl Storage {
    /// All floats in 32 bits.
    pub const F32: Self = Self { floats: FloatType::F32, weights: WeightType::Floats };
    /// All floats in 16 bits.
    pub const F16: Self = Self { floats: FloatType::F16, weights: WeightType::Floats };
    /// All floats in 16 bits, packed in pairs into u32.
    pub const F16_PACKED: Self = Self { floats: FloatType::F16Packed, weights: WeightType::Floats };

    /// Returns this storage with another type for matrices of weights. 16-bit weights beside 16-bit floats are
    /// [`WeightType::Floats`], so that equal storages compare equal.
    #[must_use]
    pub const fn with_weights(self, weights: WeightType) -> Self {
        match (weights, self.floats) {
            (WeightType::F16, FloatType::F16 | FloatType::F16Packed) => Self { weights: WeightType::Floats, ..self },
            _ => Self { weights, ..self },
        }
    }

    fn is_int8(self, dtype: DType) -> bool {
        dtype.is_weight() && self.weights == WeightType::Int8
    }

    /// Returns the number of bytes of one stored element of type `dtype`. Scales of int8 weights are not counted.
    pub fn bytes(self, dtype: DType) -> usize {
        match dtype {
            _ if self.is_int8(dtype) => 1,
            DType::Elem | DType::Weight | DType::WeightSum if self.floats != FloatType::F32 => 2,
            DType::Weight if self.weights == WeightType::F16 => 2,
            _ => 4,
        }
    }

    /// Returns the number of bytes of a tensor on the device, padding and scales included. `shape` is the packed shape.
    pub fn tensor_bytes(self, dtype: DType, shape: &[usize]) -> usize {
        let device_shape = if dtype == DType::U32 { shape.to_vec() } else { padded(shape) };
        elements(&device_shape) * self.bytes(dtype) + self.scale_bytes(dtype, shape)
    }

    /// Returns the number of bytes of the scales in a tensor of packed `shape`: one scale for each row of int8 weights,
    /// and none for other types.
    pub(crate) fn scale_bytes(self, dtype: DType, shape: &[usize]) -> usize {
        if self.is_int8(dtype) { int8::SCALE_BYTES * int8::rows(shape) } else { 0 }
    }

    /// Returns the WGSL that stands in front of every module: types and functions that hide how tensors are stored, from
    /// `shaders/prelude`.
    ///
    /// For floats these are `Pack` (four stored elements), `load4`, `store4`, and `pack_if` (zeros unless a condition
    /// holds). Values beyond the range of f16 saturate when they are stored.
    ///
    /// For matrices of weights these are `WeightPack` (four elements of a row), `weight_row` (the index at which a row
    /// begins), `WEIGHT_HEAD` (the offset of the first four elements from there), `weight4` and `weight_pack` (the four
    /// numbers of a `WeightPack`, as f32 and as a `Pack`), and `weight_scale` (the scale at the beginning of a row, by
    /// which sums over the row are multiplied).
    pub(crate) fn prelude(self) -> String {
        let floats = match self.floats {
            FloatType::F32 => include_str!("../../shaders/prelude/floats_f32.wgsl"),
            FloatType::F16 => include_str!("../../shaders/prelude/floats_f16.wgsl"),
            FloatType::F16Packed => include_str!("../../shaders/prelude/floats_f16_packed.wgsl"),
        };
        let weights = match (self.weights, self.floats) {
            (WeightType::F16, FloatType::F32) => include_str!("../../shaders/prelude/weights_f16.wgsl"),
            (WeightType::Floats | WeightType::F16, _) => include_str!("../../shaders/prelude/weights_as_floats.wgsl"),
            (WeightType::Int8, FloatType::F16) => include_str!("../../shaders/prelude/weights_int8_f16.wgsl"),
            (WeightType::Int8, _) => include_str!("../../shaders/prelude/weights_int8.wgsl"),
        };
        [floats, weights, include_str!("../../shaders/prelude/always.wgsl")].concat()
    }

    /// Encodes a dense tensor of packed `shape` as the device's bytes: rows are padded with zeros, floats rounded to
    /// the stored type.
    pub fn encode(self, dtype: DType, shape: &[usize], values: &[f32]) -> Vec<u8> {
        if self.is_int8(dtype) {
            return int8::encode(shape, values);
        }
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let stride = if dtype == DType::U32 { cols } else { cols.next_multiple_of(4) };
        let mut bytes = vec![0_u8; self.tensor_bytes(dtype, shape)];
        let rows = TASK.div_ceil(cols);
        if self.bytes(dtype) == 2 {
            let blocks = bytemuck::cast_slice_mut::<u8, f16>(&mut bytes).par_chunks_mut(rows * stride);
            blocks.zip(values.par_chunks(rows * cols)).for_each(|(to, from)| {
                let mut row = Vec::with_capacity(cols);
                for (to, from) in to.chunks_mut(stride).zip(from.chunks(cols)) {
                    row.clear();
                    row.extend(from.iter().map(|value| saturated(*value)));
                    to[..cols].convert_from_f32_slice(&row);
                }
            });
        } else {
            let blocks = bytes.par_chunks_mut(4 * rows * stride).zip(values.par_chunks(rows * cols));
            blocks.for_each(|(to, from)| {
                for (to, from) in to.chunks_mut(4 * stride).zip(from.chunks(cols)) {
                    to[..4 * cols].copy_from_slice(bytemuck::cast_slice(from));
                }
            });
        }
        bytes
    }

    /// Returns the first value that saturates when a tensor of type `dtype` is stored: f16 holds none so large.
    pub fn beyond(self, dtype: DType, values: &[f32]) -> Option<f32> {
        if self.bytes(dtype) != 2 {
            return None;
        }
        let is_beyond = |value: &f32| value.abs() > F16_MAX;
        // A sum over a task has no branch, so it vectorises; an early exit would not.
        let any = |task: &&[f32]| task.iter().map(|value| u32::from(is_beyond(value))).sum::<u32>() > 0;
        values.par_chunks(TASK).find_first(any)?.iter().copied().find(is_beyond)
    }

    /// Decodes the dense values of a tensor of packed `shape` from the device's bytes.
    pub fn decode(self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
        if self.is_int8(dtype) {
            return int8::decode(shape, bytes);
        }
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let stride = if dtype == DType::U32 { cols } else { cols.next_multiple_of(4) };
        let width = self.bytes(dtype);
        let mut values = Vec::with_capacity(elements(shape));
        for row in bytes.chunks_exact(stride * width) {
            let row = &row[..cols * width];
            if width == 2 {
                values.extend(row.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()));
            } else {
                values.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        values
    }

    /// Returns the values of a tensor after it was stored and loaded again.
    pub fn rounded(self, dtype: DType, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
        if self.bytes(dtype) == 4 { values } else { self.decode(dtype, shape, &self.encode(dtype, shape, &values)) }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = match self.weights {
            WeightType::Floats => "",
            WeightType::F16 => " with f16 weights",
            WeightType::Int8 => " with int8 weights",
        };
        write!(f, "{:?}{weights}", self.floats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_way_there_and_back() {
        let values: Vec<f32> = (0..30_u8).map(f32::from).collect();
        let f16_weights = Storage::F32.with_weights(WeightType::F16);
        for storage in [Storage::F32, Storage::F16, Storage::F16_PACKED, f16_weights] {
            for shape in [vec![2, 3, 5], vec![10, 3], vec![30], vec![15, 2]] {
                for dtype in [DType::Elem, DType::Weight] {
                    let bytes = storage.encode(dtype, &shape, &values);
                    assert_eq!(bytes.len(), storage.tensor_bytes(dtype, &shape), "{storage:?} {dtype:?} {shape:?}");
                    assert_eq!(storage.decode(dtype, &shape, &bytes), values, "{storage:?} {dtype:?} {shape:?}");
                }
            }
        }
    }

    #[test]
    fn padding_is_zero_and_integers_have_none() {
        let ones = [1.0; 6];
        let bytes = Storage::F32.encode(DType::F32, &[2, 3], &ones);
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes), [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(Storage::F16.tensor_bytes(DType::U32, &[2, 3]), 24);
        assert_eq!(Storage::F16.tensor_bytes(DType::F32, &[2, 3]), 32);
    }

    #[test]
    fn large_tensors_are_encoded_as_their_rows() {
        // More rows than one thread takes, of lengths with and without padding, and a single long row.
        for shape in [[600, 333], [600, 256], [1, 3 * TASK + 1]] {
            let [rows, cols] = shape;
            let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 2039) as f32 / 64.0 - 16.0).collect();
            for floats in [Storage::F32, Storage::F16] {
                for storage in [WeightType::Floats, WeightType::F16, WeightType::Int8].map(|w| floats.with_weights(w)) {
                    let rows = values.chunks(cols).flat_map(|row| storage.encode(DType::Weight, &[1, cols], row));
                    assert!(storage.encode(DType::Weight, &shape, &values).into_iter().eq(rows), "{storage} {shape:?}");
                }
            }
        }
    }
}

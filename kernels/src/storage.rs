//! How tensors lie in device memory: element type and padding, and the way there and back.

pub(crate) mod int8;

use crate::kernel::{DType, elements, padded};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::fmt;

/// How floats of type `Elem` are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits, everywhere.
    #[default]
    F32,
    /// 16 bits, on devices with the feature `SHADER_F16`.
    F16,
    /// 16 bits, two in a u32, on devices without it. The same bytes as `F16`.
    F16Packed,
}

/// How matrices of weights, operands of type `Weight`, are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// As all floats are.
    #[default]
    Floats,
    /// 8 bits, and one f32 for each output channel: `kernels/src/storage/int8.rs`.
    Int8,
}

/// How tensors are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    /// Activations, and weights unless `weights` says otherwise.
    pub floats: FloatType,
    /// Matrices of weights.
    pub weights: WeightType,
}

impl Storage {
    /// Everything in 32 bits.
    pub const F32: Self = Self { floats: FloatType::F32, weights: WeightType::Floats };
    /// Floats in 16 bits.
    pub const F16: Self = Self { floats: FloatType::F16, weights: WeightType::Floats };
    /// Floats in 16 bits, two in a u32.
    pub const F16_PACKED: Self = Self { floats: FloatType::F16Packed, weights: WeightType::Floats };

    /// The same, with matrices of weights stored like that.
    pub const fn with_weights(self, weights: WeightType) -> Self {
        Self { weights, ..self }
    }

    fn is_int8(self, dtype: DType) -> bool {
        dtype == DType::Weight && self.weights == WeightType::Int8
    }

    /// Bytes of one stored element of type `dtype`, those of an int8 row's scale left aside.
    pub fn bytes(self, dtype: DType) -> usize {
        match dtype {
            _ if self.is_int8(dtype) => 1,
            DType::Elem | DType::Weight if self.floats != FloatType::F32 => 2,
            _ => 4,
        }
    }

    /// Bytes of a tensor on the device. `shape` is the packed shape.
    pub fn tensor_bytes(self, dtype: DType, shape: &[usize]) -> usize {
        let device_shape = if dtype == DType::U32 { shape.to_vec() } else { padded(shape) };
        elements(&device_shape) * self.bytes(dtype) + self.scale_bytes(dtype, shape)
    }

    /// Bytes of the scales in a tensor of packed `shape`: one for each row of int8 weights, none elsewhere.
    pub(crate) fn scale_bytes(self, dtype: DType, shape: &[usize]) -> usize {
        if self.is_int8(dtype) { int8::SCALE_BYTES * int8::rows(shape) } else { 0 }
    }

    /// Defines `Pack` (four stored elements), `load4`, `store4` and `pack_if` (zeros if they are not there), and of matrices
    /// of weights `WeightPack` (four of a row), `weight_row` (where a row begins), `WEIGHT_HEAD` (where its first four are,
    /// from there), `weight4` and `weight_pack`, which make four numbers of what is stored, and `weight_scale` (of the row's
    /// beginning), which those are to be multiplied by, once they are summed. Values beyond f16's range saturate when stored.
    pub(crate) fn prelude(self) -> String {
        let floats = match self.floats {
            FloatType::F32 => {
                "alias Pack = vec4<f32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return p; }\n\
                 fn store4(v: vec4<f32>) -> Pack { return v; }\n"
            }
            FloatType::F16 => {
                "enable f16;\n\
                 alias Pack = vec4<f16>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(p); }\n\
                 fn store4(v: vec4<f32>) -> Pack { return Pack(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }\n"
            }
            FloatType::F16Packed => {
                "alias Pack = vec2<u32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)); }\n\
                 fn store4(v: vec4<f32>) -> Pack {\n    \
                     let c = clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0));\n    \
                     return Pack(pack2x16float(c.xy), pack2x16float(c.zw));\n\
                 }\n"
            }
        };
        let weights = match self.weights {
            WeightType::Floats => {
                "alias WeightPack = Pack;\n\
                 const WEIGHT_HEAD = 0u;\n\
                 fn weight_scale(head: WeightPack) -> f32 { return 1.0; }\n\
                 fn weight4(p: WeightPack) -> vec4<f32> { return load4(p); }\n\
                 fn weight_pack(p: WeightPack) -> Pack { return p; }\n"
            }
            WeightType::Int8 => {
                "alias WeightPack = u32;\n\
                 const WEIGHT_HEAD = 1u;\n\
                 fn weight_scale(head: WeightPack) -> f32 { return bitcast<f32>(head); }\n\
                 fn weight4(p: WeightPack) -> vec4<f32> { return vec4<f32>(unpack4xI8(p)); }\n\
                 fn weight_pack(p: WeightPack) -> Pack { return store4(weight4(p)); }\n"
            }
        };
        let both = "fn pack_if(there: bool, p: Pack) -> Pack { return select(Pack(), p, there); }\n\
                    fn weight_row(row: u32, len4: u32) -> u32 { return row * (len4 + WEIGHT_HEAD); }\n";
        [floats, weights, both].concat()
    }

    /// The device's bytes of a dense tensor: rows padded with zeros, floats rounded to the stored type.
    pub fn encode(self, dtype: DType, shape: &[usize], values: &[f32]) -> Vec<u8> {
        if self.is_int8(dtype) {
            return int8::encode(shape, values);
        }
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let stride = if dtype == DType::U32 { cols } else { cols.next_multiple_of(4) };
        let mut bytes = vec![0_u8; self.tensor_bytes(dtype, shape)];
        if self.bytes(dtype) == 2 {
            const F16_MAX: f32 = f16::MAX.to_f32_const();
            let mut row = Vec::with_capacity(cols);
            for (to, from) in
                bytemuck::cast_slice_mut::<u8, f16>(&mut bytes).chunks_mut(stride).zip(values.chunks(cols))
            {
                // As shaders store: what is beyond the largest is the largest.
                row.clear();
                row.extend(from.iter().map(|value| value.clamp(-F16_MAX, F16_MAX)));
                to[..cols].convert_from_f32_slice(&row);
            }
        } else {
            for (to, from) in bytes.chunks_mut(4 * stride).zip(values.chunks(cols)) {
                to[..4 * cols].copy_from_slice(bytemuck::cast_slice(from));
            }
        }
        bytes
    }

    /// The dense values of a tensor from the device's bytes.
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

    /// The values that are left of a tensor once it was stored.
    pub fn rounded(self, dtype: DType, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
        if self.bytes(dtype) == 4 { values } else { self.decode(dtype, shape, &self.encode(dtype, shape, &values)) }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = if self.weights == WeightType::Int8 { " with int8 weights" } else { "" };
        write!(f, "{:?}{weights}", self.floats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_way_there_and_back() {
        let values: Vec<f32> = (0..30_u8).map(f32::from).collect();
        for storage in [Storage::F32, Storage::F16, Storage::F16_PACKED] {
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
}

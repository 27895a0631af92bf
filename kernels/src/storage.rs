//! How tensors lie in device memory: element type and padding, and the way there and back.

use crate::kernel::{DType, elements, padded};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// How floats of type `Elem` are stored on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 32 bits, everywhere.
    #[default]
    F32,
    /// 16 bits, on devices with the feature `SHADER_F16`.
    F16,
    /// 16 bits, two in a u32, on devices without it. The same bytes as `F16`.
    F16Packed,
}

impl Storage {
    /// Bytes of one stored element of type `dtype`.
    pub fn bytes(self, dtype: DType) -> usize {
        if dtype == DType::Elem && self != Self::F32 { 2 } else { 4 }
    }

    /// Bytes of a tensor on the device. `shape` is the packed shape.
    pub fn tensor_bytes(self, dtype: DType, shape: &[usize]) -> usize {
        let device_shape = if dtype == DType::U32 { shape.to_vec() } else { padded(shape) };
        elements(&device_shape) * self.bytes(dtype)
    }

    /// Defines `Pack` (four stored elements), `load4` and `store4`. Values beyond f16's range saturate when stored.
    pub(crate) fn prelude(self) -> &'static str {
        match self {
            Self::F32 => {
                "alias Pack = vec4<f32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return p; }\n\
                 fn store4(v: vec4<f32>) -> Pack { return v; }\n"
            }
            Self::F16 => {
                "enable f16;\n\
                 alias Pack = vec4<f16>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(p); }\n\
                 fn store4(v: vec4<f32>) -> Pack { return Pack(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }\n"
            }
            Self::F16Packed => {
                "alias Pack = vec2<u32>;\n\
                 fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)); }\n\
                 fn store4(v: vec4<f32>) -> Pack {\n    \
                     let c = clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0));\n    \
                     return Pack(pack2x16float(c.xy), pack2x16float(c.zw));\n\
                 }\n"
            }
        }
    }

    /// The device's bytes of a dense tensor: rows padded with zeros, floats rounded to the stored type.
    pub fn encode(self, dtype: DType, shape: &[usize], values: &[f32]) -> Vec<u8> {
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let stride = if dtype == DType::U32 { cols } else { cols.next_multiple_of(4) };
        let mut bytes = vec![0_u8; self.tensor_bytes(dtype, shape)];
        if self.bytes(dtype) == 2 {
            for (to, from) in
                bytemuck::cast_slice_mut::<u8, f16>(&mut bytes).chunks_mut(stride).zip(values.chunks(cols))
            {
                to[..cols].convert_from_f32_slice(from);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_way_there_and_back() {
        let values: Vec<f32> = (0..30_u8).map(f32::from).collect();
        for storage in [Storage::F32, Storage::F16, Storage::F16Packed] {
            for shape in [vec![2, 3, 5], vec![10, 3], vec![30], vec![15, 2]] {
                let bytes = storage.encode(DType::Elem, &shape, &values);
                assert_eq!(bytes.len(), storage.tensor_bytes(DType::Elem, &shape), "{storage:?} {shape:?}");
                assert_eq!(storage.decode(DType::Elem, &shape, &bytes), values, "{storage:?} {shape:?}");
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

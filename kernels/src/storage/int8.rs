//! Matrices of weights in 8 bits: symmetric quantisation with one scale for each output channel.
//!
//! A *row* holds all weights of one output channel, or of one of its phases (`conv2d/phases.rs`): one index of the first
//! axis as it is stored. The scale of a row is `s =
//! max |w| / 127`, and a weight is stored as `q = round(w / s)`. Kernels compute with `s * q` in f32, so that no weight
//! moves by more than half of its row's scale.
//!
//! On a GPU a row starts with a u32 that holds the bits of `s`. Its weights follow, four in a u32 and padded like those
//! of every tensor. A range of rows is therefore a contiguous range of bytes, and can be loaded by itself.

use super::TASK;
use crate::kernel::elements;
use rayon::prelude::*;

/// Number of bytes of a row's scale.
pub(super) const SCALE_BYTES: usize = 4;

/// Largest absolute value of a stored weight. -128 is not used.
const MOST: f32 = 127.0;

/// Returns the number of rows of a packed shape.
pub(super) fn rows(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(1)
}

/// Returns the scale of a row. It is zero if all weights are zero, or so small that a device may flush the scale to
/// zero.
pub(crate) fn scale(row: &[f32]) -> f32 {
    let scale = row.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / MOST;
    if scale.is_normal() { scale } else { 0.0 }
}

/// Returns a weight as it is stored, for a scale that is not zero.
pub(crate) fn quantised(w: f32, scale: f32) -> u8 {
    // Floats of this size are consecutive whole numbers. Adding it therefore rounds to nearest, and the last byte of
    // the sum is the number in two's complement. Compilers vectorise this for every processor.
    const ROUND: f32 = (3 << 22) as f32;
    // The scale is rounded, so that the largest weight may lie slightly beyond the last step.
    let steps = (w / scale).clamp(-MOST, MOST);
    (steps + ROUND).to_bits().to_le_bytes()[0]
}

/// Returns the number of values along the last axis, the same with padding, and the number of bytes of a row.
fn strides(shape: &[usize]) -> (usize, usize, usize) {
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let stride = cols.next_multiple_of(4);
    let lines = elements(shape) / cols / rows(shape).max(1);
    (cols, stride, SCALE_BYTES + lines * stride)
}

/// Encodes a dense tensor of packed `shape` as the device's bytes.
pub(super) fn encode(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let (cols, stride, row_bytes) = strides(shape);
    let mut bytes = vec![0; rows(shape) * row_bytes];
    let row_len = (elements(shape) / rows(shape).max(1)).max(1);
    let each = bytes.par_chunks_exact_mut(row_bytes).zip(values.par_chunks_exact(row_len));
    each.with_min_len(TASK.div_ceil(row_len)).for_each(|(to, row)| {
        let scale = scale(row);
        if scale == 0.0 {
            return;
        }
        let (head, to) = to.split_at_mut(SCALE_BYTES);
        head.copy_from_slice(&scale.to_le_bytes());
        for (to, from) in to.chunks_exact_mut(stride).zip(row.chunks_exact(cols)) {
            to.iter_mut().zip(from).for_each(|(to, w)| *to = quantised(*w, scale));
        }
    });
    bytes
}

/// Decodes the dense values of a tensor of packed `shape`.
pub(super) fn decode(shape: &[usize], bytes: &[u8]) -> Vec<f32> {
    let (cols, stride, row_bytes) = strides(shape);
    let mut values = Vec::with_capacity(elements(shape));
    for row in bytes.chunks_exact(row_bytes) {
        let (head, row) = row.split_at(SCALE_BYTES);
        let scale = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        for line in row.chunks_exact(stride) {
            values.extend(line[..cols].iter().map(|q| scale * f32::from(q.cast_signed())));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use crate::kernel::{Kernel, bytes_moved};
    use crate::random::Random;
    use crate::{Add, DType, Linear, Storage};

    const INT8: Storage = Storage { floats: crate::FloatType::F32, weights: crate::WeightType::Int8 };

    #[test]
    fn no_weight_moves_by_more_than_half_a_step() {
        let mut random = Random::new(3);
        for shape in [vec![5, 7], vec![3, 2, 2, 6], vec![1, 1], vec![4, 130]] {
            let row_len = shape[1..].iter().product::<usize>();
            for size in [1e-30_f32, 0.02, 1.0, 3e30] {
                let values: Vec<f32> = (0..shape[0] * row_len).map(|_| size * random.normal()).collect();
                let got = INT8.rounded(DType::Weight, &shape, values.clone());
                assert_eq!(got.len(), values.len(), "{shape:?}");
                for (got, want) in got.chunks(row_len).zip(values.chunks(row_len)) {
                    let largest = want.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
                    let step = f64::from(largest) / 127.0;
                    // Half a step, and a rounding of f32 each in the scale, the quotient and the product.
                    let bound = step * (0.5 + 3.0 * 127.0 * f64::from(f32::EPSILON));
                    let moved = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - f64::from(*want)).abs());
                    let worst = moved.fold(0.0, f64::max);
                    assert!(worst <= bound, "{shape:?}: moved by {worst:e}, {bound:e} allowed");
                }
            }
        }
    }

    #[test]
    fn multiples_of_the_scale_survive() {
        let values: Vec<f32> = (-127..=127_i8).map(|q| 0.25 * f32::from(q)).collect();
        assert_eq!(INT8.rounded(DType::Weight, &[1, 255], values.clone()), values);
    }

    #[test]
    fn rows_of_zeros_and_of_next_to_nothing_are_zeros() {
        let values = vec![0.0, -0.0, 0.0, 1e-40, -1e-44, 0.0, 2.0, -1.0, 0.0];
        let got = INT8.rounded(DType::Weight, &[3, 3], values);
        assert_eq!(got[..6], [0.0; 6]);
        assert_eq!(got[6], 2.0);
    }

    #[test]
    fn a_row_is_its_scale_and_four_weights_to_a_word() {
        let bytes = INT8.encode(DType::Weight, &[2, 5], &[127.0, -127.0, 1.0, 0.0, 3.0, 0.0, 0.0, 254.0, -2.0, 4.0]);
        let row = |scale: f32, q: [i8; 5]| {
            let mut row = scale.to_le_bytes().to_vec();
            row.extend(q.iter().chain(&[0; 3]).map(|q| q.cast_unsigned()));
            row
        };
        assert_eq!(bytes, [row(1.0, [127, -127, 1, 0, 3]), row(2.0, [0, 0, 127, -1, 2])].concat());
        assert_eq!(bytes.len(), INT8.tensor_bytes(DType::Weight, &[2, 5]));
        // Norms, biases and activations are not touched.
        assert_eq!(INT8.encode(DType::Elem, &[5], &[0.3; 5]), Storage::F32.encode(DType::Elem, &[5], &[0.3; 5]));
    }

    #[test]
    fn half_the_bytes_of_16_bit_floats() {
        for shape in [vec![1024, 1024], vec![640, 3, 3, 320]] {
            let bytes = |storage: Storage| storage.tensor_bytes(DType::Weight, &shape) as f64;
            let ratio = bytes(INT8) / bytes(Storage::F16);
            assert!((0.5..=0.502).contains(&ratio), "{shape:?}: {ratio}");
        }
    }

    #[test]
    fn a_kernel_moves_its_int8_weights_and_their_scales() {
        let linear = Linear { rows: 3, k: 6, cols: 5, ..Linear::default() };
        let moved = |kernel: &dyn Kernel, storage: Storage| bytes_moved(kernel, storage);
        assert_eq!(moved(&linear, Storage::F32), 4 * (3 * 6 + 6 * 5 + 3 * 5));
        assert_eq!(moved(&linear, Storage::F16), 2 * (3 * 6 + 6 * 5 + 3 * 5));
        assert_eq!(moved(&linear, INT8), 4 * (3 * 6 + 3 * 5) + 6 * 5 + 4 * 5);
        let half = Storage::F16.with_weights(crate::WeightType::Int8);
        assert_eq!(moved(&linear, half), 2 * (3 * 6 + 3 * 5) + 6 * 5 + 4 * 5);
        let add = Add { rows: 6, c: 5 };
        assert_eq!(moved(&add, INT8), moved(&add, Storage::F32), "it has no weights");
    }
}

//! Tests of products with panels, by every kind of vectors the processor has.

use super::product::{Shared, Target};
use super::tile::{PanelPart, Strip};
use super::*;
use crate::cpu::{Epilogue, Threads};
use crate::kernel::Activation;
use crate::random::Random;
use crate::{DType, Layout, Operand, Storage, WeightType};

/// Whole numbers, whose f32 sums are exact in every order of addition.
fn whole(len: usize, step: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * step) % 13) as f32 - 6.0).collect()
}

/// Computes `left * weights` by its definition. Rows of `left` begin `stride` values apart.
fn plain(left: &[f32], stride: usize, weights: &[f32], (rows, cols, k): (usize, usize, usize)) -> Vec<f32> {
    let sum = |row: usize, col: usize| (0..k).map(|i| left[row * stride + i] * weights[col * k + i]).sum();
    (0..rows * cols).map(|at| sum(at / cols, at % cols)).collect()
}

#[test]
fn products_agree_with_the_definition() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads can be had");
    // Rows and columns around the sizes of tiles, panels and tasks; `k` of 1, around the blocks of packing, and of two
    // parts.
    let sizes = [(1, 1, 1), (5, 3, 17), (6, 16, 16), (7, 63, 40), (13, 64, 15), (12, 65, 9), (70, 130, 33)];
    for (rows, cols, k) in sizes.into_iter().chain([(200, 177, 25), (9, 97, 1300), (401, 48, 20)]) {
        let (stride, weights) = (k + 3, whole(cols * k, 7));
        let (left, residual) = (whole(rows * stride, 5), whole(rows * cols, 3));
        let want = plain(&left, stride, &weights, (rows, cols, k));
        let packed = Aligned::from(pack_matrix(cols, k, &weights).as_slice());
        let (left, panels) = (Left::new(&left, rows, stride), Panels::new(&packed, cols, k));
        let bias = whole(cols, 2);
        let epilogue = Epilogue {
            bias: &bias,
            shift: &[],
            rows_per_image: rows,
            activation: Activation::Relu,
            residual: &residual,
            first_row: 0,
        };
        for threads in [Threads::One, Threads::All] {
            let mut y = vec![f32::NAN; rows * cols];
            pool.install(|| multiply(&mut y, left, panels, None, threads));
            assert_eq!(y, want, "{rows}x{k} by {k}x{cols}, {threads:?}");
            pool.install(|| multiply(&mut y, left, panels, Some(epilogue), threads));
            let finished = |i: usize| (want[i] + bias[i % cols]).max(0.0) + residual[i];
            assert!((0..y.len()).all(|i| y[i] == finished(i)), "{rows}x{k} by {k}x{cols} finished, {threads:?}");
        }
    }
}

#[test]
fn products_with_narrow_weights_equal_those_with_the_rounded_weights_bit_for_bit() {
    let mut random = Random::new(5);
    let mut normal = |len: usize| (0..len).map(|_| random.normal()).collect::<Vec<f32>>();
    // Columns around the sizes of panels and grains; `k` that are no multiple of four, one that 16 bits do not take, and
    // one of two parts.
    let sizes = [(1, 1, 1), (7, 16, 3), (6, 80, 4), (5, 63, 17), (13, 64, 15), (300, 177, 25), (9, 97, 1300)];
    for (rows, cols, k) in sizes {
        let (left, mut weights) = (normal(rows * k), normal(cols * k));
        // The last column is all zeros, and has a scale of zero in 8 bits. The first weight is too large for 16 bits.
        weights[(cols - 1) * k..].fill(0.0);
        weights[0] = 1e5;
        let left = Left::new(&left, rows, k);
        let product = |packed: &[f32]| {
            let mut y = vec![f32::NAN; rows * cols];
            multiply(&mut y, left, Panels::new(packed, cols, k), None, Threads::All);
            y
        };
        for narrow in [WeightType::F16, WeightType::Int8] {
            let host = Operand::weight("w", [cols, k]).host(Layout::panels(1)).host_layout(narrow);
            let bytes = Storage::F32.with_weights(narrow);
            let rounded = bytes.rounded(DType::Weight, &[cols, k], weights.clone());
            assert!(cols == 1 || rounded != weights, "{host:?}: nothing was rounded");
            let weights = if host == Layout::panels(1) { &rounded } else { &weights };
            let got = product(&host.pack(&[cols, k], weights.clone()));
            assert_eq!(got, product(&pack_matrix(cols, k, &rounded)), "{rows}x{k} by {k}x{cols}, {host:?}");
        }
    }
}

/// A way to run a strip: with vectors of one kind.
struct Way {
    name: &'static str,
    /// Columns of a grain, from the width of the panel.
    grain: fn(usize) -> usize,
    run: Box<dyn Fn(Strip<'_>)>,
}

impl Way {
    fn new(name: &'static str, grain: fn(usize) -> usize, run: impl Fn(Strip<'_>) + 'static) -> Self {
        Self { name, grain, run: Box::new(run) }
    }
}

/// Returns the way with vectors of eight lanes, if the processor has them.
#[cfg(target_arch = "x86_64")]
fn avx2() -> Option<Way> {
    let avx2 = pulp::x86::V3::try_new()?;
    Some(Way::new("AVX2", |_| STEP, move |strip| pulp::Simd::vectorize(avx2, strip)))
}

/// Returns nothing, because other processors have no such vectors.
#[cfg(not(target_arch = "x86_64"))]
fn avx2() -> Option<Way> {
    None
}

#[test]
fn every_kind_of_vectors_gives_the_same_result() {
    let (rows, k) = (9, 23);
    for (width, cols) in [(16, 5), (32, 32), (48, 33), (64, 64), (64, 50)] {
        let (left, weights) = (whole(rows * k, 5), whole(cols * k, 7));
        let want = plain(&left, k, &weights, (rows, cols, k));
        let panel_of = |grain: usize| {
            let mut panel = vec![0.0; width * k];
            let at = |col: usize, i: usize| col / grain * grain * k + i * grain + col % grain;
            (0..cols * k).for_each(|i| panel[at(i / k, i % k)] = weights[i]);
            panel
        };
        let ways = [
            Way::new("the processor's widest", grain, |strip| pulp::Arch::new().dispatch(strip)),
            Way::new("no vectors", |_| STEP, |strip| pulp::WithSimd::with_simd(strip, pulp::Scalar)),
            Way::new("four lanes", |_| STEP, |strip| pulp::WithSimd::with_simd(strip, pulp::Scalar128b)),
        ];
        for Way { name, grain, run } in ways.into_iter().chain(avx2()) {
            let grain = grain(width);
            let panel = panel_of(grain);
            // Every row of `y` has a gap behind it that no strip may write. The second pass adds to the first.
            let y_stride = cols + 2;
            let mut y = vec![0.5; rows * y_stride];
            for (accumulate, times) in [(false, 1.0), (true, 2.0)] {
                let y = &Shared::new(&mut y);
                run(Strip {
                    left: Left::new(&left, rows, k),
                    panel: PanelPart { values: &panel, width, depth: k, grain, k: 0..k, next: &panel },
                    target: Target { y, at: 0, stride: y_stride },
                    cols,
                    accumulate,
                });
                for (row, want) in want.chunks(cols).enumerate() {
                    #[expect(unsafe_code, reason = "a row of what was written")]
                    // SAFETY: the strip above has ended, so no other piece of `y` exists.
                    let got = unsafe { y.piece(row * y_stride, y_stride) };
                    assert!(got[..cols].iter().zip(want).all(|(got, want)| *got == times * want), "{name}, {width}");
                    assert_eq!(got[cols..], [0.5, 0.5], "{name} wrote into a gap");
                }
            }
        }
    }
}

#[test]
fn panels_begin_at_cache_lines() {
    let values = Aligned::from(&[1.0, 2.0, 3.0][..]);
    assert_eq!((&values[..], values.as_ptr().align_offset(64)), (&[1.0, 2.0, 3.0][..], 0));
    assert_eq!(Aligned::zeros(17).expect("there is room").len(), 17);
    let mut growing = Aligned::with_capacity(100).expect("there is room");
    growing.grow_to(17);
    let place = growing.as_ptr();
    growing.grow_to(100);
    assert_eq!((&growing[..], growing.as_ptr()), (&[0.0; 100][..], place), "it was allocated once");
}

#[test]
#[should_panic(expected = "as panels")]
fn weights_of_another_size_are_refused() {
    Panels::new(&[0.0; 32], 3, 3);
}

#[test]
#[should_panic(expected = "of 5")]
fn a_short_product_is_refused() {
    let packed = pack_matrix(3, 1, &[1.0; 3]);
    multiply(&mut [0.0; 5], Left::new(&[1.0; 2], 2, 1), Panels::new(&packed, 3, 1), None, Threads::One);
}

//! What the CPU forms share: the matrix product of the `gemm` crate, activations in f32, and parallel rows. Products with
//! weights are in `panels`.

use crate::kernel::Activation;
use rayon::prelude::*;

/// A read-only matrix inside a slice: `rows x cols`, neighbours along a row `col_stride` apart, rows `row_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A matrix of `rows x cols`, row by row, whose rows are `row_stride` apart.
    ///
    /// # Panics
    /// If the slice is too short: a bug of the calling kernel.
    pub fn rows(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            fits(data.len(), rows, cols, row_stride),
            "matrix {rows}x{cols} is longer than its {} elements",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `count` columns from `first` on.
    fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.cols, "columns {first}..{} of {}", first + count, self.cols);
        Self { data: &self.data[first * self.col_stride..], cols: count, ..self }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= len
}

/// Threads a matrix product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread: inside a loop that is already parallel.
    One,
    /// All of rayon's pool.
    All,
}

/// `dst = alpha * a * b` (or `dst += ...` with `accumulate`), where `dst` is row by row with rows `dst_stride` apart.
///
/// # Panics
/// If the inner sizes differ or `dst` is too short: bugs of the calling kernel.
pub fn matmul(
    dst: &mut [f32],
    dst_stride: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    alpha: f32,
    accumulate: bool,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product");
    assert!(
        fits(dst.len(), a.rows, b.cols, dst_stride),
        "the product {}x{} is longer than its {} elements",
        a.rows,
        b.cols,
        dst.len()
    );
    assert!(b.cols <= dst_stride || a.rows <= 1, "rows of the product overlap");
    // Below this many multiply-accumulates waking the other threads costs more than it saves (measured on two cores).
    const PARALLEL_FROM: usize = 1 << 18;
    let parallel = threads == Threads::All && a.rows * a.cols * b.cols >= PARALLEL_FROM;
    // A block of columns for each thread, if they are wide enough to be worth reading `a` anew: for 256 rows 1.2 times as
    // fast on two cores as the gemm crate's own way of sharing the work, for 77 rows 1.6 times.
    const WIDE: usize = 128;
    let width = b.cols.div_ceil(rayon::current_num_threads()).next_multiple_of(16);
    let dst = Shared(dst.as_mut_ptr());
    if parallel && width >= WIDE && width < b.cols {
        let block = |first: usize| (first, b.columns(first, width.min(b.cols - first)));
        let blocks: Vec<_> = (0..b.cols).step_by(width).map(block).collect();
        blocks.into_par_iter().for_each(|(first, b)| {
            product(&dst, first, dst_stride, a, b, alpha, accumulate, gemm::Parallelism::None);
        });
    } else {
        let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
        product(&dst, 0, dst_stride, a, b, alpha, accumulate, parallelism);
    }
}

/// The elements of a product, whose blocks of columns threads write.
struct Shared(*mut f32);

#[expect(unsafe_code, reason = "blocks of columns interleave in memory, so they are no slices of their own")]
// SAFETY: `matmul` hands every thread other columns.
unsafe impl Sync for Shared {}

/// The columns of a product from `first` on, as many as `b` has; `matmul` has checked the sizes.
#[expect(clippy::too_many_arguments, reason = "the sizes of a product and how to compute it")]
fn product(
    dst: &Shared,
    first: usize,
    dst_stride: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    alpha: f32,
    accumulate: bool,
    parallelism: gemm::Parallelism,
) {
    #[expect(
        unsafe_code,
        reason = "the gemm crate takes raw pointers; the assertions in `matmul` and in Mat bound every access"
    )]
    // SAFETY: `a`, `b` and `dst` were checked to hold every element the strides can reach, and nobody else has these
    // columns of `dst`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.0.add(first),
            1,
            dst_stride.cast_signed(),
            accumulate,
            a.data.as_ptr(),
            a.col_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.data.as_ptr(),
            b.col_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Runs a loop compiled for the widest vectors this processor has. What the closure calls has to be inlined into it.
#[inline(always)]
pub(crate) fn wide<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}

/// `activation(u)` in f32.
#[inline(always)]
pub fn activate(activation: Activation, u: f32) -> f32 {
    match activation {
        Activation::None => u,
        Activation::Relu => u.max(0.0),
        Activation::Silu => u / (1.0 + exp(-u)),
        Activation::Gelu => {
            let tail = 0.5 * erfc(u.abs() * std::f32::consts::FRAC_1_SQRT_2);
            u * if u < 0.0 { tail } else { 1.0 - tail }
        }
        Activation::QuickGelu => u / (1.0 + exp(-1.702 * u)),
    }
}

/// `e^x` to about two units of rounding, without a branch or a table, so that loops over it vectorise.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by a polynomial of degree six, `2^n` through the exponent bits.
/// Adding `1.5 * 2^23` rounds to the nearest whole number and leaves `n` in the low bits of the sum.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let tail = 0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))));
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (1.0 + (r + r * r * tail)) * scale
}

/// The complementary error function of `z >= 0` (Press et al., Numerical Recipes, section 6.2, `erfcc`): relative error below
/// 1.2e-7, and what rounding the exponent adds, so that what is left of large negative inputs keeps its digits.
#[inline(always)]
fn erfc(z: f32) -> f32 {
    const TERMS: [f32; 10] = [
        -1.265_512_2,
        1.000_023_7,
        0.374_091_97,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_08,
        -1.135_204,
        1.488_515_9,
        -0.822_152_2,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * z);
    let exponent = TERMS.iter().rev().fold(0.0, |sum, term| sum * t + term);
    t * exp(exponent - z * z)
}

/// Applies `activation` in place.
#[inline(always)]
pub fn activate_all(activation: Activation, row: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Relu => row.iter_mut().for_each(|u| *u = activate(Activation::Relu, *u)),
        Activation::Silu => row.iter_mut().for_each(|u| *u = activate(Activation::Silu, *u)),
        Activation::Gelu => row.iter_mut().for_each(|u| *u = activate(Activation::Gelu, *u)),
        Activation::QuickGelu => row.iter_mut().for_each(|u| *u = activate(Activation::QuickGelu, *u)),
    }
}

/// What a matrix product adds on its way out: `y = residual + activation(y + bias + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// One value per column, or empty.
    pub bias: &'a [f32],
    /// One row per image, or empty.
    pub shift: &'a [f32],
    /// Rows that share one row of `shift`.
    pub rows_per_image: usize,
    /// Applied after bias and shift.
    pub activation: Activation,
    /// A tensor like the output, or empty.
    pub residual: &'a [f32],
}

impl Epilogue<'_> {
    /// Finishes what `y` holds of row `index`, from column `first` on, of an output of `cols` columns.
    #[inline(always)]
    pub(crate) fn row(&self, y: &mut [f32], cols: usize, index: usize, first: usize) {
        let add = |y: &mut [f32], from: &[f32]| y.iter_mut().zip(from).for_each(|(y, value)| *y += value);
        if !self.bias.is_empty() {
            add(y, &self.bias[first..]);
        }
        if !self.shift.is_empty() {
            add(y, &self.shift[index / self.rows_per_image * cols + first..]);
        }
        activate_all(self.activation, y);
        if !self.residual.is_empty() {
            add(y, &self.residual[index * cols + first..]);
        }
    }

    /// Finishes rows `first_row..` of an output of `cols` columns.
    #[inline(always)]
    pub fn apply(&self, y: &mut [f32], cols: usize, first_row: usize) {
        for (i, row) in y.chunks_exact_mut(cols).enumerate() {
            self.row(row, cols, first_row + i, 0);
        }
    }
}

/// Rows of `cols` elements that make a task long enough to be worth handing to another thread (about 64 KiB).
pub fn rows_per_task(cols: usize) -> usize {
    (16_384 / cols.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_of_strided_and_transposed_views() {
        // a = [[1,2],[3,4],[5,6]] with a gap after each row; b is stored transposed.
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 5.0, 6.0];
        let b_t = [1.0, 0.5, -1.0, 2.0];
        let mut dst = [7.0; 8];
        matmul(&mut dst, 3, Mat::rows(&a, 3, 2, 3), Mat::rows(&b_t, 2, 2, 2).t(), 2.0, false, Threads::One);
        assert_eq!(dst, [4.0, 6.0, 7.0, 10.0, 10.0, 7.0, 16.0, 14.0]);
        matmul(&mut dst, 3, Mat::rows(&a, 3, 2, 3), Mat::rows(&b_t, 2, 2, 2).t(), 1.0, true, Threads::All);
        assert_eq!(dst, [6.0, 9.0, 7.0, 15.0, 15.0, 7.0, 24.0, 21.0]);
    }

    #[test]
    fn threads_share_a_product_by_columns() {
        // Whole numbers, so that the answer is exact; a last block that is narrower, and gaps that nobody writes.
        let (rows, k, cols, stride) = (5, 97, 641, 650);
        let value = |i: usize| (i % 13) as f32 - 6.0;
        let a: Vec<f32> = (0..rows * k).map(value).collect();
        let b_t: Vec<f32> = (0..cols * k).map(|i| value(7 * i)).collect();
        let (mut shared, mut alone) = (vec![0.5; rows * stride], vec![0.5; rows * stride]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads can be had");
        let product = |dst: &mut [f32], threads| {
            matmul(dst, stride, Mat::rows(&a, rows, k, k), Mat::rows(&b_t, cols, k, k).t(), 1.0, false, threads);
        };
        pool.install(|| product(&mut shared, Threads::All));
        product(&mut alone, Threads::One);
        assert_eq!(shared, alone);
        assert!(shared.chunks(stride).all(|row| row[cols..].iter().all(|&gap| gap == 0.5)), "a gap was written");
    }

    #[test]
    #[should_panic(expected = "longer than its")]
    fn short_matrix_is_refused() {
        Mat::rows(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "longer than its")]
    fn short_product_is_refused() {
        let a = [0.0; 4];
        matmul(&mut [0.0; 3], 2, Mat::rows(&a, 2, 2, 2), Mat::rows(&a, 2, 2, 2), 1.0, false, Threads::One);
    }

    #[test]
    fn exponential_agrees_with_the_library() {
        for i in -8700..8800_i16 {
            let x = f32::from(i) / 100.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 3e-7, "exp({x}) is off by {error:e}");
        }
        assert!(exp(-1e30) < 2e-38 && exp(1e30) > 1e38, "the ends are clamped");
    }

    #[test]
    fn what_the_error_function_leaves_keeps_its_digits() {
        for (z, want) in [(0.0, 1.0), (0.5, 0.479_500_122), (2.0, 4.677_734_98e-3), (4.0, 1.541_725_79e-8)] {
            let error = (f64::from(erfc(z)) - want).abs() / want;
            assert!(error < 3e-6, "erfc({z}) = {} is off by {error:e}", erfc(z));
        }
    }
}

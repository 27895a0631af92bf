//! Shared parts of the CPU forms: activations in f32, the epilogue of products, vectorised loops and sizes of parallel
//! tasks.
//!
//! Matrix products are in [`panels`](crate::panels). A result never depends on the number of threads: tasks write
//! disjoint outputs, and no sum is divided among threads in a way that depends on how many there are.

mod awake;

pub use awake::awake;

use crate::kernel::Activation;

/// Threads a matrix product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread only, for products inside a loop that is already parallel.
    One,
    /// All threads of rayon's pool.
    All,
}

/// Runs a loop compiled for the widest vectors of this processor.
///
/// Functions that the closure calls must be inlined into it (`inline(always)`), or they are compiled for the baseline
/// processor.
#[inline(always)]
pub(crate) fn with_simd<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}

/// Returns `activation(u)` in f32.
#[inline(always)]
pub(crate) fn activate(activation: Activation, u: f32) -> f32 {
    match activation {
        Activation::None => u,
        // `f32::max` would turn a NaN into zero.
        Activation::Relu => {
            if u < 0.0 {
                0.0
            } else {
                u
            }
        }
        Activation::Silu => u / (1.0 + exp(-u)),
        Activation::Gelu => {
            let tail = 0.5 * erfc(u.abs() * std::f32::consts::FRAC_1_SQRT_2);
            u * if u < 0.0 { tail } else { 1.0 - tail }
        }
        Activation::QuickGelu => u / (1.0 + exp(-1.702 * u)),
    }
}

/// Returns `e^x` to about two units of rounding. It has no branch and no table, so that loops over it vectorise.
///
/// `x` is clamped to `[-87, 88]` and split into `n ln 2 + r` with a whole `n` and `|r| <= ln 2 / 2`. A polynomial of
/// degree six gives `e^r`, and `2^n` is written into the exponent bits. Adding `1.5 * 2^23` rounds to the nearest whole
/// number and leaves `n` in the low bits of the sum.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
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

/// Returns the complementary error function of `z >= 0` (Press et al., Numerical Recipes, section 6.2, `erfcc`).
///
/// The relative error of the formula is below 1.2e-7; rounding of the exponent adds to it. Because the error is
/// relative, GELU keeps its digits for large negative inputs.
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

/// Applies `activation` to every value of `row` in place.
///
/// Every activation has a loop of its own: a loop with the choice inside is not vectorised.
#[inline(always)]
pub(crate) fn activate_all(activation: Activation, row: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Relu => row.iter_mut().for_each(|u| *u = activate(Activation::Relu, *u)),
        Activation::Silu => row.iter_mut().for_each(|u| *u = activate(Activation::Silu, *u)),
        Activation::Gelu => row.iter_mut().for_each(|u| *u = activate(Activation::Gelu, *u)),
        Activation::QuickGelu => row.iter_mut().for_each(|u| *u = activate(Activation::QuickGelu, *u)),
    }
}

/// The epilogue of a matrix product: `y = residual + activation(y + bias + shift)`, where `y` is a block of rows of the
/// output, `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'a> {
    /// `[cols]`, or empty for no bias.
    pub(crate) bias: &'a [f32],
    /// `[images, cols]`, or empty for no shift.
    pub(crate) shift: &'a [f32],
    /// Rows of an image: they share one row of `shift`.
    pub(crate) rows_per_image: usize,
    /// Activation, applied after bias and shift.
    pub(crate) activation: Activation,
    /// `[rows, cols]`, or empty for no residual.
    pub(crate) residual: &'a [f32],
    /// Index of the block's first row in the output.
    pub(crate) first_row: usize,
}

impl Epilogue<'_> {
    /// Returns the epilogue for a block that begins at row `first_row` of the output.
    pub(crate) fn at_row(self, first_row: usize) -> Self {
        Self { first_row, ..self }
    }

    /// Applies the epilogue to a piece of row `row` of the block. `y` begins at column `first`, and the output has
    /// `cols` columns.
    #[inline(always)]
    pub(crate) fn row(&self, y: &mut [f32], cols: usize, row: usize, first: usize) {
        let index = self.first_row + row;
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

    /// Applies the epilogue to a block of whole rows of `cols` columns.
    #[inline(always)]
    pub(crate) fn apply(&self, y: &mut [f32], cols: usize) {
        for (i, y) in y.chunks_exact_mut(cols).enumerate() {
            self.row(y, cols, i, 0);
        }
    }
}

/// Returns the number of rows of `cols` elements that make a task worth handing to another thread: about 64 KiB, at
/// least one row.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (16_384 / cols.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn complementary_error_function_keeps_its_digits() {
        for (z, want) in [(0.0, 1.0), (0.5, 0.479_500_122), (2.0, 4.677_734_98e-3), (4.0, 1.541_725_79e-8)] {
            let error = (f64::from(erfc(z)) - want).abs() / want;
            assert!(error < 3e-6, "erfc({z}) = {} is off by {error:e}", erfc(z));
        }
    }
}

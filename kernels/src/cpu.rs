//! What the CPU forms share: activations in f32, what products add on their way out, and parallel rows. Matrix products are
//! in `panels`.

mod awake;

pub use awake::awake;

use crate::kernel::Activation;

/// Threads a matrix product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: inside a loop that is already parallel.
    One,
    /// All of rayon's pool.
    All,
}

/// Runs a loop compiled for the widest vectors this processor has. What the closure calls has to be inlined into it.
#[inline(always)]
pub(crate) fn with_simd<R>(run: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(run)
}

/// `activation(u)` in f32.
#[inline(always)]
pub(crate) fn activate(activation: Activation, u: f32) -> f32 {
    match activation {
        Activation::None => u,
        // Not `max`, which makes zero of a NaN.
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

/// `e^x` to about two units of rounding, without a branch or a table, so that loops over it vectorise.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by a polynomial of degree six, `2^n` through the exponent bits.
/// Adding `1.5 * 2^23` rounds to the nearest whole number and leaves `n` in the low bits of the sum.
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
pub(crate) fn activate_all(activation: Activation, row: &mut [f32]) {
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
pub(crate) struct Epilogue<'a> {
    /// One value per column, or empty.
    pub(crate) bias: &'a [f32],
    /// One row per image, or empty.
    pub(crate) shift: &'a [f32],
    /// Rows that share one row of `shift`.
    pub(crate) rows_per_image: usize,
    /// Applied after bias and shift.
    pub(crate) activation: Activation,
    /// A tensor like the output, or empty.
    pub(crate) residual: &'a [f32],
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
    pub(crate) fn apply(&self, y: &mut [f32], cols: usize, first_row: usize) {
        for (i, row) in y.chunks_exact_mut(cols).enumerate() {
            self.row(row, cols, first_row + i, 0);
        }
    }
}

/// Rows of `cols` elements that make a task long enough to be worth handing to another thread (about 64 KiB).
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
    fn what_the_error_function_leaves_keeps_its_digits() {
        for (z, want) in [(0.0, 1.0), (0.5, 0.479_500_122), (2.0, 4.677_734_98e-3), (4.0, 1.541_725_79e-8)] {
            let error = (f64::from(erfc(z)) - want).abs() / want;
            assert!(error < 3e-6, "erfc({z}) = {} is off by {error:e}", erfc(z));
        }
    }
}

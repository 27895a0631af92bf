//! Test data and comparison: values that fill operands, expected results, and the check against a tolerance.

use crate::kernel::{Case, DType, Fill, Operand, Tolerance, split};
use crate::random::Random;
use std::fmt;

pub use crate::conv2d::with_exact_sums;
pub use mobilediffusion_runtime::POISON;

/// Returns random values for one operand, dense and in PyTorch's orientation. u32 operands hold the bits of their
/// integers.
pub fn fill(operand: &Operand, fill: Fill, random: &mut Random) -> Vec<f32> {
    (0..operand.host_len())
        .map(|_| match (operand.dtype, fill) {
            (DType::U32, Fill::Below(bound)) => f32::from_bits(random.below(bound)),
            (DType::U32, _) => f32::from_bits(0),
            (_, Fill::Normal(mean, deviation)) => mean + deviation * random.normal(),
            (_, Fill::Integers) => f32::from(i16::try_from(random.below(9)).expect("below nine")) - 4.0,
            (_, Fill::Constant(value)) => value,
            (_, Fill::Below(bound)) => random.below(bound) as f32,
        })
        .collect()
}

/// Returns values for all operands that a case reads, in order.
pub fn inputs(case: &Case, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let (read, _) = split(case.kernel.as_ref());
    read.iter().map(|operand| fill(operand, case.fill_of(operand.name), &mut random)).collect()
}

/// Converts values of an operand to f64, as the reference takes them. The bits of u32 operands become whole numbers.
pub fn to_f64(operand: &Operand, values: &[f32]) -> Vec<f64> {
    let value = |v: &f32| if operand.dtype == DType::U32 { f64::from(v.to_bits()) } else { f64::from(*v) };
    values.iter().map(value).collect()
}

/// Computes the expected outputs of a case by the kernel's reference, in the order of the operands that are written.
pub fn expected(case: &Case, inputs: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let (read, _) = split(case.kernel.as_ref());
    let inputs: Vec<Vec<f64>> = read.iter().zip(inputs).map(|(o, values)| to_f64(o, values)).collect();
    case.kernel.reference(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Distance between a result and the expected values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Relative difference in the L2 norm, see [`relative_l2`].
    pub relative_l2: f64,
}

/// Reason why a result does not pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The number of elements is wrong.
    Length {
        /// Number of elements in the result.
        got: usize,
        /// Number of elements that were expected.
        want: usize,
    },
    /// Elements lie beyond the tolerance. NaN and elements that were not written are among them.
    Values {
        /// Coordinates of the first wrong element.
        at: Vec<usize>,
        /// Value of the first wrong element.
        got: f64,
        /// Expected value of the first wrong element.
        want: f64,
        /// Number of wrong elements.
        count: usize,
        /// Number of all elements.
        of: usize,
        /// Distance over all elements. NaN if an element is NaN.
        agreement: Agreement,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { got, want } => write!(f, "{got} elements, expected {want}"),
            Self::Values { at, got, want, count, of, agreement } => write!(
                f,
                "{count} of {of} elements differ, the first at {at:?}: got {got:e}, expected {want:e} \
                 (largest difference {:.3e}, relative L2 {:.3e})",
                agreement.max_abs, agreement.relative_l2
            ),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares a result with the expected values.
///
/// `shape` gives the rows that [`Tolerance::rounding`] refers to, and the coordinates in the error. NaN never passes,
/// because an element passes only if its difference is within the tolerance. An infinity passes only where the same
/// infinity was expected.
///
/// # Errors
/// If the lengths differ, or any element is beyond the tolerance.
pub fn compare(got: &[f64], want: &[f64], shape: &[usize], tolerance: Tolerance) -> Result<Agreement, Mismatch> {
    if got.len() != want.len() {
        return Err(Mismatch::Length { got: got.len(), want: want.len() });
    }
    let scale = finite_rms(want);
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let rounding = |index: usize| {
        let row = &want[index / cols * cols..want.len().min((index / cols + 1) * cols)];
        tolerance.rounding * finite_rms(row).max(scale)
    };
    let within = |index: usize, g: f64, w: f64| {
        let allowed = tolerance.absolute + tolerance.relative * w.abs().max(scale);
        g == w
            || w.is_finite()
                && ((g - w).abs() <= allowed || tolerance.rounding > 0.0 && (g - w).abs() <= allowed + rounding(index))
    };
    let mut agreement = Agreement { max_abs: 0.0, relative_l2: relative_l2(got, want) };
    let (mut first, mut count) = (None, 0);
    for (index, (&g, &w)) in got.iter().zip(want).enumerate() {
        let difference = if g == w { 0.0 } else { (g - w).abs() };
        // `f64::max` would drop a NaN, and a NaN that was found stays.
        let most = agreement.max_abs;
        agreement.max_abs = if most.is_nan() || difference <= most { most } else { difference };
        if !within(index, g, w) {
            count += 1;
            first.get_or_insert((index, g, w));
        }
    }
    match first {
        None => Ok(agreement),
        Some((index, got_value, want_value)) => Err(Mismatch::Values {
            at: coordinates(index, shape),
            got: got_value,
            want: want_value,
            count,
            of: want.len(),
            agreement,
        }),
    }
}

/// Returns the relative difference in the L2 norm, `|got - want| / |want|`. Values that are equal have a difference of 0,
/// even if all are 0 or infinite. Infinite values do not count in `|want|`.
///
/// It is within no bound, that is infinite or NaN, if the lengths differ, if a value is NaN, or infinite where another one
/// was expected, or if only zeros were expected and something else was found.
pub fn relative_l2(got: &[impl Copy + Into<f64>], want: &[impl Copy + Into<f64>]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let square = |sum: f64, value: f64| sum + value * value;
    let pairs = got.iter().zip(want).map(|(&got, &want)| (got.into(), want.into()));
    let difference = pairs.map(|(got, want)| if got == want { 0.0 } else { got - want }).fold(0.0, square);
    let norm = want.iter().map(|&want| want.into()).filter(|want| !want.is_infinite()).fold(0.0, square);
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Returns the root mean square of the finite values. With an infinity included, any value beside it would pass.
fn finite_rms(values: &[f64]) -> f64 {
    let squares = values.iter().filter(|value| value.is_finite()).map(|value| value * value);
    let (count, sum) = squares.fold((0, 0.0), |(count, sum), square| (count + 1, sum + square));
    (sum / f64::from(count.max(1))).sqrt()
}

fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape.iter().rev().map(|&size| (index % size.max(1), index /= size.max(1)).0).collect();
    at.reverse();
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOSE: Tolerance = Tolerance { absolute: 1e-3, relative: 1e-3, rounding: 0.0 };

    fn check(got: &[f64], want: &[f64]) -> Result<Agreement, Mismatch> {
        compare(got, want, &[2, 2], LOOSE)
    }

    #[test]
    fn equal_and_near_values_pass() {
        assert!(check(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0005]).is_ok(), "within the tolerance");
        assert_eq!(check(&[0.0; 4], &[0.0; 4]).map(|a| a.relative_l2), Ok(0.0));
        assert!(check(&[f64::INFINITY, 0.0, 0.0, 0.0], &[f64::INFINITY, 0.0, 0.0, 0.0]).is_ok(), "same infinity");
    }

    #[test]
    fn one_wrong_element_fails_and_is_named() {
        let error = check(&[1.0, 2.0, 3.5, 4.0], &[1.0, 2.0, 3.0, 4.0]).expect_err("3.5 is not 3");
        assert!(matches!(error, Mismatch::Values { ref at, count: 1, .. } if *at == [1, 0]), "{error}");
    }

    #[test]
    fn nan_infinity_and_poison_fail() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::from(f32::from_bits(POISON))] {
            assert!(check(&[bad, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0]).is_err(), "{bad} passed");
            assert!(check(&[1.0, 2.0, 3.0, 4.0], &[bad, 2.0, 3.0, 4.0]).is_err(), "{bad} wanted and 1 passed");
        }
        assert!(check(&[f64::NAN; 4], &[f64::NAN; 4]).is_err(), "NaN is never right");
        let among = check(&[1.0, f64::NAN, 3.5, 4.0], &[1.0, 2.0, 3.0, 4.0]).expect_err("one is NaN");
        let Mismatch::Values { agreement, .. } = among else { panic!("{among}") };
        assert!(agreement.max_abs.is_nan(), "a later difference hides the NaN: {}", agreement.max_abs);
        let inf = f64::INFINITY;
        assert!(check(&[inf, 2.0, 3.5, 4.0], &[inf, 2.0, 3.0, 4.0]).is_err(), "beside an infinity that is right");
        assert!(check(&[inf, inf, 3.0, 4.0], &[inf, 2.0, 3.0, 4.0]).is_err(), "an infinity too many");
        let rounded = Tolerance { rounding: 1e-3, ..LOOSE };
        assert!(compare(&[inf, 3.5], &[inf, 3.0], &[1, 2], rounded).is_err(), "in a row with an infinity");
    }

    /// Checks each part of a tolerance with a difference slightly within it and one slightly beyond it.
    #[test]
    fn tolerances_are_as_wide_as_they_say() {
        let nothing = Tolerance { absolute: 0.0, relative: 0.0, rounding: 0.0 };
        // Four values of root mean square 5, in two rows: of 1 and of 7.
        let want = [1.0, 1.0, 7.0, 7.0];
        for (tolerance, at, allowed) in [
            (Tolerance { absolute: 0.5, ..nothing }, 0, 0.5),
            (Tolerance { relative: 0.01, ..nothing }, 0, 0.05),
            (Tolerance { relative: 0.01, ..nothing }, 2, 0.07),
            (Tolerance { rounding: 0.01, ..nothing }, 0, 0.05),
            (Tolerance { rounding: 0.01, ..nothing }, 3, 0.07),
            (Tolerance { absolute: 0.5, relative: 0.01, rounding: 0.01 }, 2, 0.64),
        ] {
            let off = |by: f64| {
                let mut got = want;
                got[at] += by;
                compare(&got, &want, &[2, 2], tolerance)
            };
            assert!(off(0.98 * allowed).is_ok(), "{tolerance:?} at {at}");
            assert!(off(1.02 * allowed).is_err(), "{tolerance:?} at {at}");
        }
    }

    #[test]
    fn rounding_is_allowed_by_the_row_of_an_element_or_by_all() {
        let tolerance = Tolerance { absolute: 0.0, relative: 0.0, rounding: 0.01 };
        let want = [1.0, 1.0, 9.0, 1.0, 1.0, 1.0];
        // Root mean squares: of all values, and of the second row of two.
        for (at, rms) in [(0, (86.0_f64 / 6.0).sqrt()), (2, 41.0_f64.sqrt()), (5, (86.0_f64 / 6.0).sqrt())] {
            let off = |by: f64| {
                let mut got = want;
                got[at] += 0.01 * by * rms;
                compare(&got, &want, &[3, 2], tolerance)
            };
            assert!(off(0.98).is_ok() && off(1.02).is_err(), "at {at}");
        }
    }

    #[test]
    fn distances_are_measured_over_all_elements() {
        let loose = Tolerance { absolute: 5.0, ..LOOSE };
        // Differences of 4 and 3, beside a norm of 10.
        let found = compare(&[10.0, 5.0, 0.0], &[6.0, 8.0, 0.0], &[3], loose);
        assert_eq!(found, Ok(Agreement { max_abs: 4.0, relative_l2: 0.5 }));
    }

    #[test]
    fn an_error_without_a_number_is_within_no_bound() {
        assert_eq!(relative_l2(&[10.0_f32, 5.0], &[6.0, 8.0]), 0.5);
        assert_eq!(relative_l2(&[f64::INFINITY, 1.0], &[f64::INFINITY, 2.0]), 0.5, "the same infinity");
        assert_eq!([relative_l2(&[0.0; 2], &[0.0; 2]), relative_l2(&[0.0; 0], &[0.0; 0])], [0.0; 2], "nothing differs");
        for (got, want) in [
            (&[1.0, 2.0][..], &[1.0][..]),
            (&[1.0], &[0.0]),
            (&[f64::NAN, 1.0], &[1.0, 1.0]),
            (&[1.0, 1.0], &[f64::NAN, 1.0]),
            (&[f64::INFINITY, 1.0], &[1.0, 1.0]),
            (&[1.0, 1.0], &[f64::INFINITY, 1.0]),
            (&[f64::INFINITY, 1.0], &[f64::NEG_INFINITY, 1.0]),
        ] {
            let error = relative_l2(got, want);
            assert!(!error.is_finite(), "{got:?} is {error} from {want:?}");
        }
    }

    #[test]
    fn a_swapped_pair_a_stale_buffer_and_a_wrong_length_fail() {
        assert!(check(&[2.0, 1.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0]).is_err(), "swapped");
        assert!(check(&[0.0; 4], &[1.0, 2.0, 3.0, 4.0]).is_err(), "never written");
        let short = check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(short, Err(Mismatch::Length { got: 3, want: 4 }));
    }

    #[test]
    fn exact_means_exact() {
        assert!(compare(&[1.0 + 1e-15], &[1.0], &[1], Tolerance::EXACT).is_err(), "one bit more");
        assert!(compare(&[-0.0], &[0.0], &[1], Tolerance::EXACT).is_ok(), "zero has no sign here");
    }

    #[test]
    fn fills_are_what_they_say() {
        let mut random = Random::new(7);
        let integers = fill(&Operand::read("x", [300]), Fill::Integers, &mut random);
        assert!(integers.iter().all(|v| v.fract() == 0.0 && v.abs() <= 4.0), "whole numbers of -4..=4");
        assert!(integers.contains(&-4.0) && integers.contains(&4.0), "both ends appear");
        let ids = fill(&Operand::read("ids", [300]).dtype(DType::U32), Fill::Below(5), &mut random);
        assert!(ids.iter().all(|v| v.to_bits() < 5), "ids below the bound");
        let normal = fill(&Operand::read("x", [4096]), Fill::Normal(2.0, 3.0), &mut random);
        let mean = normal.iter().sum::<f32>() / 4096.0;
        assert!((mean - 2.0).abs() < 0.25, "mean {mean}");
    }
}

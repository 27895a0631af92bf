//! Tests of the judgement of outputs.

use super::*;
use crate::{Add, Linear, Moments};

#[test]
fn outputs_that_are_missing_are_a_failure() {
    let kernel = Add { rows: 1, c: 1 };
    let judged = |outputs: &[Vec<f32>], expected: &[Vec<f64>]| judge(&kernel, outputs, expected, Tolerance::EXACT);
    assert_eq!(judged(&[vec![1.0]], &[vec![1.0]]).failure, None, "one output, as expected");
    for (outputs, expected) in [(0, 0), (1, 0), (0, 1), (2, 1), (1, 2), (2, 2)] {
        let verdict = judged(&vec![vec![1.0]; outputs], &vec![vec![1.0]; expected]);
        assert!(verdict.failure.is_some(), "{outputs} outputs and {expected} expected ones pass");
        assert!(verdict.agreement.max_abs.is_nan(), "{outputs} outputs and {expected} expected ones agree");
    }
    let linear = Linear { rows: 1, k: 1, cols: 1, moments: Moments::Channels, ..Linear::default() };
    let verdict = judge(&linear, &[vec![f32::NAN], vec![1.0]], &[vec![1.0], vec![1.0]], Tolerance::EXACT);
    assert!(verdict.agreement.max_abs.is_nan(), "the second output hides the NaN of the first");
}

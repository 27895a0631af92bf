//! Tests of the checks of fences and padding.

use super::*;
use crate::{Add, Linear};

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
    let linear = Linear { rows: 1, k: 1, cols: 1, moments: true, ..Linear::default() };
    let verdict = judge(&linear, &[vec![f32::NAN], vec![1.0]], &[vec![1.0], vec![1.0]], Tolerance::EXACT);
    assert!(verdict.agreement.max_abs.is_nan(), "the second output hides the NaN of the first");
}

#[test]
fn fences_and_padding_are_looked_at() {
    let kernel = Add { rows: 2, c: 3 };
    let (operand, values) = (Operand::write("y", [2, 3]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for storage in [Storage::F32, Storage::F16, Storage::F16_PACKED] {
        let inside = storage.encode(DType::Elem, &operand.shape, &values);
        let all = [poison(FENCE_BYTES), inside.clone(), poison(FENCE_BYTES)].concat();
        let said = |all: &[u8]| unfenced(&kernel, &operand, storage, all, inside.len());
        assert_eq!(said(&all).expect("nothing is wrong"), values);
        for at in [0, FENCE_BYTES - 1, FENCE_BYTES + inside.len(), all.len() - 1] {
            let mut all = all.clone();
            all[at] ^= 1;
            assert!(matches!(said(&all), Err(RunError::Outside { operand: "y", .. })), "byte {at} was changed");
        }
        let mut all = all.clone();
        all[FENCE_BYTES + inside.len() - 1] = 1;
        assert!(matches!(said(&all), Err(RunError::Padding { operand: "y", .. })), "the padding is not zero");
    }
}

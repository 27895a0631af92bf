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

#[test]
fn exact_cases_are_exact_unless_weights_are_rounded_as_they_are_stored() {
    let (int8, only) = (Storage::F32.with_weights(WeightType::Int8), Variant::ONLY);
    let linear = || Case::new(Linear { rows: 2, k: 4, cols: 4, ..Linear::default() });
    let rounds = Variant { rounds: true, ..only };
    let own = linear().kernel.tolerance();
    assert_eq!(tolerance(&linear().integers(), Storage::F32, &only), Tolerance::EXACT);
    assert_eq!(tolerance(&linear().integers(), int8, &only), own);
    assert_eq!(tolerance(&Case::new(Add { rows: 2, c: 4 }).integers(), int8, &only), Tolerance::EXACT, "no weights");
    assert_eq!(tolerance(&linear().integers(), Storage::F32, &rounds), Tolerance::EXACT, "f16 holds whole numbers");
    assert!(tolerance(&linear(), Storage::F32, &rounds).rounding > 0.0, "factors are rounded");
    assert!(tolerance(&linear(), Storage::F16, &only).relative > own.relative, "the result is rounded");
}

/// A file is written without knowledge of how a device stores weights. Its results move as the reference does.
#[test]
fn a_file_is_judged_by_the_weights_that_are_stored() {
    let file = |y: f32| {
        let case = Case::new(Linear { rows: 1, k: 2, cols: 1, ..Linear::default() });
        let (read, written) = split(case.kernel.as_ref());
        // In 8 bits the second weight is 38 steps of 1/127, and the result 30.92.
        let (mut inputs, mut expected) = (vec![vec![1.0, 100.0], vec![1.0, 0.3]], vec![vec![y]]);
        inputs.resize(read.len(), Vec::new());
        expected.resize(written.len(), Vec::new());
        CaseFile { case, inputs, expected, tolerance: None }
    };
    for device in [Device::CPU, Device::Cpu(WeightType::Int8)] {
        let failure = |y| check_file(&device, &file(y)).expect("it runs").failure;
        assert_eq!(failure(31.0), None, "{device:?}");
        assert!(failure(30.92).is_some(), "{device:?}: another result");
    }
}

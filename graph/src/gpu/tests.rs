//! Tests of the sizes of submissions.

use super::most_flops;
use mobilediffusion_runtime::AdapterKind;

#[test]
fn a_submission_is_the_smaller_the_slower_the_kind_of_device() {
    // Half a second at 200 GFLOP/s, at 40 GFLOP/s and at 4 GFLOP/s.
    for (kind, flops) in [
        (AdapterKind::Discrete, 100e9),
        (AdapterKind::Other, 100e9),
        (AdapterKind::Integrated, 20e9),
        (AdapterKind::Software, 2e9),
    ] {
        assert_eq!(most_flops(kind) as f64, flops, "{kind}");
    }
}

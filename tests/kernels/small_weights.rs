//! Attention on matrix units that take subnormal halves for zero, as WGSL allows: many small weights add up to a part of
//! the result that must not be lost.

use crate::{Changed, STAND_INS, Units, stand_in};
use mobilediffusion_kernels::runner;
use mobilediffusion_kernels::{Attention, Case, GpuDevice, Phi, Stage};
use mobilediffusion_tests::gpu::Test;
use mobilediffusion_tests::judge;

/// Number of keys: the first has a score of 10, the others have scores of 0.
const KEYS: usize = 255;

/// Makes the test of small weights, by the stand-in for matrix units that compiles the fastest.
pub(crate) fn test() -> Test {
    Test::new("attention with small weights by a stand-in", |gpu| {
        let case = Case::new(Attention {
            n: 1,
            queries: 1,
            keys: KEYS,
            heads: 1,
            head_dim: 4,
            phi: Phi::Softmax,
            causal: false,
            shared: false,
        });
        let units = Units::StandIn(STAND_INS[2]);
        let (storage, variants) = (units.storage(), units.variants(&gpu, &case));
        let (mut k, mut v) = (vec![0.0; 4 * KEYS], vec![1.0; 4 * KEYS]);
        k[..4].fill(2.5);
        v[..4].fill(0.0);
        let inputs = [vec![2.0; 4], k, v];
        let change = |stage: Stage| vec![stand_in::without_units(stage, storage)];
        let kernel = Changed { real: case.kernel.as_ref(), change: &change };
        let outputs = runner::run_variant(GpuDevice { gpu: &gpu, storage }, &kernel, &variants[0], &inputs)?;
        judge(&case, 1, &inputs, &outputs, runner::tolerance(&case, storage, &variants[0]))?;
        Ok(())
    })
}

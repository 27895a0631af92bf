//! Kernels whose work is divided over several dispatches, as a session divides steps that would keep a device busy for too
//! long.

use crate::changed::Changed;
use mobilediffusion_kernels::{Case, Family, GpuDevice, Kernel, Stage, Storage, Variant, check, runner, variant};
use mobilediffusion_runtime::Gpu;
use mobilediffusion_tests::gpu::{self, Test};

/// Families whose work can be divided: those that compute products.
pub(crate) const NAMES: [&str; 4] = ["attention", "conv2d", "linear", "swish_glu"];

/// Number of cases of a family that are divided.
const CASES: usize = 3;

/// Number of parts, which divides few numbers of tiles.
const PARTS: u64 = 3;

/// Divides a stage into as many.
fn parts(stage: Stage) -> Vec<Stage> {
    stage.program.divided(PARTS).into_iter().map(|program| Stage { program, ..stage.clone() }).collect()
}

/// Returns cases of a family with several tiles, each with a variant of one stage that divides it. One is by blocks if
/// the family has such variants.
fn divided(family: &Family, gpu: &Gpu) -> Vec<(Case, Variant)> {
    let of = |case: Case| {
        let variants = variant::runnable(case.kernel.as_ref(), gpu.caps(), Storage::F32);
        let is_divided = |variant: &Variant| {
            let stages = case.kernel.stages(variant);
            stages.len() == 1 && stages.into_iter().flat_map(parts).count() == PARTS as usize
        };
        variants.into_iter().rev().find(is_divided).map(|variant| (case, variant))
    };
    let (blocks, others): (Vec<_>, Vec<_>) =
        (family.cases)().into_iter().filter_map(of).partition(|(_, variant)| crate::is_block(variant));
    others.into_iter().take(CASES).chain(blocks.into_iter().take(1)).collect()
}

/// Makes the test that a divided product computes what a whole one does, bit by bit.
pub(crate) fn test(family: &'static Family) -> Test {
    Test::new(format!("{} in several dispatches", family.name), move |gpu| {
        let cases = divided(family, &gpu);
        let device = GpuDevice { gpu: &gpu, storage: Storage::F32 };
        assert!(!cases.is_empty(), "no case of {} can be divided", family.name);
        for (case, variant) in cases {
            let kernel = case.kernel.as_ref();
            let inputs = gpu::stored(&case, Storage::F32, check::inputs(&case, 1));
            let run = |kernel: &dyn Kernel| runner::run_variant(device, kernel, &variant, &inputs);
            let divided = Changed { real: kernel, change: &parts };
            let [whole, divided] = [run(kernel)?, run(&divided)?]
                .map(|outputs| outputs.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>());
            if whole != divided {
                return Err(format!("{kernel:?}: other bits in parts, by {}", variant.name).into());
            }
        }
        Ok(())
    })
}

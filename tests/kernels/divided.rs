//! Kernels whose work is divided over several dispatches, as a session divides steps that would keep a device busy for too
//! long.

use mobilediffusion_kernels::{Case, Cost, Family, Kernel, Operand, ParamsJson, Program, Stage, Storage, Tolerance};
use mobilediffusion_kernels::{Variant, check, runner};
use mobilediffusion_tests::gpu::{self, Test};

/// Families whose work can be divided: those that compute products.
pub(crate) const NAMES: [&str; 4] = ["attention", "conv2d", "linear", "swish_glu"];

/// Number of cases of a family that are divided.
const CASES: usize = 3;

/// Number of parts, which divides few numbers of tiles.
const PARTS: u64 = 3;

/// Kernel in as many dispatches.
#[derive(Debug)]
struct Divided<'a>(&'a dyn Kernel);

impl ParamsJson for Divided<'_> {
    fn params_json(&self) -> serde_json::Value {
        self.0.params_json()
    }
}

impl Kernel for Divided<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn operands(&self) -> Vec<Operand> {
        self.0.operands()
    }

    fn program(&self, variant: &Variant) -> Program {
        self.0.program(variant)
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        let mut stages = self.0.stages(variant);
        let Some(stage) = stages.pop() else { return stages };
        let parts = stage.program.divided(PARTS).into_iter().map(|program| Stage { program, ..stage.clone() });
        stages.into_iter().chain(parts).collect()
    }

    fn cost(&self) -> Cost {
        self.0.cost()
    }

    fn tolerance(&self) -> Tolerance {
        self.0.tolerance()
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        self.0.reference(inputs)
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        self.0.cpu(inputs, outputs);
    }
}

/// Returns the cases of a family with several tiles, each with a variant of one stage that divides it.
fn divided(family: &Family, gpu: &mobilediffusion_runtime::Gpu) -> Vec<(Case, Variant)> {
    let of = |case: Case| {
        let variants = mobilediffusion_kernels::variant::runnable(case.kernel.as_ref(), gpu.caps(), Storage::F32);
        let is_divided = |variant: &Variant| {
            let stages = case.kernel.stages(variant);
            stages.len() == 1 && stages[0].program.divided(PARTS).len() == PARTS as usize
        };
        variants.into_iter().rev().find(is_divided).map(|variant| (case, variant))
    };
    (family.cases)().into_iter().filter_map(of).take(CASES).collect()
}

/// Makes the test that a divided product computes what a whole one does, bit by bit.
pub(crate) fn test(family: &'static Family) -> Test {
    Test::new(format!("{} in several dispatches", family.name), move |gpu| {
        let cases = divided(family, &gpu);
        assert!(!cases.is_empty(), "no case of {} can be divided", family.name);
        for (case, variant) in cases {
            let kernel = case.kernel.as_ref();
            let inputs = gpu::stored(&case, Storage::F32, check::inputs(&case, 1));
            let run = |kernel: &dyn Kernel| runner::run_variant((&gpu, Storage::F32), kernel, &variant, &inputs);
            let [whole, parts] = [run(kernel)?, run(&Divided(kernel))?]
                .map(|outputs| outputs.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>());
            if whole != parts {
                return Err(format!("{kernel:?}: other bits in parts, by {}", variant.name).into());
            }
        }
        Ok(())
    })
}

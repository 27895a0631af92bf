//! Kernels with a deliberate mistake, which the comparison has to find on every device.

use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::runner::{self, RunError};
use mobilediffusion_kernels::{Add, Case, Cost, Kernel, Operand, ParamsJson, Program, Storage, Tolerance, Variant};
use mobilediffusion_runtime::Gpu;
use mobilediffusion_tests::gpu::Test;
use std::sync::Arc;

/// Kernel `add` with a shader that is wrong.
#[derive(Clone, Debug)]
struct Broken {
    right: Add,
    wgsl: &'static str,
}

impl ParamsJson for Broken {
    fn params_json(&self) -> serde_json::Value {
        self.right.params_json()
    }
}

impl Kernel for Broken {
    fn name(&self) -> &'static str {
        self.right.name()
    }

    fn operands(&self) -> Vec<Operand> {
        self.right.operands()
    }

    fn program(&self, variant: &Variant) -> Program {
        Program { wgsl: self.wgsl, ..self.right.program(variant) }
    }

    fn cost(&self) -> Cost {
        self.right.cost()
    }

    fn tolerance(&self) -> Tolerance {
        self.right.tolerance()
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        self.right.reference(inputs)
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        self.right.cpu(inputs, outputs);
    }
}

/// Source of the shader of `add`, with the given last line.
macro_rules! shader {
    ($line:literal) => {
        concat!(
            "struct Params { vec4s: u32 }
            @group(0) @binding(0) var<uniform> params: Params;
            @group(0) @binding(1) var<storage, read> a: array<Pack>;
            @group(0) @binding(2) var<storage, read> b: array<Pack>;
            @group(0) @binding(3) var<storage, read_write> y: array<Pack>;
            @compute @workgroup_size(64)
            fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                let at = id.x;
                if at >= params.vec4s { return; }
                let sum = load4(a[at]) + load4(b[at]);
                ",
            $line,
            "}"
        )
    };
}

/// Runs the kernel with a shader, and returns the failure that the comparison found.
fn check(gpu: &Arc<Gpu>, storage: Storage, wgsl: &'static str) -> Result<Option<String>, RunError> {
    // Rows of six elements: each ends with two of padding.
    let kernel = Broken { right: Add { rows: 5, c: 6 }, wgsl };
    let verdict = runner::check_case(&Device::Gpu(Arc::clone(gpu), storage), &Case::new(kernel), 1)?;
    Ok(verdict.failure)
}

/// Makes the test that the runner finds every kind of mistake.
pub(crate) fn test() -> Test {
    let run = |gpu: Arc<Gpu>| {
        for storage in runner::storages(&gpu) {
            let said = |wgsl| check(&gpu, storage, wgsl);
            assert_eq!(said(shader!("y[at] = store4(sum);")).expect("it runs"), None, "nothing is wrong");
            let unwritten = said(shader!("if at != 3u { y[at] = store4(sum); }")).expect("it runs");
            let unwritten = unwritten.expect("an element is not written");
            assert!(unwritten.contains("got NaN") && unwritten.contains("[1, 4]"), "{unwritten}");
            let wrong = said(shader!("y[at] = store4(sum + vec4<f32>(f32(at == 4u), 0.0, 0.0, 0.0));"));
            let wrong = wrong.expect("it runs").expect("an element is wrong");
            assert!(wrong.contains("1 of 30") && wrong.contains("[2, 0]"), "{wrong}");
            let stale = said(shader!("y[at] = store4(load4(a[at]));")).expect("it runs");
            assert!(stale.is_some(), "one operand was forgotten");
            let padding = said(shader!("y[at] = store4(sum + vec4<f32>(0.0, 0.0, f32(at % 2u), 0.0));"));
            assert!(matches!(padding, Err(RunError::Padding { operand: "y", .. })), "{padding:?}");
        }
        Ok(())
    };
    Test::new("mistakes are found", run)
}

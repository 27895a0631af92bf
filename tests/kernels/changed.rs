//! Kernels that run other stages than their own, and are otherwise the same.

use mobilediffusion_kernels::{Cost, Kernel, Operand, ParamsJson, Program, Stage, Tolerance, Variant};
use std::fmt;

/// Kernel each of whose stages is replaced by others.
pub(crate) struct Changed<'a> {
    pub(crate) real: &'a dyn Kernel,
    pub(crate) change: &'a (dyn Fn(Stage) -> Vec<Stage> + Send + Sync),
}

impl fmt::Debug for Changed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.real.fmt(f)
    }
}

impl ParamsJson for Changed<'_> {
    fn params_json(&self) -> serde_json::Value {
        self.real.params_json()
    }
}

impl Kernel for Changed<'_> {
    fn name(&self) -> &'static str {
        self.real.name()
    }

    fn operands(&self) -> Vec<Operand> {
        self.real.operands()
    }

    fn program(&self, variant: &Variant) -> Program {
        self.real.program(variant)
    }

    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        self.real.stages(variant).into_iter().flat_map(self.change).collect()
    }

    fn cost(&self) -> Cost {
        self.real.cost()
    }

    fn tolerance(&self) -> Tolerance {
        self.real.tolerance()
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        self.real.reference(inputs)
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        self.real.cpu(inputs, outputs);
    }
}

//! `y = x0`, or `y = a_next x0 + s_next noise` before a further step: the sampler of the one-step model (docs/model.md,
//! section 4.2).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `latent` | `[images, positions, c]` | f32, the latent `z` |
//! | `prediction` | `[images, positions, c]` | f32, the network's output |
//! | `coefficients` | `[4]` | f32: `a`, `s`, `a_next`, `s_next` |
//! | `noise` | `[images, positions, c]` | f32, absent without `renoise` |
//! | `y` | `[images, positions, c]` | f32, written |
//!
//! [`Prediction`] says how the clean latent `x0` follows from the prediction and `z = a x0 + s e`. The last step
//! returns it; a step before the last adds fresh noise for the next. All operands are f32, because the division by `a`
//! amplifies errors 14.6 times at timestep 999.
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) each.
//! * CPU: one thread.

use crate::draw::Draw;
use crate::kernel::{
    Case, Cost, DType, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, elements, grid_of, parse,
};
use crate::prediction::Prediction;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// One step of the one-step sampler for the latents of `images` images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneStepX0 {
    /// Images.
    pub images: usize,
    /// Positions of a latent: height times width.
    pub positions: usize,
    /// Channels of a latent.
    pub c: usize,
    /// Quantity that the network predicts.
    pub prediction: Prediction,
    /// Whether noise is added for a further step.
    pub renoise: bool,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "one_step_x0",
    summary: "the clean latent of the one-step model, or that with fresh noise",
    cases,
    model_shapes,
    random,
    parse: parse::<OneStepX0>,
};

impl Kernel for OneStepX0 {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        let shape = [self.images, self.positions, self.c];
        vec![
            Operand::read("latent", shape).dtype(DType::F32),
            Operand::read("prediction", shape).dtype(DType::F32),
            Operand::read("coefficients", [4]).dtype(DType::F32),
            Operand::read("noise", shape).dtype(DType::F32).optional(self.renoise),
            Operand::write("y", shape).dtype(DType::F32),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let vec4s = elements(&[self.images, self.positions, self.c.div_ceil(4)]);
        Program {
            wgsl: include_str!("../../shaders/one_step_x0.wgsl"),
            constants: vec![("RENOISE", self.renoise.into())],
            params: vec![Param::size("vec4s", vec4s), Param::U("kind", self.prediction.code())],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(elements(&[self.images, self.positions, self.c]), 6)
    }

    fn tolerance(&self) -> Tolerance {
        // About six roundings, of factors near one.
        Tolerance::f32_sum(1)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[latent, prediction, coefficients, noise] = inputs else { panic!("one_step_x0 reads four operands") };
        let &[a, s, a_next, s_next] = coefficients else { panic!("four coefficients") };
        let mut y = vec![0.0; self.images * self.positions * self.c];
        for i in 0..y.len() {
            let (p, z) = (prediction[i], latent[i]);
            y[i] = match self.prediction {
                Prediction::Epsilon => (z - s * p) / a,
                Prediction::VPrediction => a * z - s * p,
                Prediction::Sample => p,
            };
            if self.renoise {
                y[i] = a_next * y[i] + s_next * noise[i];
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[latent, prediction, coefficients, noise], [y]) = (inputs, outputs) else {
            panic!("one_step_x0 has five operands")
        };
        let &[a, s, a_next, s_next] = coefficients else { panic!("four coefficients") };
        for ((y, &z), &p) in y.iter_mut().zip(latent).zip(prediction) {
            *y = self.prediction.x0(p, z, a, s);
        }
        y.iter_mut().zip(noise).for_each(|(y, noise)| *y = a_next * *y + s_next * noise);
    }
}

fn case(kernel: OneStepX0) -> Case {
    Case::new(kernel).fill("coefficients", Fill::Normal(0.7, 0.05))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for prediction in Prediction::ALL {
        let step = |images, positions, c, renoise| case(OneStepX0 { images, positions, c, prediction, renoise });
        cases.extend([
            step(1, 1, 1, false),
            step(1, 13, 5, true),
            step(2, 11, 3, false),
            // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
            step(1, 63, 4, false),
            step(2, 16, 8, true),
            step(1, 65, 4, true),
        ]);
    }
    cases
}

fn model_shapes() -> Vec<Case> {
    let step = OneStepX0 { images: 1, positions: 64 * 64, c: 8, prediction: Prediction::Epsilon, renoise: false };
    vec![case(step.clone()), case(OneStepX0 { renoise: true, ..step })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    case(OneStepX0 {
        images: draw.of(&[1, 2, 3]),
        positions: draw.size(GROUP),
        c: draw.channels(),
        prediction: draw.of(&Prediction::ALL),
        renoise: draw.flip(),
    })
}

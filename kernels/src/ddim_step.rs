//! `y = a_next x0 + direction e + sigma noise`: one step of DDIM (arXiv 2010.02502) with classifier-free guidance, or of
//! the one-step sampler, for which `direction` is 0 (docs/model.md, section 4).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `latent` | `[b, positions, c]` | f32, the latent `z` |
//! | `prediction` | `[b, positions, c]` | f32, the network's output |
//! | `coefficients` | `[8]` | f32: `a`, `s`, `a_next`, `direction`, `guidance`, `sigma`, two unused |
//! | `noise` | `[images, positions, c]` | f32, absent without `noise` |
//! | `y` | `[b, positions, c]` | f32, written |
//!
//! The batch `b` is `images`, or `2 * images` if `guided`: first every image without text (`p_u`), then every image
//! with text (`p_c`), and `p = p_u + guidance (p_c - p_u)`. [`Prediction`] says how the clean latent `x0` and the noise
//! `e` follow from `p` and `z = a x0 + s e`. Both halves of a guided latent are equal: the first is read, both are
//! written. All operands are f32, because the division by `a` amplifies errors 14.6 times at timestep 999.
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) of an image each.
//! * CPU: one thread.

use crate::draw::Draw;
use crate::kernel::{
    Case, Cost, DType, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, elements, grid_of, parse,
};
use crate::prediction::Prediction;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// One step of a sampler for the latents of `images` images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdimStep {
    /// Images. A guided batch holds each of them twice.
    pub images: usize,
    /// Positions of a latent: height times width.
    pub positions: usize,
    /// Channels of a latent.
    pub c: usize,
    /// Whether the batch holds every image twice: first all without text, then all with text.
    pub guided: bool,
    /// Quantity that the network predicts.
    pub prediction: Prediction,
    /// Whether fresh noise is added: DDIM with an eta above zero, or the one-step sampler with several steps.
    pub noise: bool,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "ddim_step",
    summary: "one step of DDIM with guidance, or of the one-step sampler: `a_next x0 + direction e + sigma noise`",
    cases,
    model_shapes,
    random,
    parse: parse::<DdimStep>,
};

impl DdimStep {
    /// Returns the number of latents of the batch.
    fn batch(&self) -> usize {
        if self.guided { 2 * self.images } else { self.images }
    }
}

impl Kernel for DdimStep {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        let batch = [self.batch(), self.positions, self.c];
        let images = [self.images, self.positions, self.c];
        vec![
            Operand::read("latent", batch).dtype(DType::F32),
            Operand::read("prediction", batch).dtype(DType::F32),
            Operand::read("coefficients", [8]).dtype(DType::F32),
            Operand::read("noise", images).dtype(DType::F32).optional(self.noise),
            Operand::write("y", batch).dtype(DType::F32),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let vec4s = elements(&[self.images, self.positions, self.c.div_ceil(4)]);
        Program {
            wgsl: include_str!("../../shaders/ddim_step.wgsl"),
            constants: vec![("GUIDED", self.guided.into()), ("HAS_NOISE", self.noise.into())],
            params: vec![Param::size("vec4s", vec4s), Param::U("kind", self.prediction.code())],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(elements(&[self.images, self.positions, self.c]), 11)
    }

    fn tolerance(&self) -> Tolerance {
        // About ten roundings, of factors near one.
        Tolerance::f32_sum(1)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[latent, prediction, coefficients, noise] = inputs else { panic!("ddim_step reads four operands") };
        let &[a, s, a_next, direction, guidance, sigma, ..] = coefficients else { panic!("eight coefficients") };
        let half = self.images * self.positions * self.c;
        let next = |i: usize| {
            let z = latent[i];
            let p = if self.guided {
                (1.0 - guidance) * prediction[i] + guidance * prediction[half + i]
            } else {
                prediction[i]
            };
            let (x0, e) = match self.prediction {
                Prediction::Epsilon => ((z - s * p) / a, p),
                Prediction::VPrediction => (a * z - s * p, a * p + s * z),
                Prediction::Sample => (p, (z - a * p) / s),
            };
            a_next * x0 + direction * e + if self.noise { sigma * noise[i] } else { 0.0 }
        };
        vec![(0..self.batch() * self.positions * self.c).map(|i| next(i % half)).collect()]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[latent, prediction, coefficients, noise], [y]) = (inputs, outputs) else {
            panic!("ddim_step has five operands")
        };
        let &[a, s, a_next, direction, guidance, sigma, ..] = coefficients else { panic!("eight coefficients") };
        let (y, twin) = y.split_at_mut(self.images * self.positions * self.c);
        let with_text = &prediction[if self.guided { y.len() } else { 0 }..];
        let guidance = if self.guided { guidance } else { 0.0 };
        for (((y, &z), &p), &with_text) in y.iter_mut().zip(latent).zip(prediction).zip(with_text) {
            let p = p + guidance * (with_text - p);
            *y = a_next * self.prediction.x0(p, z, a, s) + direction * self.prediction.noise(p, z, a, s);
        }
        y.iter_mut().zip(noise).for_each(|(y, noise)| *y += sigma * noise);
        if self.guided {
            twin.copy_from_slice(y);
        }
    }
}

fn case(kernel: DdimStep) -> Case {
    Case::new(kernel).fill("coefficients", Fill::Normal(0.7, 0.05))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for prediction in Prediction::ALL {
        let step =
            |images, positions, c, guided, noise| case(DdimStep { images, positions, c, guided, prediction, noise });
        cases.extend([
            step(1, 1, 1, false, false),
            step(1, 13, 5, false, true),
            step(2, 7, 6, true, false),
            step(3, 11, 3, true, true),
            // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
            step(1, 63, 4, true, false),
            step(2, 16, 8, true, true),
            step(1, 65, 4, false, false),
        ]);
    }
    cases
}

fn model_shapes() -> Vec<Case> {
    let step =
        DdimStep { images: 1, positions: 64 * 64, c: 8, guided: true, prediction: Prediction::Epsilon, noise: false };
    let one_step = DdimStep { guided: false, ..step };
    vec![case(step), case(one_step.clone()), case(DdimStep { noise: true, ..one_step })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    case(DdimStep {
        images: draw.of(&[1, 2, 3]),
        positions: draw.size(GROUP),
        c: draw.channels(),
        guided: draw.flip(),
        prediction: draw.of(&Prediction::ALL),
        noise: draw.flip(),
    })
}

//! `y = activation(scale * x)`, element by element: activations and scalings that no other kernel applies as it writes.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c]` | |
//! | `y` | `[rows, c]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) each.
//! * CPU: tasks of 64 KiB, in loops that are vectorised for the processor.
//!
//! The activations are those of [`Activation`]: SiLU (arXiv 1702.03118), GELU (arXiv 1606.08415) in its exact form,
//! CLIP's approximation of it, and ReLU.

use crate::cpu::{activate_all, rows_per_task, with_simd};
use crate::draw::Draw;
use crate::fold::{EpilogueOffer, EpilogueOp};
use crate::kernel::{
    Activation, Case, Cost, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse,
};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Scaling and activation of every element of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// Rows: pixels or tokens of all images.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// Activation, applied after the scaling.
    pub activation: Activation,
    /// Factor that multiplies `x` before the activation.
    pub scale: f32,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "activation",
    summary: "`activation(scale * x)`",
    cases,
    model_shapes,
    random,
    parse: parse::<Activate>,
};

impl Kernel for Activate {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read("x", [self.rows, self.c]), Operand::write("y", [self.rows, self.c])]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        let vec4s = self.rows * c4;
        Program {
            wgsl: include_str!("../../shaders/activation.wgsl"),
            constants: vec![],
            params: vec![
                Param::size("vec4s", vec4s),
                Param::size("c", self.c),
                Param::size("c4", c4),
                Param::U("activation", self.activation.code()),
                Param::F("scale", self.scale),
            ],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        // One product; an activation counts as four: an exponential, a sum, a quotient and a product.
        Cost::elementwise(self.rows * self.c, if self.activation == Activation::None { 1 } else { 5 })
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(1)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("activation reads one operand") };
        vec![x.iter().map(|x| crate::reference::activate(self.activation, f64::from(self.scale) * x)).collect()]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [y]) = (inputs, outputs) else { panic!("activation has two operands") };
        let len = rows_per_task(1);
        y.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(y, x)| {
            with_simd(
                #[inline(always)]
                || {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = self.scale * x);
                    activate_all(self.activation, y);
                },
            );
        });
    }

    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        let op = EpilogueOp::Activate(self.activation);
        let offer = EpilogueOffer { op, main: "x", operands: Vec::new() };
        if self.scale == 1.0 { vec![offer] } else { Vec::new() }
    }
}

fn cases() -> Vec<Case> {
    let case = |rows, c, activation, scale| Case::new(Activate { rows, c, activation, scale });
    let mut cases = vec![
        case(1, 1, Activation::None, 1.0),
        case(7, 6, Activation::None, -1.0),
        case(1031, 17, Activation::None, 0.5).integers(),
        case(13, 5, Activation::Relu, 2.0).integers(),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(63, 4, Activation::Silu, 1.0),
        case(32, 7, Activation::Silu, 0.182_15),
        case(65, 3, Activation::Silu, 1.0),
        // Inputs far into both tails.
        case(9, 10, Activation::Silu, -1.0).fill("x", Fill::Normal(0.0, 60.0)),
        case(9, 10, Activation::Gelu, 1.0).fill("x", Fill::Normal(0.0, 60.0)),
    ];
    cases.extend(Activation::ALL.map(|activation| case(11, 23, activation, 1.5)));
    cases
}

fn model_shapes() -> Vec<Case> {
    vec![
        // A time embedding; the scaling of the decoder's latents; a feature map of the decoder.
        Case::new(Activate { rows: 1, c: 512, activation: Activation::Silu, scale: 1.0 }),
        Case::new(Activate { rows: 4096, c: 8, activation: Activation::None, scale: 0.5 }),
        Case::new(Activate { rows: 4096, c: 320, activation: Activation::Silu, scale: 1.0 }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let activation = draw.of(&Activation::ALL);
    let kernel = Activate { rows: draw.size(GROUP), c: draw.channels(), activation, scale: draw.of(&[1.0, -0.5, 3.0]) };
    Case::new(kernel)
}

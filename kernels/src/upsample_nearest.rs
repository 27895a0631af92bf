//! `y[n, i, j] = x[n, i / 2, j / 2]`: doubles height and width of a feature map by nearest neighbour.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, h, w, c]` | |
//! | `y` | `[n, 2 h, 2 w, c]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) of a pixel of `y` each.
//! * CPU: a task writes two rows of `y`, which repeat one row of `x`.
//!
//! A convolution with `upsample` 2 reads `x` like this and makes the step unnecessary.

use crate::draw::Draw;
use crate::fold::{PrologueOffer, PrologueOp};
use crate::kernel::{Case, Cost, Family, Kernel, Operand, Param, Program, Tolerance, elements, grid_of, parse};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Nearest-neighbour upsampling of a feature map by two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpsampleNearest {
    /// Images.
    pub n: usize,
    /// Height of `x`.
    pub h: usize,
    /// Width of `x`.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "upsample_nearest",
    summary: "every pixel repeated two by two",
    cases,
    model_shapes,
    random,
    parse: parse::<UpsampleNearest>,
};

impl Kernel for UpsampleNearest {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.n, self.h, self.w, self.c]),
            Operand::write("y", [self.n, 2 * self.h, 2 * self.w, self.c]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        let vec4s = elements(&[self.n, 2 * self.h, 2 * self.w, c4]);
        Program {
            wgsl: include_str!("../../shaders/upsample_nearest.wgsl"),
            constants: vec![],
            params: vec![Param::size("vec4s", vec4s), Param::size("w", self.w), Param::size("c4", c4)],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::EXACT
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("upsample_nearest reads one operand") };
        let mut y = Vec::with_capacity(4 * x.len());
        for n in 0..self.n {
            for row in 0..2 * self.h {
                for col in 0..2 * self.w {
                    for c in 0..self.c {
                        y.push(x[((n * self.h + row / 2) * self.w + col / 2) * self.c + c]);
                    }
                }
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [y]) = (inputs, outputs) else { panic!("upsample_nearest has two operands") };
        let row = self.w * self.c;
        // Two neighbouring rows of `y` repeat one row of `x`.
        y.par_chunks_exact_mut(4 * row).zip(x.par_chunks_exact(row)).for_each(|(y, x)| {
            let (upper, lower) = y.split_at_mut(2 * row);
            for (y, x) in upper.chunks_exact_mut(2 * self.c).zip(x.chunks_exact(self.c)) {
                y[..self.c].copy_from_slice(x);
                y[self.c..].copy_from_slice(x);
            }
            lower.copy_from_slice(upper);
        });
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        Some(PrologueOffer { op: PrologueOp::Upsample, main: Some("x"), operands: Vec::new(), remainder: None })
    }
}

fn cases() -> Vec<Case> {
    let case = |n, h, w, c| Case::new(UpsampleNearest { n, h, w, c });
    vec![
        case(1, 1, 1, 1),
        case(2, 3, 5, 6),
        case(3, 7, 2, 13),
        case(1, 1, 11, 4),
        case(2, 13, 1, 3),
        // Exactly one workgroup; one pixel of `x` more.
        case(1, 4, 4, 4),
        case(1, 1, 17, 2),
        case(2, 17, 19, 9).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    vec![
        // The two upsamplers of the UNet; the last upsampling of the decoder for a 512x512 image.
        Case::new(UpsampleNearest { n: 1, h: 16, w: 16, c: 1024 }),
        Case::new(UpsampleNearest { n: 1, h: 32, w: 32, c: 640 }),
        Case::new(UpsampleNearest { n: 1, h: 256, w: 256, c: 64 }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    Case::new(UpsampleNearest { n: draw.of(&[1, 2]), h: draw.size(4), w: draw.size(8), c: draw.channels() })
}

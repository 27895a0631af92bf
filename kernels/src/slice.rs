//! `y = scale * x[.., first..first + c]` along the channels: takes the mean out of the output of the VAE encoder.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, channels]` | |
//! | `y` | `[rows, c]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) of `y` each. If `first` and `c` are multiples of four,
//!   as in the model, the four channels are one vec4 of `x`; otherwise they are gathered one by one.
//! * CPU: row by row, in tasks of about 64 KiB of `x`.

use crate::cpu::rows_per_task;
use crate::draw::Draw;
use crate::kernel::{Case, Cost, Family, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A range of the channels of a tensor, scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Rows of both tensors: pixels or tokens of all images.
    pub rows: usize,
    /// Channels of `x`.
    pub channels: usize,
    /// Channel of `x` that becomes the first channel of `y`.
    pub first: usize,
    /// Channels of `y`.
    pub c: usize,
    /// Factor that multiplies the channels.
    pub scale: f32,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "slice",
    summary: "`scale * x[first..first + c]` along the channels",
    cases,
    model_shapes,
    random,
    parse: parse::<Slice>,
};

impl Kernel for Slice {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        let fits = self.first.checked_add(self.c).is_some_and(|end| end <= self.channels);
        (!fits).then_some("`first + c` must be at most `channels`")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read("x", [self.rows, self.channels]), Operand::write("y", [self.rows, self.c])]
    }

    fn program(&self, _: &Variant) -> Program {
        let y4 = self.c.div_ceil(4);
        let vec4s = self.rows * y4;
        // Otherwise the last vec4 of a row holds channels beyond the slice, which must become zero padding.
        let aligned = self.first.is_multiple_of(4) && self.c.is_multiple_of(4);
        Program {
            wgsl: include_str!("../../shaders/slice.wgsl"),
            constants: vec![("ALIGNED", aligned.into())],
            params: vec![
                Param::size("vec4s", vec4s),
                Param::size("x4", self.channels.div_ceil(4)),
                Param::size("y4", y4),
                Param::size("first", self.first),
                Param::size("c", self.c),
                Param::F("scale", self.scale),
            ],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(self.rows * self.c, 1)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(1)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("slice reads one operand") };
        let mut y = vec![0.0; self.rows * self.c];
        for row in 0..self.rows {
            for c in 0..self.c {
                y[row * self.c + c] = f64::from(self.scale) * x[row * self.channels + self.first + c];
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [y]) = (inputs, outputs) else { panic!("slice has two operands") };
        let rows = rows_per_task(self.channels);
        y.par_chunks_mut(rows * self.c).zip(x.par_chunks(rows * self.channels)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(self.channels)) {
                y.iter_mut().zip(&x[self.first..]).for_each(|(y, x)| *y = self.scale * x);
            }
        });
    }
}

fn cases() -> Vec<Case> {
    let case = |rows, channels, first, c, scale| Case::new(Slice { rows, channels, first, c, scale });
    vec![
        case(1, 1, 0, 1, 1.0),
        case(7, 16, 0, 8, 0.5),
        case(7, 16, 8, 8, -1.5),
        case(13, 9, 2, 5, 1.0),
        case(11, 6, 4, 2, 3.0),
        case(5, 7, 0, 7, 1.0),
        case(9, 12, 4, 3, 0.182_15),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(63, 5, 1, 4, 1.0),
        case(32, 11, 3, 8, 1.0),
        case(65, 4, 3, 1, 1.0),
        case(1031, 37, 5, 17, 0.25).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The mean of a 512x512 picture's latent.
    vec![Case::new(Slice { rows: 4096, channels: 16, first: 0, c: 8, scale: 0.5 })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, first, c, beyond) = (draw.size(GROUP), draw.of(&[0, 4, 1, 7]), draw.channels(), draw.of(&[0, 4, 1, 6]));
    Case::new(Slice { rows, channels: first + c + beyond, first, c, scale: draw.of(&[1.0, -0.5]) })
}

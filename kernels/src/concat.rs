//! `y = [a | b]` along the channels: the skip connections of the UNet's upward path.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `a` | `[rows, a_channels]` | |
//! | `b` | `[rows, b_channels]` | |
//! | `y` | `[rows, a_channels + b_channels]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) of `y` each. If `a_channels` is a multiple of four, as
//!   always in the model, the four channels are one vec4 of `a` or of `b`; otherwise they are gathered one by one.
//! * CPU: row by row, in tasks of about 64 KiB.
//!
//! Consumers whose prologue joins two tensors (`joined`) make this step unnecessary.

use crate::cpu::rows_per_task;
use crate::draw::Draw;
use crate::fold::{OperandSource, PrologueOffer, PrologueOp};
use crate::kernel::{Case, Cost, Family, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse};
use crate::names;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Concatenation of two tensors along their channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// Rows of all three tensors: pixels or tokens of all images.
    pub rows: usize,
    /// Channels of `a`, which come first in `y`.
    pub a_channels: usize,
    /// Channels of `b`, which come last in `y`.
    pub b_channels: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "concat",
    summary: "`[a | b]` along the channels",
    cases,
    model_shapes,
    random,
    parse: parse::<Concat>,
};

impl Concat {
    /// Returns the number of channels of `y`.
    fn channels(&self) -> usize {
        self.a_channels + self.b_channels
    }
}

impl Kernel for Concat {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("a", [self.rows, self.a_channels]),
            Operand::read("b", [self.rows, self.b_channels]),
            Operand::write("y", [self.rows, self.channels()]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let y4 = self.channels().div_ceil(4);
        let vec4s = self.rows * y4;
        Program {
            wgsl: include_str!("../../shaders/concat.wgsl"),
            constants: vec![("ALIGNED", self.a_channels.is_multiple_of(4).into())],
            params: vec![
                Param::size("vec4s", vec4s),
                Param::size("y4", y4),
                Param::size("a_channels", self.a_channels),
                Param::size("b_channels", self.b_channels),
            ],
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
        let &[a, b] = inputs else { panic!("concat reads two operands") };
        let mut y = vec![0.0; self.rows * self.channels()];
        for row in 0..self.rows {
            for c in 0..self.a_channels {
                y[row * self.channels() + c] = a[row * self.a_channels + c];
            }
            for c in 0..self.b_channels {
                y[row * self.channels() + self.a_channels + c] = b[row * self.b_channels + c];
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[a, b], [y]) = (inputs, outputs) else { panic!("concat has three operands") };
        let rows = rows_per_task(self.channels());
        y.par_chunks_mut(rows * self.channels())
            .zip(a.par_chunks(rows * self.a_channels).zip(b.par_chunks(rows * self.b_channels)))
            .for_each(|(y, (a, b))| {
                let sources = a.chunks_exact(self.a_channels).zip(b.chunks_exact(self.b_channels));
                for (y, (a, b)) in y.chunks_exact_mut(self.channels()).zip(sources) {
                    y[..self.a_channels].copy_from_slice(a);
                    y[self.a_channels..].copy_from_slice(b);
                }
            });
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let (op, operands) =
            (PrologueOp::Concat { channels: self.b_channels }, vec![(names::X2, OperandSource::Folded("b"))]);
        Some(PrologueOffer { op, main: Some("a"), operands, remainder: None })
    }
}

fn cases() -> Vec<Case> {
    let case = |rows, a_channels, b_channels| Case::new(Concat { rows, a_channels, b_channels });
    vec![
        case(1, 1, 1),
        case(7, 4, 8),
        case(13, 8, 5),
        case(11, 3, 4),
        case(5, 6, 6),
        case(9, 1, 7),
        case(3, 13, 2),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(63, 2, 2),
        case(32, 3, 5),
        case(65, 1, 2),
        case(1031, 17, 31).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    vec![
        // up_blocks.0 at 32x32 and up_blocks.1 at 64x64.
        Case::new(Concat { rows: 1024, a_channels: 1024, b_channels: 640 }),
        Case::new(Concat { rows: 4096, a_channels: 640, b_channels: 320 }),
    ]
}

fn random(draw: &mut Draw<'_>) -> Case {
    Case::new(Concat { rows: draw.size(GROUP), a_channels: draw.channels(), b_channels: draw.channels() })
}

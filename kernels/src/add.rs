//! `y = a + b`, element by element: sums that no other kernel adds as it writes.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `a` | `[rows, c]` | |
//! | `b` | `[rows, c]` | |
//! | `y` | `[rows, c]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) each.
//! * CPU: tasks of 64 KiB.

use crate::cpu::rows_per_task;
use crate::draw::Draw;
use crate::fold::{EpilogueOffer, EpilogueOp};
use crate::kernel::{Case, Cost, Family, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse};
use crate::names;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Sum of two tensors of the same shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// Rows: pixels or tokens of all images.
    pub rows: usize,
    /// Channels.
    pub c: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family =
    Family { name: "add", summary: "`a + b`", cases, model_shapes, random, parse: parse::<Add> };

impl Kernel for Add {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("a", [self.rows, self.c]),
            Operand::read("b", [self.rows, self.c]),
            Operand::write("y", [self.rows, self.c]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let vec4s = self.rows * self.c.div_ceil(4);
        Program {
            wgsl: include_str!("../../shaders/add.wgsl"),
            constants: vec![],
            params: vec![Param::size("vec4s", vec4s)],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(self.rows * self.c, 1)
    }

    fn tolerance(&self) -> Tolerance {
        // One rounding, of the addition.
        Tolerance { absolute: 0.0, relative: f64::from(f32::EPSILON), rounding: 0.0 }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[a, b] = inputs else { panic!("add reads two operands") };
        vec![a.iter().zip(b).map(|(a, b)| a + b).collect()]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[a, b], [y]) = (inputs, outputs) else { panic!("add has three operands") };
        let len = rows_per_task(1);
        y.par_chunks_mut(len).zip(a.par_chunks(len).zip(b.par_chunks(len))).for_each(|(y, (a, b))| {
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
        });
    }

    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        let offer =
            |main, other| EpilogueOffer { op: EpilogueOp::AddResidual, main, operands: vec![(names::RESIDUAL, other)] };
        vec![offer("a", "b"), offer("b", "a")]
    }
}

fn cases() -> Vec<Case> {
    let case = |rows, c| Case::new(Add { rows, c });
    vec![
        case(1, 1),
        case(7, 6),
        case(13, 11),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(63, 4),
        case(32, 7),
        case(65, 3),
        case(1031, 17).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    vec![Case::new(Add { rows: 256, c: 1024 }), Case::new(Add { rows: 4096, c: 320 })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    Case::new(Add { rows: draw.size(GROUP), c: draw.channels() })
}

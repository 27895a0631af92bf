//! `y = x`, from f32 to the type in which the plan stores floats: where a sampler's state, always f32, enters a
//! network.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c]` | f32 |
//! | `y` | `[rows, c]` | written |
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) each. Where floats are stored as f32 it is a copy;
//!   values beyond the range of f16 saturate.
//! * CPU: a copy, in tasks of 64 KiB.

use crate::cpu::rows_per_task;
use crate::draw::Draw;
use crate::fold::{PrologueOffer, PrologueOp};
use crate::kernel::{
    Case, Cost, DType, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse,
};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Conversion of an f32 tensor to the stored type of floats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// Rows: pixels or tokens of all images.
    pub rows: usize,
    /// Channels.
    pub c: usize,
}

impl Cast {
    /// Name of the kernel.
    pub const NAME: &'static str = "cast";
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: Cast::NAME,
    summary: "f32 as the plan stores floats",
    cases,
    model_shapes,
    random,
    parse: parse::<Cast>,
};

impl Kernel for Cast {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read("x", [self.rows, self.c]).dtype(DType::F32), Operand::write("y", [self.rows, self.c])]
    }

    fn program(&self, _: &Variant) -> Program {
        let vec4s = self.rows * self.c.div_ceil(4);
        Program {
            wgsl: include_str!("../../shaders/cast.wgsl"),
            constants: vec![],
            params: vec![Param::size("vec4s", vec4s)],
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
        let &[x] = inputs else { panic!("cast reads one operand") };
        vec![x.to_vec()]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [y]) = (inputs, outputs) else { panic!("cast has two operands") };
        let len = rows_per_task(1);
        y.par_chunks_mut(len).zip(x.par_chunks(len)).for_each(|(y, x)| y.copy_from_slice(x));
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        Some(PrologueOffer { op: PrologueOp::CastF32, main: Some("x"), operands: Vec::new(), remainder: None })
    }
}

fn cases() -> Vec<Case> {
    let case = |rows, c| Case::new(Cast { rows, c });
    vec![
        case(1, 1),
        case(7, 6),
        case(13, 11),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(63, 4),
        case(32, 7),
        case(65, 3),
        // The most negative finite number of f16.
        case(9, 5).fill("x", Fill::Constant(-65_504.0)),
        case(1031, 17).integers(),
    ]
}

fn model_shapes() -> Vec<Case> {
    // The latent where it enters the UNet.
    vec![Case::new(Cast { rows: 4096, c: 8 })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    Case::new(Cast { rows: draw.size(GROUP), c: draw.channels() })
}

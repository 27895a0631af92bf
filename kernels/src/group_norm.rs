//! `y = activation(x * scale + offset)` with one scale and one offset per image and channel: the second half of a
//! GroupNorm (arXiv 1803.08494), as a step of its own where consumers do not normalise as they read.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c - joined]` | f32 if the prologue has `f32_input` |
//! | `x2` | `[rows, joined]` | last channels of the input, absent if `joined` is 0 |
//! | `norm` | `[images, 2, c]` | f32, scales then offsets, from `group_norm_scale` |
//! | `y` | `[rows, c]` | written |
//!
//! `rows` are the pixels of all images, equally many of each.
//!
//! * GPU: workgroups of 256 invocations, four channels (one vec4) each.
//! * CPU: tasks of about 64 KiB of rows, in loops that are vectorised for the processor.

use crate::cpu::Threads;
use crate::draw::Draw;
use crate::fold::{OperandSource, PrologueOffer, PrologueOp};
use crate::kernel::{
    Activation, Case, Cost, Family, Fill, Kernel, Operand, Param, Program, Tolerance, folded_grid, parse,
};
use crate::names;
use crate::prologue::{Norm, Prologue, PrologueInputs};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Invocations per workgroup.
const THREADS: usize = 256;

/// Application of a GroupNorm to one feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNorm {
    /// Rows: pixels of all images.
    pub rows: usize,
    /// Channels.
    pub c: usize,
    /// How `x` is read. Its `norm` is [`Norm::Channels`], which holds the images and the activation.
    #[serde(rename = "source")]
    pub prologue: Prologue,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "group_norm",
    summary: "`activation(x * scale + offset)` by scales and offsets of every channel",
    cases,
    model_shapes,
    random,
    parse: parse::<GroupNorm>,
};

impl GroupNorm {
    /// Returns the normalisation of `images` images of `positions` pixels each, with `c` channels.
    pub fn new(images: usize, positions: usize, c: usize, activation: Activation) -> Self {
        let norm = Norm::Channels { images, activation };
        Self { rows: images * positions, c, prologue: Prologue { norm, ..Prologue::default() } }
    }
}

impl Kernel for GroupNorm {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        match self.prologue.norm {
            Norm::Channels { .. } => self.prologue.refusal(self.rows, self.c),
            Norm::None | Norm::Rows { .. } => Some("`norm` must be `channels`"),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let [x2, .., norm] = self.prologue.operands(&[self.rows], self.c);
        vec![self.prologue.x(&[self.rows], self.c), x2, norm, Operand::write("y", [self.rows, self.c])]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        let mut params = vec![Param::size("rows", self.rows), Param::size("c4", c4)];
        params.extend(self.prologue.params(self.rows, self.c));
        Program {
            wgsl: include_str!("../../shaders/group_norm.wgsl"),
            constants: [&self.prologue.constants(false)[..], &[(names::IN_PLACE, 0)]].concat(),
            params,
            grid: folded_grid((self.rows * c4).div_ceil(THREADS)),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(self.rows * self.c, 2)
    }

    fn tolerance(&self) -> Tolerance {
        // Two roundings, and those of the activation.
        Tolerance::f32_sum(4)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, x2, norm] = inputs else { panic!("group_norm reads three operands") };
        vec![self.prologue.reference(self.c, PrologueInputs { x, x2, norm, ..Default::default() })]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, x2, norm], [y]) = (inputs, outputs) else { panic!("group_norm has four operands") };
        let inputs = PrologueInputs { x, x2, norm, ..Default::default() };
        self.prologue.rows(self.rows, self.c, inputs).make_ready(0, y, Threads::All);
    }

    fn in_place(&self) -> Option<&'static str> {
        (self.prologue.joined == 0 && !self.prologue.f32_input).then_some(names::X)
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let (op, operands) =
            (PrologueOp::Normalise(self.prologue.norm), vec![(names::NORM, OperandSource::Folded("norm"))]);
        let plain = self.prologue.joined == 0 && !self.prologue.f32_input;
        plain.then(|| PrologueOffer { op, main: Some("x"), operands, remainder: None })
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.c, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }
}

fn cases() -> Vec<Case> {
    let norm = |n, positions, c| GroupNorm::new(n, positions, c, Activation::None);
    let reading = |norm: GroupNorm, joined, f32_input| GroupNorm {
        prologue: Prologue { joined, f32_input, ..norm.prologue },
        ..norm
    };
    let mut cases = vec![
        Case::new(norm(1, 1, 1)),
        Case::new(norm(2, 7, 5)),
        Case::new(norm(2, 19, 9)).integers(),
        Case::new(norm(2, 5, 320)),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more; more than one task of the CPU form.
        Case::new(norm(1, 85, 12)),
        Case::new(norm(1, 128, 8)),
        Case::new(norm(1, 257, 4)),
        Case::new(norm(2, 1401, 15)),
        // Values far from zero.
        Case::new(norm(2, 31, 20)).fill("x", Fill::Normal(1000.0, 1.0)),
        // An input of two tensors, then an f32 input.
        Case::new(reading(norm(2, 9, 23), 7, false)).integers(),
        Case::new(reading(norm(1, 33, 64), 40, false)),
        Case::new(reading(norm(2, 9, 10), 0, true)),
    ];
    let activated = |activation| Case::new(GroupNorm::new(2, 9, 14, activation)).fill("norm", Fill::Normal(-1.0, 4.0));
    cases.extend(Activation::ALL.map(activated));
    cases
}

fn model_shapes() -> Vec<Case> {
    // Norms before 3x3 convolutions of the UNet and of the decoder.
    let shapes = [(64, 320), (64, 256), (128, 256), (256, 128), (512, 64)];
    let norm = |(size, c): (usize, usize)| Case::new(GroupNorm::new(1, size * size, c, Activation::Silu));
    shapes.into_iter().map(norm).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (images, positions, c) = (draw.of(&[1, 2]), draw.size(THREADS), draw.channels());
    let activation = draw.of(&Activation::ALL);
    let prologue = Prologue::random(draw, c, &[Norm::Channels { images, activation }]);
    Case::new(GroupNorm { rows: images * positions, c, prologue })
}

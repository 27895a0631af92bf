//! `y = activation(x * scale + offset)` with one scale and one offset per image and channel: the second half of a
//! GroupNorm (arXiv 1803.08494), as a step of its own where consumers do not normalise as they read.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[rows, c - joined]` | f32 if the prologue has `f32_input` |
//! | `x2` | `[rows, joined]` | last channels of the input, absent if `joined` is 0 |
//! | `norm` | `[images, 2, before + c + after]` | f32, scales then offsets, from `group_norm_scale` |
//! | `y` | `[rows, c]` | written |
//!
//! `rows` are the pixels of all images, equally many of each. `before` and `after` count the channels of `norm` that are
//! not those of `x`: a concatenation of two maps is normalised by two steps, each in place of one of them.
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
    /// Channels of `norm` before those of `x`, a multiple of four.
    #[serde(default)]
    pub before: usize,
    /// Channels of `norm` after those of `x`, which are a multiple of four then.
    #[serde(default)]
    pub after: usize,
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
        Self { rows: images * positions, c, prologue: Prologue { norm, ..Prologue::default() }, before: 0, after: 0 }
    }

    /// Returns the number of channels of `norm`.
    fn norm_channels(&self) -> usize {
        self.before.saturating_add(self.c).saturating_add(self.after)
    }

    /// Whether no vec4 of `norm` has channels of `x` and others, whose values would come into the padding.
    fn is_aligned(&self) -> bool {
        self.before.is_multiple_of(4) && (self.after == 0 || self.c.is_multiple_of(4))
    }

    /// Whether `x` has all channels of `norm`.
    fn is_whole(&self) -> bool {
        (self.before, self.after) == (0, 0)
    }
}

impl Kernel for GroupNorm {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        match self.prologue.norm {
            Norm::Channels { .. } if !self.is_aligned() => {
                Some("`before`, and `c` where channels come `after` it, must be multiples of four")
            }
            Norm::Channels { .. } => self.prologue.refusal(self.rows, self.c),
            Norm::None | Norm::Rows { .. } => Some("`norm` must be `channels`"),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let [x2, .., mut norm] = self.prologue.operands(&[self.rows], self.c);
        norm.shape[2] = self.norm_channels();
        vec![self.prologue.x(&[self.rows], self.c), x2, norm, Operand::write("y", [self.rows, self.c])]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        let mut params = vec![Param::size("rows", self.rows), Param::size("c4", c4)];
        params.extend(self.prologue.params(self.rows, self.c));
        params.push(Param::size("before4", self.before / 4));
        params.push(Param::size("norm4", self.norm_channels().div_ceil(4)));
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
        let mut own = Vec::new();
        for row in 0..norm.len() / self.norm_channels() {
            for c in 0..self.c {
                own.push(norm[row * self.norm_channels() + self.before + c]);
            }
        }
        vec![self.prologue.reference(self.c, PrologueInputs { x, x2, norm: &own, ..Default::default() })]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, x2, norm], [y]) = (inputs, outputs) else { panic!("group_norm has four operands") };
        let parts = norm.chunks_exact(self.norm_channels()).flat_map(|all| &all[self.before..][..self.c]);
        let own: Vec<f32> = parts.copied().collect();
        let inputs = PrologueInputs { x, x2, norm: &own, ..Default::default() };
        self.prologue.rows(self.rows, self.c, inputs).make_ready(0, y, Threads::All);
    }

    fn in_place(&self) -> Option<&'static str> {
        (self.prologue.joined == 0 && !self.prologue.f32_input).then_some(names::X)
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let (op, operands) =
            (PrologueOp::Normalise(self.prologue.norm), vec![(names::NORM, OperandSource::Folded("norm"))]);
        let plain = self.prologue.joined == 0 && !self.prologue.f32_input && self.is_whole();
        plain.then(|| PrologueOffer { op, main: Some("x"), operands, remainder: None })
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let prologue = (operand == names::X).then(|| self.prologue.with(self.c, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }

    fn by_source(&self) -> Option<[Box<dyn Kernel>; 2]> {
        let Prologue { joined, .. } = self.prologue;
        let own = |c, before, after| {
            let prologue = Prologue { joined: 0, ..self.prologue.clone() };
            Box::new(Self { c, prologue, before: self.before + before, after: self.after + after, ..*self })
        };
        (joined > 0 && !self.prologue.f32_input)
            .then(|| [own(self.c - joined, 0, joined) as Box<dyn Kernel>, own(joined, self.c - joined, 0)])
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
        // A part of the channels of the norm: the first, the last, some in between.
        Case::new(GroupNorm { after: 7, ..norm(2, 9, 16) }).integers(),
        Case::new(GroupNorm { before: 16, ..norm(2, 9, 7) }),
        Case::new(GroupNorm { before: 4, after: 2, ..norm(1, 33, 12) }),
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
    let norm = |(size, c): (usize, usize)| GroupNorm::new(1, size * size, c, Activation::Silu);
    // Both halves of the UNet's largest concatenation.
    let halves = [(0, 640, 320), (640, 320, 0)].map(|(before, c, after)| GroupNorm { before, after, ..norm((64, c)) });
    shapes.into_iter().map(norm).chain(halves).map(Case::new).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (images, positions, c) = (draw.of(&[1, 2]), draw.size(THREADS), draw.channels());
    let activation = draw.of(&Activation::ALL);
    let prologue = Prologue::random(draw, c, &[Norm::Channels { images, activation }]);
    let (before, after) = (draw.of(&[0, 4, 64]), if c.is_multiple_of(4) { draw.of(&[0, 3]) } else { 0 });
    Case::new(GroupNorm { rows: images * positions, c, prologue, before, after })
}

//! `y[n, i] = token[ids[n, i]] + position[i]`: the first step of the text encoder (docs/model.md, section 3).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `ids` | `[n, l]` | u32 |
//! | `token` | `[vocab - rest, c]` | first rows of the token table |
//! | `token_rest` | `[rest, c]` | last rows of the token table; absent if `rest` is 0 |
//! | `position` | `[positions, c]` | |
//! | `y` | `[n, l, c]` | written |
//!
//! The token table may come in two parts because CLIP's, in f32, is larger than the largest binding of many GPUs. An id
//! beyond the vocabulary counts as the last id, so that no form reads outside the table.
//!
//! * GPU: workgroups of 64 invocations, four channels (one vec4) of a token each.
//! * CPU: one thread, token by token.

use crate::draw::Draw;
use crate::kernel::{
    Case, Cost, DType, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, elements, grid_of, parse,
};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Embedding of `n` texts of `l` tokens each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Texts.
    pub n: usize,
    /// Tokens of a text, at most `positions`.
    pub l: usize,
    /// Rows of the token table, both parts together.
    pub vocab: usize,
    /// Last rows of the token table that form the operand `token_rest`, fewer than `vocab`.
    #[serde(default)]
    pub rest: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Channels.
    pub c: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "embedding",
    summary: "`token[id] + position[i]`, the entry of the text encoder",
    cases,
    model_shapes,
    random,
    parse: parse::<Embedding>,
};

impl Kernel for Embedding {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        if self.l > self.positions {
            return Some("`l` must be at most `positions`");
        }
        (self.rest >= self.vocab).then_some("`rest` must be less than `vocab`")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("ids", [self.n, self.l]).dtype(DType::U32),
            Operand::read("token", [self.vocab - self.rest, self.c]),
            Operand::read("token_rest", [self.rest, self.c]).optional(self.rest > 0),
            Operand::read("position", [self.positions, self.c]),
            Operand::write("y", [self.n, self.l, self.c]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        let vec4s = elements(&[self.n, self.l, c4]);
        Program {
            wgsl: include_str!("../../shaders/embedding.wgsl"),
            constants: vec![("HAS_REST", (self.rest > 0).into())],
            params: vec![
                Param::size("vec4s", vec4s),
                Param::size("l", self.l),
                Param::size("c4", c4),
                Param::size("last_id", self.vocab - 1),
                Param::size("first_rows", self.vocab - self.rest),
            ],
            grid: grid_of(vec4s),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(elements(&[self.n, self.l, self.c]), 1)
    }

    fn tolerance(&self) -> Tolerance {
        // One rounding, of the addition.
        Tolerance { absolute: 0.0, relative: f64::from(f32::EPSILON), rounding: 0.0 }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[ids, token, rest, position] = inputs else { panic!("embedding reads four operands") };
        let token = [token, rest].concat();
        let mut y = vec![0.0; self.n * self.l * self.c];
        for n in 0..self.n {
            for i in 0..self.l {
                let id = (ids[n * self.l + i] as usize).min(self.vocab - 1);
                for c in 0..self.c {
                    y[(n * self.l + i) * self.c + c] = token[id * self.c + c] + position[i * self.c + c];
                }
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[ids, token, rest, position], [y]) = (inputs, outputs) else { panic!("embedding has five operands") };
        let first_rows = self.vocab - self.rest;
        let ids: &[u32] = bytemuck::cast_slice(ids);
        for (row, (y, &id)) in y.chunks_exact_mut(self.c).zip(ids).enumerate() {
            let id = (id as usize).min(self.vocab - 1);
            let token = if id < first_rows { &token[id * self.c..] } else { &rest[(id - first_rows) * self.c..] };
            let position = &position[row % self.l * self.c..];
            y.iter_mut().zip(token).zip(position).for_each(|((y, t), p)| *y = t + p);
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |n, l, vocab: u32, positions, c| {
        Case::new(Embedding { n, l, vocab: vocab as usize, rest: 0, positions, c }).fill("ids", Fill::Below(vocab))
    };
    let split = |n, l, vocab: u32, rest, c| {
        let kernel = Embedding { n, l, vocab: vocab as usize, rest, positions: l, c };
        Case::new(kernel).fill("ids", Fill::Below(2 * vocab))
    };
    vec![
        case(1, 1, 1, 1, 1),
        case(1, 7, 13, 7, 9),
        case(2, 5, 11, 8, 6),
        case(3, 77, 101, 77, 4),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(1, 63, 7, 64, 4),
        case(2, 32, 7, 32, 3),
        case(1, 65, 7, 65, 4),
        // About half of the ids are beyond the vocabulary.
        case(2, 19, 5, 23, 8).fill("ids", Fill::Below(10)),
        split(2, 37, 11, 4, 6),
        split(1, 40, 2, 1, 8),
    ]
}

fn model_shapes() -> Vec<Case> {
    let text = Embedding { n: 1, l: 77, vocab: 49_408, rest: 5_718, positions: 77, c: 768 };
    vec![Case::new(text).fill("ids", Fill::Below(49_408))]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (l, vocab) = (draw.size(GROUP), draw.of(&[1, 7, 40]));
    let positions = l + draw.of(&[0, 1, 5]);
    let rest = if draw.flip() { vocab as usize / 3 } else { 0 };
    let kernel = Embedding { n: draw.of(&[1, 2, 3]), l, vocab: vocab as usize, rest, positions, c: draw.channels() };
    Case::new(kernel).fill("ids", Fill::Below(vocab))
}

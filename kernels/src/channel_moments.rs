//! `moments = (mean, variance)` of every channel over every tile of 64 positions: the first half of a GroupNorm's
//! statistics, which `group_norm_scale` merges. Split like this, a large map keeps a GPU busy, and a convolution can
//! write the moments of its own output on the way out; the bits do not depend on the order in which tiles are done.
//!
//! `x [n, positions, c]`, or of two tensors side by side (`prologue`); `moments [n * tiles, 2, c]` in f32 with `tiles =
//! positions / 64`, rounded up. On the GPU a workgroup takes 64 channels of a tile (`shaders/common/tile_moments.wgsl`);
//! on the CPU a task takes a tile.

use crate::cpu::{Threads, with_simd};
use crate::draw::Draw;
use crate::fold::{EpilogueOffer, EpilogueOp, PrologueOp};
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, elements, parse};
use crate::names;
use crate::prologue::{Norm, Prologue, Rows};
use crate::tile::{TILE, WHOLE};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The moments of one feature map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelMoments {
    /// Images.
    pub n: usize,
    /// Pixels of one image.
    pub positions: usize,
    /// Channels.
    pub c: usize,
    /// How `x` is read: of one tensor or two, not normalised.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "channel_moments",
    summary: "mean and variance of every channel over every tile of 64 positions",
    cases,
    model_shapes,
    random,
    parse: parse::<ChannelMoments>,
};

/// The operand that holds the moments of `n` images: whoever writes a map can write it besides.
pub(crate) fn operand(n: usize, positions: usize, c: usize) -> Operand {
    Operand::write(names::MOMENTS, [n * positions.div_ceil(TILE), 2, c]).dtype(DType::F32)
}

/// Whether tiles of 64 rows, counted through all images, are tiles of one image each.
pub(crate) fn tiles_fit(n: usize, positions: usize) -> bool {
    n == 1 || positions.is_multiple_of(TILE)
}

/// The moments of a map on the CPU.
pub(crate) fn write_all(n: usize, positions: usize, c: usize, x: &[f32], moments: &mut [f32]) {
    let prologue = Prologue::default();
    write_read(n, positions, &prologue.rows(n * positions, c, x, &[&[] as &[f32]; 5]), moments);
}

/// The moments of a map that is read like that.
fn write_read(n: usize, positions: usize, x: &Rows<'_>, moments: &mut [f32]) {
    let (tiles, c) = (positions.div_ceil(TILE), moments.len() / (2 * n * positions.div_ceil(TILE)));
    let each = moments.par_chunks_exact_mut(2 * c).enumerate();
    each.for_each_init(Vec::new, |scratch, (tile, moments)| {
        let first = tile / tiles * positions + tile % tiles * TILE;
        let count = TILE.min(positions - tile % tiles * TILE);
        let rows = match x.plain() {
            Some(x) => &x[first * c..][..count * c],
            None => {
                scratch.resize(count * c, 0.0);
                x.make_ready(first, scratch, Threads::One);
                &scratch[..]
            }
        };
        write_tiles(c, rows, moments);
    });
}

/// The moments of some tiles, `rows` and `moments` from the first of them on; the last one may be cut short.
pub(crate) fn write_tiles(c: usize, rows: &[f32], moments: &mut [f32]) {
    with_simd(
        #[inline(always)]
        || {
            for (rows, moments) in rows.chunks(TILE * c).zip(moments.chunks_exact_mut(2 * c)) {
                write_tile(rows, moments);
            }
        },
    );
}

/// The moments of a tile: means as differences from its first position, then the squares around them.
#[inline(always)]
fn write_tile(rows: &[f32], moments: &mut [f32]) {
    let c = moments.len() / 2;
    let count = (rows.len() / c) as f32;
    let origin = &rows[..c];
    moments.fill(0.0);
    let (mean, variance) = moments.split_at_mut(c);
    for row in rows.chunks_exact(c).skip(1) {
        mean.iter_mut().zip(row.iter().zip(origin)).for_each(|(sum, (x, origin))| *sum += x - origin);
    }
    mean.iter_mut().zip(origin).for_each(|(mean, origin)| *mean = origin + *mean / count);
    for row in rows.chunks_exact(c) {
        variance.iter_mut().zip(row.iter().zip(&*mean)).for_each(|(sum, (x, mean))| *sum += (x - mean) * (x - mean));
    }
    variance.iter_mut().for_each(|sum| *sum /= count);
}

/// The moments of a map in f64, by the definition.
pub(crate) fn reference(n: usize, positions: usize, c: usize, x: &[f64]) -> Vec<f64> {
    let mut moments = Vec::new();
    for image in 0..n {
        for first in (0..positions).step_by(TILE) {
            let end = positions.min(first + TILE);
            let value = |position: usize, channel: usize| x[(image * positions + position) * c + channel];
            let mean = |channel: usize| {
                (first..end).map(|position| value(position, channel)).sum::<f64>() / (end - first) as f64
            };
            let variance = |channel: usize| {
                let mean = mean(channel);
                (first..end).map(|position| (value(position, channel) - mean).powi(2)).sum::<f64>()
                    / (end - first) as f64
            };
            moments.extend((0..c).map(mean));
            moments.extend((0..c).map(variance));
        }
    }
    moments
}

impl Kernel for ChannelMoments {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        match self.prologue.norm {
            Norm::None => self.prologue.refusal(self.n * self.positions, self.c),
            _ => Some("`norm` must be `none`"),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let [x2, ..] = self.prologue.operands(&[self.n, self.positions], self.c);
        let x = self.prologue.x(&[self.n, self.positions], self.c);
        vec![x, x2, operand(self.n, self.positions, self.c)]
    }

    fn program(&self, _: &Variant) -> Program {
        let tiles = self.positions.div_ceil(TILE);
        let c4 = self.c.div_ceil(4);
        Program {
            wgsl: include_str!("../../shaders/channel_moments.wgsl"),
            constants: [&self.prologue.constants()[..], &WHOLE.constants()].concat(),
            params: vec![
                Param::size("tiles", self.n * tiles),
                Param::size("tiles_per_image", tiles),
                Param::size("c4", c4),
                Param::size("first4", self.prologue.first(self.c).div_ceil(4)),
                Param::size("positions", self.positions),
            ],
            grid: WHOLE.grid(self.n * tiles * TILE, self.c),
        }
    }

    fn cost(&self) -> Cost {
        // The difference, the sum, the product and the sum of products.
        Cost::elementwise(elements(&[self.n, self.positions, self.c]), 4)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(TILE)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, x2] = inputs else { panic!("channel_moments reads two operands") };
        let x = self.prologue.reference(self.c, x, &[x2, &[], &[], &[], &[]]);
        vec![reference(self.n, self.positions, self.c, &x)]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, x2], [moments]) = (inputs, outputs) else { panic!("channel_moments has three operands") };
        let x = self.prologue.rows(self.n * self.positions, self.c, x, &[x2, &[], &[], &[], &[]]);
        write_read(self.n, self.positions, &x, moments);
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        let joins = operand == names::X && matches!(op, PrologueOp::Concat { .. });
        let prologue = joins.then(|| self.prologue.with(self.c, op))??;
        Some(Box::new(Self { prologue, ..self.clone() }))
    }

    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        let op = EpilogueOp::Moments { images: self.n };
        let offer = EpilogueOffer { op, main: "x", operands: Vec::new() };
        if self.prologue == Prologue::default() { vec![offer] } else { Vec::new() }
    }
}

fn cases() -> Vec<Case> {
    let moments = |n, positions, c, joined| ChannelMoments {
        n,
        positions,
        c,
        prologue: Prologue { joined, ..Prologue::default() },
    };
    vec![
        Case::new(moments(1, 1, 1, 0)),
        // A tile less one position, a tile, one more; the same of the 64 channels of a workgroup.
        Case::new(moments(1, 63, 65, 0)),
        Case::new(moments(1, 64, 64, 0)),
        Case::new(moments(2, 65, 63, 0)),
        Case::new(moments(3, 7, 5, 0)),
        Case::new(moments(1, 257, 6, 0)),
        Case::new(moments(2, 70, 23, 7)),
        Case::new(moments(1, 20, 132, 64)),
        Case::new(ChannelMoments {
            prologue: Prologue { f32_input: true, ..Prologue::default() },
            ..moments(2, 70, 9, 0)
        }),
        // Far from zero and constant: what sums of squares do not survive.
        Case::new(moments(1, 100, 9, 0)).fill("x", Fill::Normal(1000.0, 1.0)),
        Case::new(moments(1, 100, 9, 0)).fill("x", Fill::Constant(-1000.1)),
        // More tiles than one axis of the grid may have.
        Case::new(moments(65_537, 1, 1, 0)),
        // Whole numbers of a power of two of positions.
        Case::new(moments(2, 128, 10, 0)).fill("x", Fill::Integers),
    ]
}

fn model_shapes() -> Vec<Case> {
    let moments = |size: usize, c| Case::new(ChannelMoments { n: 1, positions: size * size, c, ..Default::default() });
    let joined = |size: usize, c, joined| {
        let prologue = Prologue { joined, ..Prologue::default() };
        Case::new(ChannelMoments { n: 1, positions: size * size, c, prologue })
    };
    let maps = [(64, 320), (16, 1024), (64, 256), (256, 128), (512, 128), (512, 64)];
    let mut all: Vec<Case> = maps.into_iter().map(|(size, c)| moments(size, c)).collect();
    all.extend([joined(64, 960, 320), joined(64, 640, 320)]);
    all
}

fn random(draw: &mut Draw<'_>) -> Case {
    let (n, positions, c) = (draw.of(&[1, 2]), draw.size(TILE), draw.channels());
    let mean = draw.of(&[0.0, 300.0]);
    let kernel = ChannelMoments { n, positions, c, prologue: Prologue::random(draw, c, &[Norm::None]) };
    Case::new(kernel).fill("x", Fill::Normal(mean, 1.0))
}

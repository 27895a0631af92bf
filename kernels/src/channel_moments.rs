//! `moments = (mean, variance)` of every channel over every tile of 64 positions: the first half of the statistics of a
//! GroupNorm (arXiv 1803.08494), which `group_norm_scale` merges.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, positions, c - joined]` | f32 if the prologue has `f32_input` |
//! | `x2` | `[n, positions, joined]` | last channels of the input, absent if `joined` is 0 |
//! | `moments` | `[n * tiles, 2, c]` | f32, written: means, then biased variances |
//!
//! An image has `tiles = ceil(positions / 64)` tiles, the last of which may be shorter. Statistics per tile keep a GPU
//! busy on a large map, and a convolution can write the moments of its own output in its epilogue. The bits of the
//! result do not depend on the order in which tiles are computed.
//!
//! * GPU: one workgroup of 256 invocations per tile and 64 channels (`shaders/common/tile_moments.wgsl`).
//! * CPU: one task per tile, in loops that are vectorised for the processor.

use crate::cpu::{Threads, with_simd};
use crate::draw::Draw;
use crate::fold::{EpilogueOffer, EpilogueOp, PrologueOp};
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, elements, parse};
use crate::names;
use crate::prologue::{Norm, Prologue, PrologueInputs, Rows};
use crate::tile::{TILE, UNSTAGED};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Channel moments of one feature map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelMoments {
    /// Images.
    pub n: usize,
    /// Pixels of one image.
    pub positions: usize,
    /// Channels.
    pub c: usize,
    /// How `x` is read: as one tensor or two, not normalised.
    #[serde(default, rename = "source")]
    pub prologue: Prologue,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "channel_moments",
    summary: "mean and variance of every channel over every tile of 64 positions",
    cases,
    model_shapes,
    random,
    parse: parse::<ChannelMoments>,
};

/// Returns the operand `moments` for `n` images. Kernels that write a map can write it as a second output.
pub(crate) fn operand(n: usize, positions: usize, c: usize) -> Operand {
    Operand::write(names::MOMENTS, [n * positions.div_ceil(TILE), 2, c]).dtype(DType::F32)
}

/// Returns whether tiles of 64 consecutive rows of all images never cross from one image into the next.
pub(crate) fn tiles_fit(n: usize, positions: usize) -> bool {
    n == 1 || positions.is_multiple_of(TILE)
}

/// Computes the moments of the map `x [n, positions, c]` on the CPU.
pub(crate) fn write_all(n: usize, positions: usize, c: usize, x: &[f32], moments: &mut [f32]) {
    let prologue = Prologue::default();
    write_read(n, positions, &prologue.rows(n * positions, c, PrologueInputs { x, ..Default::default() }), moments);
}

/// Computes the moments of a map that is read through a prologue.
fn write_read(n: usize, positions: usize, x: &Rows<'_>, moments: &mut [f32]) {
    let (tiles, c) = (positions.div_ceil(TILE), moments.len() / (2 * n * positions.div_ceil(TILE)));
    let each = moments.par_chunks_exact_mut(2 * c).enumerate();
    each.for_each_init(Vec::new, |scratch, (tile, moments)| {
        let first = tile / tiles * positions + tile % tiles * TILE;
        let count = TILE.min(positions - tile % tiles * TILE);
        write_tiles(c, x.ready(first..first + count, scratch, Threads::One), moments);
    });
}

/// Computes the moments of consecutive tiles. `rows` and `moments` begin at the first of them; the last may be shorter.
pub(crate) fn write_tiles(c: usize, rows: &[f32], moments: &mut [f32]) {
    with_simd(
        #[inline(always)]
        || {
            for (rows, moments) in rows.chunks(TILE * c).zip(moments.chunks_exact_mut(2 * c)) {
                write_tile(rows.chunks_exact(c), moments);
            }
        },
    );
}

/// Computes the moments of whole tiles of the rows of `x` in another order, which `row_at` gives: position `i` of the
/// first tile is row `row_at(i)`, and the next tiles follow.
pub(crate) fn write_reordered(c: usize, x: &[f32], row_at: impl Fn(usize) -> usize, moments: &mut [f32]) {
    with_simd(
        #[inline(always)]
        || {
            for (tile, moments) in moments.chunks_exact_mut(2 * c).enumerate() {
                write_tile((0..TILE).map(|i| &x[row_at(tile * TILE + i) * c..][..c]), moments);
            }
        },
    );
}

/// Computes the moments of one tile: means of the differences from its first position, then squares around the means.
#[inline(always)]
fn write_tile<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]> + Clone, moments: &mut [f32]) {
    let c = moments.len() / 2;
    let count = rows.len() as f32;
    let Some(origin) = rows.clone().next() else { return };
    moments.fill(0.0);
    let (mean, variance) = moments.split_at_mut(c);
    for row in rows.clone().skip(1) {
        mean.iter_mut().zip(row.iter().zip(origin)).for_each(|(sum, (x, origin))| *sum += x - origin);
    }
    mean.iter_mut().zip(origin).for_each(|(mean, origin)| *mean = origin + *mean / count);
    for row in rows {
        variance.iter_mut().zip(row.iter().zip(&*mean)).for_each(|(sum, (x, mean))| *sum += (x - mean) * (x - mean));
    }
    variance.iter_mut().for_each(|sum| *sum /= count);
}

/// Returns the moments of a map in f64, by their definition.
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
            constants: [&self.prologue.constants(false)[..], &UNSTAGED.constants()].concat(),
            params: vec![
                Param::size("tiles", self.n * tiles),
                Param::size("tiles_per_image", tiles),
                Param::size("c4", c4),
                Param::size("first4", self.prologue.first(self.c).div_ceil(4)),
                Param::size("positions", self.positions),
            ],
            grid: UNSTAGED.grid(self.n * tiles * TILE, self.c),
        }
    }

    fn cost(&self) -> Cost {
        // A difference, a sum, a square and a sum of squares.
        Cost::elementwise(elements(&[self.n, self.positions, self.c]), 4)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(TILE)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, x2] = inputs else { panic!("channel_moments reads two operands") };
        let x = self.prologue.reference(self.c, PrologueInputs { x, x2, ..Default::default() });
        vec![reference(self.n, self.positions, self.c, &x)]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, x2], [moments]) = (inputs, outputs) else { panic!("channel_moments has three operands") };
        let inputs = PrologueInputs { x, x2, ..Default::default() };
        let x = self.prologue.rows(self.n * self.positions, self.c, inputs);
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
        // One position less than a tile, exactly one tile, one position more; likewise for the 64 channels of a
        // workgroup.
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
        // Values far from zero, and constant values: plain sums of squares would cancel.
        Case::new(moments(1, 100, 9, 0)).fill("x", Fill::Normal(1000.0, 1.0)),
        Case::new(moments(1, 100, 9, 0)).fill("x", Fill::Constant(-1000.1)),
        // More tiles than workgroups along one axis of the grid.
        Case::new(moments(65_537, 1, 1, 0)),
        // Whole numbers, and a power of two of positions: exact.
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

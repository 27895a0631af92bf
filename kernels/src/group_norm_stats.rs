//! `stats = (mean, 1 / sqrt(variance + eps))` of every group of channels of every image: the statistics of a GroupNorm
//! (arXiv 1803.08494). The variance is the biased one.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, positions, c]` | |
//! | `stats` | `[n, groups, 2]` | f32, written: mean, reciprocal deviation |
//!
//! * GPU: one workgroup of 256 invocations per group and image. Every invocation sums differences from the first value
//!   that it reads; the 256 triples (count, mean, squares) are then merged pairwise (Chan, Golub and LeVeque 1979).
//!   Nothing cancels when values are far from zero.
//! * CPU: tasks of 16 to 512 positions sum differences from their first position for every channel, and are merged in
//!   the same way, in f64.

use crate::channel_moments::ChannelMoments;
use crate::draw::Draw;
use crate::fold::{OperandSource, PrologueOffer, PrologueOp};
use crate::kernel::{
    Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, elements, folded_grid, parse,
};
use crate::names;
use crate::prologue::Prologue;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// GroupNorm statistics of one feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNormStats {
    /// Images.
    pub n: usize,
    /// Pixels of one image.
    pub positions: usize,
    /// Channels: a multiple of `groups`.
    pub c: usize,
    /// Number of groups of neighbouring channels.
    pub groups: usize,
    /// Epsilon, added to the variance.
    pub eps: f32,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "group_norm_stats",
    summary: "mean and reciprocal deviation of every group of channels",
    cases,
    model_shapes,
    random,
    parse: parse::<GroupNormStats>,
};

/// Moments of a set of values. Two of them merge into the moments of the union.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    /// Sum of squared differences from the mean.
    squares: f64,
}

impl Moments {
    /// Merges the moments of two sets of values (Chan, Golub and LeVeque 1979).
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = if count > 0.0 { other.count / count } else { 0.0 };
        Self {
            count,
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * self.count * share,
        }
    }
}

impl GroupNormStats {
    /// Returns the moments of every group over a block of positions `[positions, c]`, from sums of differences from the
    /// block's first position.
    fn block(&self, x: &[f32]) -> Vec<Moments> {
        let origin = &x[..self.c];
        let (mut sums, mut squares) = (vec![0.0_f32; self.c], vec![0.0_f32; self.c]);
        for row in x.chunks_exact(self.c) {
            for (((sum, square), x), origin) in sums.iter_mut().zip(&mut squares).zip(row).zip(origin) {
                let d = x - origin;
                *sum += d;
                *square += d * d;
            }
        }
        let count = (x.len() / self.c) as f64;
        let channel = |c: usize| {
            let shifted = f64::from(sums[c]) / count;
            let squares = f64::from(squares[c]) - shifted * shifted * count;
            Moments { count, mean: f64::from(origin[c]) + shifted, squares: squares.max(0.0) }
        };
        let per_group = self.c / self.groups;
        let group =
            |g: usize| (g * per_group..(g + 1) * per_group).map(channel).fold(Moments::default(), Moments::merge);
        (0..self.groups).map(group).collect()
    }
}

impl Kernel for GroupNormStats {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (self.groups == 0 || !self.c.is_multiple_of(self.groups)).then_some("`c` must be a multiple of `groups`")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.n, self.positions, self.c]),
            Operand::write("stats", [self.n, self.groups, 2]).dtype(DType::F32),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/group_norm_stats.wgsl"),
            constants: vec![],
            params: vec![
                Param::size("n", self.n),
                Param::size("positions", self.positions),
                Param::size("c4", self.c.div_ceil(4)),
                Param::size("groups", self.groups),
                Param::size("per_group", self.c / self.groups),
                Param::F("eps", self.eps),
            ],
            grid: folded_grid(self.n * self.groups),
        }
    }

    fn cost(&self) -> Cost {
        // A difference, a sum, a square and a sum of squares.
        Cost::elementwise(elements(&[self.n, self.positions, self.c]), 4)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.positions * (self.c / self.groups))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("group_norm_stats reads one operand") };
        let per_group = self.c / self.groups;
        let mut stats = Vec::with_capacity(self.n * self.groups * 2);
        for image in 0..self.n {
            for group in 0..self.groups {
                let mut values = Vec::with_capacity(self.positions * per_group);
                for position in 0..self.positions {
                    for c in group * per_group..(group + 1) * per_group {
                        values.push(x[(image * self.positions + position) * self.c + c]);
                    }
                }
                let count = values.len() as f64;
                let mean = values.iter().sum::<f64>() / count;
                let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
                stats.extend([mean, 1.0 / (variance + f64::from(self.eps)).sqrt()]);
            }
        }
        vec![stats]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [stats]) = (inputs, outputs) else { panic!("group_norm_stats has two operands") };
        // Short enough that the f32 sums of a block stay accurate, long enough to be a task.
        let block = (32_768 / self.c).clamp(16, 512) * self.c;
        let images = x.chunks_exact(self.positions * self.c).zip(stats.chunks_exact_mut(self.groups * 2));
        for (x, stats) in images {
            let blocks: Vec<Vec<Moments>> = x.par_chunks(block).map(|x| self.block(x)).collect();
            for (g, stats) in stats.chunks_exact_mut(2).enumerate() {
                let all = blocks.iter().map(|groups| groups[g]).fold(Moments::default(), Moments::merge);
                let variance = all.squares / all.count;
                stats[0] = all.mean as f32;
                stats[1] = (1.0 / (variance + f64::from(self.eps)).sqrt()) as f32;
            }
        }
    }

    fn prologue_offer(&self) -> Option<PrologueOffer> {
        let &Self { n, positions, c, eps, .. } = self;
        let rest = Box::new(ChannelMoments { n, positions, c, prologue: Prologue::default() });
        let operands = vec![(names::MOMENTS, OperandSource::Remainder)];
        Some(PrologueOffer { op: PrologueOp::MergeMoments { eps }, main: None, operands, remainder: Some(rest) })
    }
}

fn cases() -> Vec<Case> {
    let stats = |n, positions, c, groups| GroupNormStats { n, positions, c, groups, eps: 1e-5 };
    let unet = GroupNormStats { eps: 1e-6, ..stats(1, 100, 40, 4) };
    vec![
        Case::new(stats(1, 1, 1, 1)),
        // Groups of 1, 2, 3, 5, 6 and 10 channels begin and end at every place inside a vec4.
        Case::new(stats(2, 7, 5, 5)),
        Case::new(stats(1, 33, 64, 32)),
        Case::new(stats(2, 19, 9, 3)),
        Case::new(stats(1, 11, 15, 3)),
        Case::new(stats(2, 23, 18, 3)),
        Case::new(stats(2, 31, 320, 32)),
        // One position less than a workgroup reads at once, exactly as many, one more; more than one block of the CPU
        // form.
        Case::new(stats(1, 255, 4, 1)),
        Case::new(stats(1, 256, 8, 2)),
        Case::new(stats(1, 257, 12, 3)),
        Case::new(stats(2, 1201, 12, 2)),
        // Values far from zero, and constant values: plain sums of squares would cancel.
        Case::new(unet.clone()).fill("x", Fill::Normal(1000.0, 1.0)),
        Case::new(stats(2, 700, 20, 2)).fill("x", Fill::Normal(-300.0, 0.05)),
        Case::new(unet.clone()).fill("x", Fill::Normal(0.0, 1e-3)),
        Case::new(unet.clone()).fill("x", Fill::Constant(0.1)),
        Case::new(unet.clone()).fill("x", Fill::Constant(-1000.1)),
        Case::new(unet).fill("x", Fill::Constant(0.0)),
    ]
}

fn model_shapes() -> Vec<Case> {
    let stats = |eps| {
        move |(size, c): (usize, usize)| Case::new(GroupNormStats { n: 1, positions: size * size, c, groups: 32, eps })
    };
    let unet = [(64, 320), (64, 640), (64, 960), (32, 320), (32, 640), (32, 960), (32, 1664), (16, 640), (16, 1024)];
    let decoder = [(64, 256), (128, 256), (256, 256), (256, 128), (512, 128), (512, 64)];
    unet.into_iter().map(stats(1e-5)).chain(decoder.into_iter().map(stats(1e-6))).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let groups = draw.of(&[1, 2, 3, 8]);
    let c = groups * draw.of(&[1, 2, 3, 5, 10]);
    let (n, positions, eps) = (draw.of(&[1, 2]), draw.size(256), draw.of(&[1e-5, 1e-6]));
    let fill = draw.of(&[Fill::Normal(0.0, 1.0), Fill::Normal(1000.0, 1.0), Fill::Constant(0.1)]);
    Case::new(GroupNormStats { n, positions, c, groups, eps }).fill("x", fill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deviation_of_one_survives_a_mean_of_a_thousand() {
        let kernel = GroupNormStats { n: 1, positions: 4096, c: 2, groups: 1, eps: 0.0 };
        let x: Vec<f32> = (0..8192_u16).map(|i| if i % 2 == 0 { 999.0 } else { 1001.0 }).collect();
        let mut stats = [0.0; 2];
        kernel.cpu(&[&x], &mut [&mut stats]);
        assert_eq!(stats, [1000.0, 1.0]);
    }
}

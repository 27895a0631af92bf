//! `scale = rstd * weight` and `offset = bias - mean * scale` for every channel of every image: a GroupNorm (arXiv
//! 1803.08494) in the form in which consumers apply it as they read, `x * scale + offset`. PyTorch's own kernels do the
//! same.
//!
//! | operand | shape | |
//! |---|---|---|
//! | `stats` | `[n, groups, 2]` | f32: mean and `rstd` of every group; absent with `eps` |
//! | `moments` | `[n * tiles, 2, c]` | f32, from `channel_moments`; absent without `eps` |
//! | `weight` | `[c]` | |
//! | `bias` | `[c]` | |
//! | `norm` | `[n, 2, c]` | f32, written: scales, then offsets |
//!
//! Without `eps`, mean and `rstd` of a group are read from `stats`. With `eps`, they are merged from the means and
//! variances of its channels over tiles of 64 positions, `tiles = ceil(positions / 64)` per image: first the mean, then
//! the squares around it, so that nothing cancels when values are far from zero.
//!
//! * GPU: one workgroup of 256 invocations per group and image.
//! * CPU: one task per group and image, with sums in f64.

use crate::draw::Draw;
use crate::fold::PrologueOp;
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, folded_grid, parse};
use crate::names;
use crate::tile::TILE;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Invocations of a workgroup.
const THREADS: usize = 256;

/// Scales and offsets of one feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNormScale {
    /// Images.
    pub n: usize,
    /// Pixels of one image.
    pub positions: usize,
    /// Channels: a multiple of `groups`.
    pub c: usize,
    /// Number of groups of neighbouring channels.
    pub groups: usize,
    /// Epsilon, added to the variance that is merged from `moments`. `None` reads `stats`, which contain it already.
    #[serde(default)]
    pub eps: Option<f32>,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "group_norm_scale",
    summary: "scale and offset of every channel, from statistics or moments",
    cases,
    model_shapes,
    random,
    parse: parse::<GroupNormScale>,
};

impl GroupNormScale {
    /// Returns the number of moments that an invocation holds at a time: all of them, up to eight.
    fn at_once(&self) -> u32 {
        let each = self.tiles().saturating_mul(self.per_group()).div_ceil(THREADS);
        // Few different numbers, so that few programs are compiled.
        [1, 2, 4].into_iter().find(|&few| each <= few as usize).unwrap_or(8)
    }

    /// Returns the number of tiles of an image.
    fn tiles(&self) -> usize {
        self.positions.div_ceil(TILE)
    }

    /// Returns the number of channels of a group.
    fn per_group(&self) -> usize {
        self.c / self.groups
    }

    /// Merges mean and reciprocal deviation of a group from the moments of one image.
    fn merged(&self, group: usize, eps: f32, moments: &[f32]) -> (f64, f64) {
        let value = |at: usize| f64::from(moments[at]);
        let of_tile = |tile: usize| {
            let count = TILE.min(self.positions - tile * TILE) as f64;
            let channels = group * self.per_group()..(group + 1) * self.per_group();
            channels.map(move |c| (count, 2 * tile * self.c + c))
        };
        let entries = || (0..self.tiles()).flat_map(of_tile);
        let total = (self.positions * self.per_group()) as f64;
        let mean = entries().map(|(count, at)| count * value(at)).sum::<f64>() / total;
        let square = |(count, at): (f64, usize)| count * (value(at + self.c) + (value(at) - mean).powi(2));
        let variance = entries().map(square).sum::<f64>() / total;
        (mean, 1.0 / (variance + f64::from(eps)).sqrt())
    }
}

impl Kernel for GroupNormScale {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (self.groups == 0 || !self.c.is_multiple_of(self.groups)).then_some("`c` must be a multiple of `groups`")
    }

    fn operands(&self) -> Vec<Operand> {
        let merges = self.eps.is_some();
        let moments = [self.n * self.tiles(), 2, self.c];
        vec![
            Operand::read(names::STATS, [self.n, self.groups, 2]).dtype(DType::F32).optional(!merges),
            Operand::read(names::MOMENTS, moments).dtype(DType::F32).optional(merges),
            Operand::read("weight", [self.c]),
            Operand::read("bias", [self.c]),
            Operand::write("norm", [self.n, 2, self.c]).dtype(DType::F32),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/group_norm_scale.wgsl"),
            constants: vec![("FROM_MOMENTS", self.eps.is_some().into()), ("AT_ONCE", self.at_once())],
            params: vec![
                Param::size("n", self.n),
                Param::size("positions", self.positions),
                Param::size("tiles_per_image", self.tiles()),
                Param::size("c", self.c),
                Param::size("groups", self.groups),
                Param::size("per_group", self.per_group()),
                Param::F("eps", self.eps.unwrap_or(0.0)),
            ],
            grid: folded_grid(self.n * self.groups),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(self.n * self.c * if self.eps.is_some() { 6 * self.tiles() } else { 3 }, 1)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.tiles() * self.per_group())
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[stats, moments, weight, bias] = inputs else { panic!("group_norm_scale reads four operands") };
        let &Self { n, positions, c, groups, eps } = self;
        let (width, tiles) = (c / groups, positions.div_ceil(TILE));
        let mut norm = vec![0.0; n * 2 * c];
        for image in 0..n {
            for channel in 0..c {
                let group = channel / width;
                let given = 2 * (image * groups + group);
                let (mean, rstd) = match eps {
                    None => (stats[given], stats[given + 1]),
                    Some(eps) => {
                        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
                        for tile in 0..tiles {
                            let rows = TILE.min(positions - tile * TILE) as f64;
                            for other in group * width..(group + 1) * width {
                                count += rows;
                                sum += rows * moments[(image * tiles + tile) * 2 * c + other];
                            }
                        }
                        let mean = sum / count;
                        for tile in 0..tiles {
                            let rows = TILE.min(positions - tile * TILE) as f64;
                            for other in group * width..(group + 1) * width {
                                let at = (image * tiles + tile) * 2 * c + other;
                                squares += rows * (moments[at + c] + (moments[at] - mean) * (moments[at] - mean));
                            }
                        }
                        (mean, 1.0 / (squares / count + f64::from(eps)).sqrt())
                    }
                };
                norm[image * 2 * c + channel] = rstd * weight[channel];
                norm[(image * 2 + 1) * c + channel] = bias[channel] - mean * rstd * weight[channel];
            }
        }
        vec![norm]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[stats, moments, weight, bias], [norm]) = (inputs, outputs) else {
            panic!("group_norm_scale has five operands")
        };
        let per_group = self.per_group();
        norm.par_chunks_exact_mut(2 * self.c).enumerate().for_each(|(image, norm)| {
            let (scales, offsets) = norm.split_at_mut(self.c);
            let groups = scales.par_chunks_exact_mut(per_group).zip(offsets.par_chunks_exact_mut(per_group));
            groups.enumerate().for_each(|(group, (scales, offsets))| {
                let given = 2 * (image * self.groups + group);
                let (mean, rstd) = match self.eps {
                    None => (f64::from(stats[given]), f64::from(stats[given + 1])),
                    Some(eps) => self.merged(group, eps, &moments[image * self.tiles() * 2 * self.c..]),
                };
                let affine = weight[group * per_group..].iter().zip(&bias[group * per_group..]);
                for ((scale, offset), (weight, bias)) in scales.iter_mut().zip(offsets).zip(affine) {
                    let exact = rstd * f64::from(*weight);
                    (*scale, *offset) = (exact as f32, (f64::from(*bias) - mean * exact) as f32);
                }
            });
        });
    }

    fn with_prologue(&self, operand: &str, op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        match *op {
            PrologueOp::MergeMoments { eps } if operand == names::STATS => {
                Some(Box::new(Self { eps: Some(eps), ..self.clone() }))
            }
            _ => None,
        }
    }
}

fn cases() -> Vec<Case> {
    let given = |n, positions, c, groups| GroupNormScale { n, positions, c, groups, eps: None };
    let merged = |n, positions, c, groups| GroupNormScale { eps: Some(1e-5), ..given(n, positions, c, groups) };
    vec![
        Case::new(given(1, 1, 1, 1)),
        Case::new(given(2, 9, 18, 3)),
        // A number of channels that is no multiple of four.
        Case::new(given(2, 5, 35, 5)),
        Case::new(merged(1, 1, 1, 1)),
        Case::new(merged(2, 63, 10, 5)),
        Case::new(merged(1, 64, 64, 32)),
        Case::new(merged(3, 65, 21, 3)),
        // A group of more channels than a workgroup has invocations.
        Case::new(merged(1, 700, 300, 1)),
        // Two, then four moments of an invocation at a time.
        Case::new(merged(2, 4097, 12, 2)),
        Case::new(merged(1, 4096, 12, 1)),
        // Means far from zero.
        Case::new(merged(1, 300, 12, 3)).fill("moments", Fill::Constant(1000.1)),
        Case::new(merged(1, 300, 12, 3)).fill("moments", Fill::Normal(300.0, 1.0)),
    ]
}

fn model_shapes() -> Vec<Case> {
    let merged = |(size, c): (usize, usize)| {
        let kernel = GroupNormScale { n: 1, positions: size * size, c, groups: 32, eps: Some(1e-5) };
        Case::new(kernel)
    };
    [(64, 320), (64, 960), (32, 640), (16, 1024), (256, 128), (512, 128), (512, 64)].into_iter().map(merged).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let groups = draw.of(&[1, 2, 3, 8]);
    let c = groups * draw.of(&[1, 2, 3, 5, 10]);
    let (n, positions, eps) = (draw.of(&[1, 2]), draw.size(TILE), draw.of(&[None, Some(1e-5)]));
    Case::new(GroupNormScale { n, positions, c, groups, eps })
}

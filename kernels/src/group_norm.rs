//! `y = activation((x - mean) * rstd * weight + bias)` with the statistics of `group_norm_stats`.
//!
//! `x` and `y [n, positions, c]`, `stats [n, groups, 2]` in f32, `weight` and `bias [c]`. On the GPU an invocation takes
//! one vec4, whose channels may be of several groups; on the CPU a row of channels is one loop.

use crate::cpu::{activate_all, rows_per_task};
use crate::draw::Draw;
use crate::fold::{From, OnLoad, Read};
use crate::group_norm_scale::GroupNormScale;
use crate::kernel::{
    Activation, Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, elements, folded_grid,
    parse,
};
use crate::source::Norm;
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Invocations of one workgroup.
const THREADS: usize = 256;

/// The normalisation of one feature map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupNorm {
    /// Images.
    pub n: usize,
    /// Pixels of one image.
    pub positions: usize,
    /// Channels, a multiple of `groups`.
    pub c: usize,
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Applied last.
    #[serde(default)]
    pub activation: Activation,
}

/// The line of the list.
pub(crate) const FAMILY: Family = Family {
    name: "group_norm",
    summary: "`activation((x - mean) * rstd * weight + bias)` with given statistics",
    cases,
    model_shapes,
    random,
    parse: parse::<GroupNorm>,
};

impl Kernel for GroupNorm {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (self.groups == 0 || !self.c.is_multiple_of(self.groups)).then_some("`c` must be a multiple of `groups`")
    }

    fn operands(&self) -> Vec<Operand> {
        let map = [self.n, self.positions, self.c];
        vec![
            Operand::read("x", map),
            Operand::read("stats", [self.n, self.groups, 2]).dtype(DType::F32),
            Operand::read("weight", [self.c]),
            Operand::read("bias", [self.c]),
            Operand::write("y", map),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let c4 = self.c.div_ceil(4);
        Program {
            wgsl: include_str!("../../shaders/group_norm.wgsl"),
            constants: vec![],
            params: vec![
                Param::size("n", self.n),
                Param::size("positions", self.positions),
                Param::size("c4", c4),
                Param::size("groups", self.groups),
                Param::size("per_group", self.c / self.groups),
                Param::U("activation", self.activation.code()),
            ],
            grid: folded_grid((self.n * self.positions * c4).div_ceil(THREADS)),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(elements(&[self.n, self.positions, self.c]), 4)
    }

    fn tolerance(&self) -> Tolerance {
        // Four roundings and those of the activation.
        Tolerance::f32_sum(4)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x, stats, weight, bias] = inputs else { panic!("group_norm reads four operands") };
        let normalised = |(index, x): (usize, &f64)| {
            let (image, c) = (index / (self.positions * self.c), index % self.c);
            let group = image * self.groups + c / (self.c / self.groups);
            let (mean, rstd) = (stats[group * 2], stats[group * 2 + 1]);
            crate::reference::activate(self.activation, (x - mean) * rstd * weight[c] + bias[c])
        };
        vec![x.iter().enumerate().map(normalised).collect()]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x, stats, weight, bias], [y]) = (inputs, outputs) else { panic!("group_norm has five operands") };
        let (c, per_group) = (self.c, self.c / self.groups);
        let block = rows_per_task(c) * c;
        let map = self.positions * c;
        let images = x.chunks_exact(map).zip(y.chunks_exact_mut(map)).zip(stats.chunks_exact(self.groups * 2));
        for ((x, y), stats) in images {
            let mean: Vec<f32> = (0..c).map(|i| stats[i / per_group * 2]).collect();
            let scale: Vec<f32> = (0..c).map(|i| stats[i / per_group * 2 + 1] * weight[i]).collect();
            x.par_chunks(block).zip(y.par_chunks_mut(block)).for_each(|(x, y)| {
                for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                    let channels = mean.iter().zip(&scale).zip(bias);
                    for ((y, x), ((mean, scale), bias)) in y.iter_mut().zip(x).zip(channels) {
                        *y = (x - mean) * scale + bias;
                    }
                    activate_all(self.activation, y);
                }
            });
        }
    }

    fn on_load(&self) -> Option<OnLoad> {
        let norm = Norm::Channels { images: self.n, activation: self.activation };
        let &Self { n, positions, c, groups, .. } = self;
        let rest = Box::new(GroupNormScale { n, positions, c, groups, eps: None });
        let operands = vec![("norm", From::Rest)];
        Some(OnLoad { read: Read::Normalised(norm), main: Some("x"), operands, rest: Some(rest) })
    }

    fn params_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

fn cases() -> Vec<Case> {
    let norm = |n, positions, c, groups| GroupNorm { n, positions, c, groups, activation: Activation::None };
    // Any numbers will do for statistics, but the deviation should not be near zero.
    let case = |kernel: GroupNorm| Case::new(kernel).fill("stats", Fill::Normal(1.0, 0.1));
    let mut cases = vec![
        case(norm(1, 1, 1, 1)),
        case(norm(2, 7, 5, 5)),
        case(norm(2, 19, 9, 3)),
        case(norm(2, 23, 18, 3)),
        case(norm(2, 5, 320, 32)),
        case(norm(1, 33, 64, 32)),
        // One vec4 less than a workgroup, a workgroup, one more; more than one block of the CPU form.
        case(norm(1, 85, 12, 3)),
        case(norm(1, 128, 8, 2)),
        case(norm(1, 257, 4, 1)),
        case(norm(2, 1401, 15, 3)),
        // Far from zero the mean has to be taken off first.
        case(norm(2, 31, 20, 2)).fill("x", Fill::Normal(1000.0, 1.0)).fill("stats", Fill::Normal(1000.0, 1.0)),
        case(norm(2, 31, 20, 2)).fill("x", Fill::Constant(1.0)).fill("stats", Fill::Constant(1.0)),
    ];
    for activation in Activation::ALL {
        cases.push(case(GroupNorm { activation, ..norm(2, 9, 14, 7) }).fill("bias", Fill::Normal(-1.0, 4.0)));
    }
    cases
}

fn model_shapes() -> Vec<Case> {
    let norm = |activation| {
        move |(size, c): (usize, usize)| GroupNorm { n: 1, positions: size * size, c, groups: 32, activation }
    };
    let case = |kernel| Case::new(kernel).fill("stats", Fill::Normal(1.0, 0.1));
    // Before the 3x3 convolutions of the UNet and the decoder; in separable blocks and before transformers.
    let convs = [(64, 320), (64, 640), (64, 960), (64, 256), (128, 256), (256, 256), (256, 128), (512, 128), (512, 64)];
    let others = [(32, 320), (32, 640), (32, 960), (32, 1664), (16, 640), (16, 1024)];
    let convs = convs.into_iter().map(norm(Activation::Silu));
    convs.chain(others.into_iter().map(norm(Activation::None))).map(case).collect()
}

fn random(draw: &mut Draw<'_>) -> Case {
    let groups = draw.of(&[1, 2, 3, 8]);
    let c = groups * draw.of(&[1, 2, 3, 5, 10]);
    let (n, positions, activation) = (draw.of(&[1, 2]), draw.size(THREADS), draw.of(&Activation::ALL));
    // Any numbers will do for statistics, but the deviation should not be near zero.
    Case::new(GroupNorm { n, positions, c, groups, activation }).fill("stats", Fill::Normal(1.0, 0.1))
}

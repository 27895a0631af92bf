//! `y = phi(q kᵀ / sqrt(head_dim)) v` for every head: self-attention and cross-attention (docs/model.md, sections 1.5
//! and 3).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `q` | `[n, queries, heads * head_dim]` | |
//! | `k` | `[n, keys, heads * head_dim]` | |
//! | `v` | `[n, keys, heads * head_dim]` | absent if `shared`: the keys are the values, and are read once |
//! | `y` | `[n, queries, heads * head_dim]` | written |
//!
//! `phi` is softmax over the keys, or ReLU divided by the number of keys, as in the paper's final model (arXiv
//! 2311.16567). A `causal` attention masks the keys after the query's own index.
//!
//! * GPU: a workgroup of 64 invocations computes some queries of one head. It stages the queries and one tile of keys
//!   at a time in workgroup memory. The invocations of a query share its scores, turn each into a weight once, and
//!   exchange the weights through workgroup memory; softmax keeps a running maximum. No score reaches global memory.
//!   `matrix.rs` has the variants for matrix units.
//! * CPU: keys and values of every head are packed into panels once; a task computes a block of queries, with two
//!   products per head (`cpu.rs`).

mod cases;
mod cpu;
mod matrix;

use crate::kernel::{Cost, Family, Kernel, Operand, Param, Program, Tolerance, parse};
use crate::names;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Function that turns the scores of a query into the weights of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phi {
    /// `max(s, 0) / keys`. The number of keys includes masked keys.
    Relu,
    /// `exp(s)`, divided by the sum of `exp(s)` over the keys.
    Softmax,
}

/// Attention of every query to the keys of its image or text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Images or texts.
    pub n: usize,
    /// Queries per image or text.
    pub queries: usize,
    /// Keys per image or text.
    pub keys: usize,
    /// Heads: equal slices of the channels, each with an attention of its own.
    pub heads: usize,
    /// Channels per head: a multiple of four, at most 512.
    pub head_dim: usize,
    /// Function that turns scores into weights.
    pub phi: Phi,
    /// Whether a query attends only to the keys up to its own index.
    pub causal: bool,
    /// Whether the keys are also the values.
    pub shared: bool,
}

impl Attention {
    /// Name of the kernel.
    pub const NAME: &'static str = "attention";
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: Attention::NAME,
    summary: "`phi(q kᵀ / sqrt(d)) v` with relu or softmax, fused",
    cases: cases::cases,
    model_shapes: cases::model_shapes,
    random: cases::random,
    parse: parse::<Attention>,
};

/// Division of a workgroup of 64 invocations, without matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    /// Queries of a workgroup.
    queries: usize,
    /// Invocations of a query.
    lanes: usize,
    /// Keys of a tile.
    keys: usize,
    /// Lanes that compute one score together, each over a part of the head.
    parts: usize,
}

impl Tiling {
    /// Returns the tiling for a head size: fewer queries if a head is large, and as many keys as fit beside them into
    /// 16 KiB, up to 32.
    fn of(head_dim: usize) -> Self {
        let (queries, lanes) = if head_dim <= 128 { (16, 4) } else { (4, 16) };
        let with = |keys: usize| Self { queries, lanes, keys, parts: (lanes / keys).max(1) };
        let fits = |tiling: &Self| tiling.bytes(head_dim) <= 16 * 1024;
        [32, 16, 8, 4, 2].map(with).into_iter().find(fits).unwrap_or(with(1))
    }

    /// Returns the constants of the shader.
    fn constants(self, head_dim: usize) -> Vec<(&'static str, u32)> {
        let count = |size: usize| u32::try_from(size).expect("a tile is small");
        let head4 = head_dim.div_ceil(4);
        vec![
            (names::MATRIX, 0),
            ("QUERIES", count(self.queries)),
            ("LANES", count(self.lanes)),
            ("KEYS", count(self.keys)),
            ("PARTS", count(self.parts)),
            ("HEAD4", count(head4)),
            ("DEPTH4", count(head4.div_ceil(self.parts))),
            ("SLICE", count(head4.div_ceil(self.lanes))),
        ]
    }

    /// Returns the bytes of workgroup memory: queries, keys and weights, each row with a gap behind it against bank
    /// conflicts, and a number that each invocation shares with the others of its query.
    fn bytes(self, head_dim: usize) -> usize {
        let rows = (self.queries + self.keys) * (head_dim.div_ceil(4) + 1) * 16;
        rows + self.queries * (self.keys + 1) * 4 + self.queries * self.lanes * 4
    }
}

impl Attention {
    /// Largest number of channels of a head.
    pub const MOST_HEAD_DIM: usize = 512;

    /// Returns the number of channels of all heads.
    fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns the factor of the scores. For ReLU it includes the division by the number of keys.
    fn scale(&self) -> f64 {
        let divisor = if self.phi == Phi::Relu { self.keys as f64 } else { 1.0 };
        1.0 / (self.head_dim as f64).sqrt() / divisor
    }

    /// Returns the number of keys to which the query of this index attends.
    fn seen(&self, query: usize) -> usize {
        if self.causal { self.keys.min(query + 1) } else { self.keys }
    }
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (!self.head_dim.is_multiple_of(4) || self.head_dim > Self::MOST_HEAD_DIM)
            .then_some("`head_dim` must be a multiple of four up to 512")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("q", [self.n, self.queries, self.channels()]),
            Operand::read("k", [self.n, self.keys, self.channels()]),
            Operand::read("v", [self.n, self.keys, self.channels()]).optional(!self.shared),
            Operand::write("y", [self.n, self.queries, self.channels()]),
        ]
    }

    fn variants(&self) -> Vec<Variant> {
        let queries = Tiling::of(self.head_dim).queries;
        let groups = self.queries.div_ceil(queries) * self.heads * self.n;
        let plain = Variant { name: "lanes", groups, work: queries as f64, ..Variant::ONLY };
        std::iter::once(plain).chain(matrix::variants(self)).collect()
    }

    fn program(&self, variant: &Variant) -> Program {
        let count = |size: usize| u32::try_from(size).expect("sizes are below 2^32");
        let tile = matrix::Tile::of(variant);
        let tiling = Tiling::of(self.head_dim);
        let mut constants = tile.map_or_else(|| tiling.constants(self.head_dim), |tile| tile.constants(self));
        constants.extend([
            ("SOFTMAX", (self.phi == Phi::Softmax).into()),
            ("CAUSAL", self.causal.into()),
            ("SHARED", self.shared.into()),
        ]);
        let queries = tile.map_or(tiling.queries, |tile| tile.queries());
        Program {
            wgsl: include_str!("../../shaders/attention.wgsl"),
            constants,
            params: vec![
                Param::size(names::FIRST_QUERY_TILE, 0),
                Param::size("queries", self.queries),
                Param::size("keys", self.keys),
                Param::size("heads", self.heads),
                Param::F("scale", self.scale() as f32),
            ],
            grid: [count(self.queries.div_ceil(queries)), count(self.heads), count(self.n)],
        }
    }

    fn cost(&self) -> Cost {
        // Masked scores count too, as in the paper's figures.
        Cost::macs(&[2, self.n, self.queries, self.keys, self.channels()])
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::f32_sum(self.head_dim + self.keys)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[q, k, v] = inputs else { panic!("attention reads three operands") };
        let v = if self.shared { k } else { v };
        let channels = self.heads * self.head_dim;
        let mut y = vec![0.0; self.n * self.queries * channels];
        for n in 0..self.n {
            for head in 0..self.heads {
                for query in 0..self.queries {
                    let at_query = (n * self.queries + query) * channels + head * self.head_dim;
                    let at_key = |key: usize| (n * self.keys + key) * channels + head * self.head_dim;
                    let mut scores = vec![f64::NEG_INFINITY; self.keys];
                    for key in 0..self.keys {
                        if !self.causal || key <= query {
                            let product = |d: usize| q[at_query + d] * k[at_key(key) + d];
                            scores[key] = (0..self.head_dim).map(product).sum::<f64>() / (self.head_dim as f64).sqrt();
                        }
                    }
                    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                    for key in 0..self.keys {
                        let weight = match self.phi {
                            Phi::Relu if scores[key] < 0.0 => 0.0,
                            Phi::Relu => scores[key] / self.keys as f64,
                            Phi::Softmax => (scores[key] - highest).exp() / sum,
                        };
                        for d in 0..self.head_dim {
                            y[at_query + d] += weight * v[at_key(key) + d];
                        }
                    }
                }
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[q, k, v], [y]) = (inputs, outputs) else { panic!("attention has four operands") };
        cpu::run(self, q, k, if self.shared { k } else { v }, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::choose;
    use crate::variant::tests::with_matrices;

    #[test]
    fn every_head_fits_into_workgroup_memory() {
        for head_dim in (4..=512).step_by(4) {
            let tiling = Tiling::of(head_dim);
            assert!(tiling.bytes(head_dim) <= 16 * 1024, "{tiling:?} of {head_dim} takes {}", tiling.bytes(head_dim));
            assert_eq!(tiling.queries * tiling.lanes, 64, "{tiling:?} of {head_dim} is no workgroup of 64");
            assert_eq!(tiling.keys * tiling.parts % tiling.lanes, 0, "{tiling:?} leaves lanes without a score");
        }
        assert_eq!(Tiling::of(64), Tiling { queries: 16, lanes: 4, keys: 32, parts: 1 });
        assert_eq!(Tiling::of(484), Tiling { queries: 4, lanes: 16, keys: 4, parts: 4 });
        assert_eq!(Tiling::of(512), Tiling { queries: 4, lanes: 16, keys: 2, parts: 8 });
    }

    #[test]
    fn the_model_takes_matrix_units_of_large_gpus() {
        for subgroup in [32, 64] {
            let machine = with_matrices(subgroup);
            for case in (FAMILY.model_shapes)() {
                let chosen = choose(case.kernel.as_ref(), &machine);
                assert!(chosen.needs.matrix.is_some(), "{:?} takes {}", case.kernel, chosen.name);
            }
        }
    }
}

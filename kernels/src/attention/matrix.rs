//! Attention by matrix units, `shaders/common/attention_matrix.wgsl`: its tiles, for each kind of unit.

use super::Attention;
use crate::names;
use crate::variant::{MatrixUnit, Needs, Variant};

/// Matrices of sums that a subgroup holds at most: heads of 128 channels on NVIDIA, of 64 on Apple.
const MOST_MATRICES: usize = 8;

/// Subgroups of a workgroup.
const SUBGROUPS: usize = 4;

/// What a workgroup computes at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    name: &'static str,
    unit: MatrixUnit,
    /// Whether matrices are loaded through pointers to vec4s, which Vulkan has and Metal has not.
    vec4_loads: bool,
    /// Multiplications in a given time, beside those of the form without matrices. No measurement.
    rate: f64,
}

/// Of NVIDIA's matrices, of Apple's, and of Mesa's driver, whose subgroups have the width of a CPU's vectors: by both kinds
/// of pointers, for nothing else runs the scalar ones without an Apple device.
const TILES: &[Tile] = &[
    Tile { name: "m16", unit: MatrixUnit { edge: 16, subgroup: 32 }, vec4_loads: true, rate: 4.0 },
    Tile { name: "m8", unit: MatrixUnit { edge: 8, subgroup: 32 }, vec4_loads: false, rate: 1.5 },
    Tile { name: "m8/8", unit: MatrixUnit { edge: 8, subgroup: 8 }, vec4_loads: true, rate: 0.8 },
    Tile { name: "m8/8 narrow", unit: MatrixUnit { edge: 8, subgroup: 8 }, vec4_loads: false, rate: 0.7 },
];

impl Tile {
    /// The tile of a variant, if it is one of these.
    pub(super) fn of(variant: &Variant) -> Option<Self> {
        TILES.iter().find(|tile| tile.name == variant.name).copied()
    }

    fn edge(&self) -> usize {
        self.unit.edge as usize
    }

    /// Queries of a workgroup.
    pub(super) fn queries(&self) -> usize {
        SUBGROUPS * self.edge()
    }

    /// Matrices that a head's channels are.
    fn matrices(&self, head_dim: usize) -> usize {
        head_dim.div_ceil(self.edge())
    }

    /// Bytes of the queries, then of two tiles of half as many keys, of scores and of weights, each row with a gap behind
    /// it, and of what the lanes of a query share.
    fn bytes(&self, head_dim: usize) -> usize {
        let (queries, keys) = (self.queries(), 2 * self.edge());
        let heads = 2 * queries * (self.matrices(head_dim) * self.edge() + 8);
        heads + 4 * queries * (keys + 4) + 2 * queries * (keys + 8) + 4 * SUBGROUPS * self.unit.subgroup as usize
    }

    /// Switches and sizes of the shader.
    pub(super) fn constants(&self, attention: &Attention) -> Vec<(&'static str, u32)> {
        let size = |size: usize| u32::try_from(size).expect("a tile is small");
        vec![
            (names::MATRIX, 1),
            ("EDGE", self.unit.edge),
            ("EDGE_8", (self.unit.edge == 8).into()),
            ("SUBGROUP", self.unit.subgroup),
            ("WIDE", self.vec4_loads.into()),
            ("MATRICES", size(self.matrices(attention.head_dim))),
            ("QUERIES", size(self.queries())),
            ("HEAD4", size(attention.head_dim.div_ceil(4))),
        ]
    }
}

/// The variants of a problem whose heads fit into the matrices of a subgroup. `queries` of a workgroup without matrices are
/// the measure of work.
pub(super) fn variants(attention: &Attention) -> impl Iterator<Item = Variant> {
    let Attention { n, queries, heads, head_dim, .. } = *attention;
    let fit = TILES.iter().filter(move |tile| tile.matrices(head_dim) <= MOST_MATRICES);
    fit.map(move |tile| Variant {
        name: tile.name,
        needs: Needs {
            invocations: u32::try_from(SUBGROUPS).expect("a few") * tile.unit.subgroup,
            workgroup_bytes: u32::try_from(tile.bytes(head_dim)).expect("a tile is small"),
            matrix: Some(tile.unit),
        },
        groups: queries.div_ceil(tile.queries()) * heads * n,
        work: tile.queries() as f64 / tile.rate,
        rounds: true,
    })
}

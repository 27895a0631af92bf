//! The variants of attention for matrix units (`shaders/common/attention_matrix.wgsl`): one tile for each kind of unit.

use super::Attention;
use crate::names;
use crate::variant::{MatrixUnit, Needs, Variant};

/// Largest number of matrices of sums that a subgroup holds: heads of 128 channels on NVIDIA, of 64 on Apple.
const MOST_MATRICES: usize = 8;

/// Subgroups per workgroup.
const SUBGROUPS: usize = 4;

/// Queries that a workgroup computes at a time, by matrices of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Name of the variant.
    name: &'static str,
    unit: MatrixUnit,
    /// Whether matrices are loaded through pointers to vec4s. Vulkan allows them, Metal requires pointers to scalars.
    vec4_loads: bool,
    /// Multiplications per time of a workgroup, relative to one without matrices. It is not measured: of units of
    /// 16x16x16 it follows from the latencies that NVK's and RADV's compilers estimate
    /// (benches/records/compilers.md).
    rate: f64,
}

/// The tiles for the matrices of NVIDIA, of AMD, of Apple and of Mesa's software driver, whose subgroups are as wide as the
/// vectors of a CPU. Mesa's have both kinds of pointers: no other device runs scalar pointers where there is no Apple
/// device.
const TILES: &[Tile] = &[
    Tile { name: "m16", unit: MatrixUnit { edge: 16, subgroup: 32 }, vec4_loads: true, rate: 8.0 },
    Tile { name: "m16/64", unit: MatrixUnit { edge: 16, subgroup: 64 }, vec4_loads: true, rate: 8.0 },
    Tile { name: "m8", unit: MatrixUnit { edge: 8, subgroup: 32 }, vec4_loads: false, rate: 1.5 },
    Tile { name: "m8/8", unit: MatrixUnit { edge: 8, subgroup: 8 }, vec4_loads: true, rate: 0.8 },
    Tile { name: "m8/8 narrow", unit: MatrixUnit { edge: 8, subgroup: 8 }, vec4_loads: false, rate: 0.7 },
];

impl Tile {
    /// Returns the tile of a variant, or `None` if the variant has no matrices.
    pub(super) fn of(variant: &Variant) -> Option<Self> {
        TILES.iter().find(|tile| tile.name == variant.name).copied()
    }

    /// Returns the rows, and the columns, of a matrix.
    fn edge(&self) -> usize {
        self.unit.edge as usize
    }

    /// Returns the number of queries of a workgroup.
    pub(super) fn queries(&self) -> usize {
        SUBGROUPS * self.edge()
    }

    /// Returns the number of matrices that hold the channels of a head.
    fn matrices(&self, head_dim: usize) -> usize {
        head_dim.div_ceil(self.edge())
    }

    /// Returns the bytes of workgroup memory: the queries and later, in the same memory, two tiles of half as many keys
    /// each; scores; weights; and what the lanes of a query share. Each row has a gap behind it.
    fn bytes(&self, head_dim: usize) -> usize {
        let (queries, keys) = (self.queries(), 2 * self.edge());
        let heads = 2 * queries * (self.matrices(head_dim) * self.edge() + 8);
        heads
            + 4 * queries * (keys + self.edge() / 2)
            + 2 * queries * (keys + 8)
            + 4 * SUBGROUPS * self.unit.subgroup as usize
    }

    /// Returns the constants of the shader.
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

/// Returns the variants whose subgroups hold the heads of this problem. The unit of `work` is one query of a workgroup
/// without matrices.
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
        slots: 1,
        registers: 0,
        rounds: true,
    })
}

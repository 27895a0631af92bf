//! The tiles that there are, as data.

use super::{By, Matrix, Share, Tile};

/// Matrices of NVIDIA's tensor cores: 16x16x16, in subgroups of 32.
const NVIDIA: Matrix = Matrix { edge: 16, subgroup: 32, strips: 2, across: 2, split: 1, vec4_loads: true };
/// Matrices of AMD's GPUs: 16x16x16, in subgroups of 64 with Mesa's driver. The rates of their tiles follow from what that
/// driver's compiler estimates for RDNA 3 (benches/records/compilers.md).
const AMD: Matrix = Matrix { subgroup: 64, ..NVIDIA };
/// Matrices of Apple's GPUs: 8x8x8, in subgroups of 32.
const APPLE: Matrix = Matrix { edge: 8, vec4_loads: false, ..NVIDIA };
/// Matrices of Mesa's software driver: 8x8x8, in subgroups of 8, the width of a CPU's vectors.
const MESA: Matrix = Matrix { edge: 8, subgroup: 8, ..NVIDIA };

const M16: Tile = Tile { staged: Some(8), by: By::Matrices(NVIDIA), ..WHOLE };
const M16_COLUMN: Tile = Tile { by: By::Matrices(Matrix { across: 1, ..NVIDIA }), ..M16 };
const M16_TALL: Tile = Tile { by: By::Matrices(Matrix { strips: 4, ..NVIDIA }), ..M16 };
/// Eight subgroups of 255 registers fill a unit.
const M16_LARGE: Tile = Tile { by: By::Matrices(Matrix { strips: 4, across: 4, ..NVIDIA }), slots: 2, ..M16 };
const M16_SPLIT: Tile = Tile { staged: Some(16), by: By::Matrices(Matrix { across: 1, split: 4, ..NVIDIA }), ..M16 };
/// A few workgroups of few subgroups wait for memory at every step. Here twice the subgroups cover twice the k in one
/// step. Like those of [`M16_HALVES`], they leave no room for others.
const M16_LONG: Tile =
    Tile { staged: Some(32), by: By::Matrices(Matrix { across: 1, split: 8, ..NVIDIA }), slots: 2, ..M16 };
/// For no more workgroups than a device has units. A step of twice the k covers the latency of memory, which a workgroup
/// alone on its unit waits for. But eight subgroups of 160 registers leave no room for others beside them, so that more
/// workgroups run one after the other (benches/records/compilers.md).
const M16_HALVES: Tile = Tile { staged: Some(16), by: By::Matrices(Matrix { split: 2, ..NVIDIA }), slots: 2, ..M16 };
const M16_64: Tile = Tile { by: By::Matrices(AMD), ..M16 };
const M16_64_TALL: Tile = Tile { by: By::Matrices(Matrix { strips: 4, ..AMD }), ..M16 };
const M16_64_SPLIT: Tile = Tile { staged: Some(16), by: By::Matrices(Matrix { across: 1, split: 4, ..AMD }), ..M16 };
const M8: Tile = Tile { by: By::Matrices(APPLE), ..M16 };
const M8_SPLIT: Tile = Tile { by: By::Matrices(Matrix { across: 1, split: 4, ..APPLE }), ..M16 };
const M8_CPU: Tile = Tile { by: By::Matrices(MESA), ..M16 };
// The three tiles below run forms that no other tile runs on Mesa's driver: scalar pointers with subgroups in one
// column, four strips, and shared sums.
const M8_CPU_NARROW: Tile = Tile { by: By::Matrices(Matrix { across: 1, vec4_loads: false, ..MESA }), ..M16 };
const M8_CPU_TALL: Tile = Tile { by: By::Matrices(Matrix { strips: 4, ..MESA }), ..M16 };
const M8_CPU_SPLIT: Tile = Tile { by: By::Matrices(Matrix { across: 1, split: 4, ..MESA }), ..M16 };

/// Tiles of one product.
pub(crate) const SINGLE: &[Tile] = &[
    Tile { name: "128x128", each: [8, 2], threads: [16, 16, 1], staged: Some(2), rate: 1.0, ..WHOLE },
    Tile { name: "128x64", each: [8, 1], threads: [16, 16, 1], staged: Some(4), rate: 0.8, ..WHOLE },
    WHOLE,
    Tile { name: "128x16", each: [8, 1], threads: [4, 16, 1], staged: Some(4), rate: 0.4, ..WHOLE },
    Tile { name: "64x32/4", each: [8, 1], threads: [8, 8, 4], staged: Some(8), rate: 0.5, ..WHOLE },
    Tile { name: "32x32/4", each: [4, 1], threads: [8, 8, 4], staged: Some(8), rate: 0.4, ..WHOLE },
    Tile { name: "64x64 in 4", share: Share::Part(4), ..WHOLE },
    Tile { name: "2x16/64", each: [2, 1], threads: [4, 1, 64], staged: None, rate: 0.05, ..WHOLE },
    Tile { name: "m16 128x256 4x4", each: [8, 4], threads: [16, 16, 1], rate: 7.0, ..M16_LARGE },
    Tile { name: "m16 128x128 4x4", each: [8, 4], threads: [8, 16, 1], rate: 6.5, ..M16_TALL },
    Tile { name: "m16 128x128", each: [8, 2], threads: [16, 16, 1], rate: 6.0, ..M16 },
    Tile { name: "m16 64x128", each: [8, 2], threads: [16, 8, 1], rate: 4.5, ..M16 },
    Tile { name: "m16 128x64", each: [8, 2], threads: [8, 16, 1], rate: 4.5, ..M16_COLUMN },
    Tile { name: "m16 64x64", each: [8, 2], threads: [8, 8, 1], rate: 3.0, ..M16_COLUMN },
    Tile { name: "m16 64x64/4", each: [4, 1], threads: [16, 16, 1], slots: 2, rate: 2.5, ..M16_SPLIT },
    Tile { name: "m16 32x64/4", each: [4, 1], threads: [16, 8, 1], rate: 2.5, ..M16_SPLIT },
    Tile { name: "m16 32x64/8", each: [2, 1], threads: [16, 16, 1], rate: 1.5, ..M16_LONG },
    Tile {
        name: "m16 128x128 4x4 in 2",
        each: [8, 4],
        threads: [8, 16, 1],
        rate: 6.5,
        share: Share::Part(2),
        ..M16_TALL
    },
    Tile {
        name: "m16 64x128/2 in 4",
        each: [4, 2],
        threads: [16, 16, 1],
        rate: 2.7,
        share: Share::Part(4),
        ..M16_HALVES
    },
    Tile { name: "m16 64x128 in 4", each: [8, 2], threads: [16, 8, 1], rate: 4.5, share: Share::Part(4), ..M16 },
    Tile { name: "m16/64 128x128 4x4", each: [8, 2], threads: [16, 16, 1], rate: 2.2, ..M16_64_TALL },
    Tile { name: "m16/64 64x128", each: [4, 2], threads: [16, 16, 1], rate: 1.9, ..M16_64 },
    Tile { name: "m16/64 64x128 in 4", each: [4, 2], threads: [16, 16, 1], rate: 1.9, share: Share::Part(4), ..M16_64 },
    Tile { name: "m16/64 32x64/4", each: [2, 1], threads: [16, 16, 1], rate: 1.5, ..M16_64_SPLIT },
    Tile { name: "m8 64x64", each: [4, 1], threads: [16, 16, 1], rate: 2.0, ..M8 },
    Tile { name: "m8 64x64 in 4", each: [4, 1], threads: [16, 16, 1], rate: 2.0, share: Share::Part(4), ..M8 },
    Tile { name: "m8 32x64", each: [4, 1], threads: [16, 8, 1], rate: 1.6, ..M8 },
    Tile { name: "m8 16x32/4", each: [1, 1], threads: [8, 16, 1], rate: 0.9, ..M8_SPLIT },
    Tile { name: "m8/8 64x64", each: [8, 2], threads: [8, 8, 1], rate: 0.9, ..M8_CPU },
    Tile { name: "m8/8 64x64 in 4", each: [8, 2], threads: [8, 8, 1], rate: 0.9, share: Share::Part(4), ..M8_CPU },
    Tile { name: "m8/8 64x64 4x4", each: [8, 4], threads: [4, 8, 1], rate: 0.9, ..M8_CPU_TALL },
    Tile { name: "m8/8 64x32", each: [8, 2], threads: [4, 8, 1], rate: 0.8, ..M8_CPU_NARROW },
    Tile { name: "m8/8 64x32/4", each: [4, 1], threads: [8, 16, 1], rate: 0.7, ..M8_CPU_SPLIT },
];

/// Tiles of two products of the same rows. The columns in the name are those of each product.
pub(crate) const PAIR: &[Tile] = &[
    Tile { name: "128x64x2", each: [8, 2], products: 2, threads: [16, 16, 1], staged: Some(2), rate: 1.0, ..WHOLE },
    Tile { name: "64x64x2", each: [4, 2], products: 2, threads: [16, 16, 1], staged: Some(4), rate: 0.8, ..WHOLE },
    Tile { name: "32x32x2/4", each: [4, 2], products: 2, threads: [8, 8, 4], staged: Some(8), rate: 0.5, ..WHOLE },
    Tile { name: "32x32x2", each: [2, 2], products: 2, threads: [8, 16, 1], rate: 0.4, ..WHOLE },
    Tile { name: "m16 128x64x2", each: [8, 2], products: 2, threads: [16, 16, 1], rate: 6.0, ..M16 },
    Tile { name: "m16 64x64x2", each: [8, 2], products: 2, threads: [16, 8, 1], rate: 4.5, ..M16 },
    Tile { name: "m16 32x32x2/4", each: [2, 2], products: 2, threads: [8, 16, 1], rate: 2.5, ..M16_SPLIT },
    Tile { name: "m16/64 64x64x2", each: [4, 2], products: 2, threads: [16, 16, 1], rate: 1.9, ..M16_64 },
    Tile { name: "m16/64 32x32x2/4", each: [1, 2], products: 2, threads: [8, 32, 1], rate: 1.5, ..M16_64_SPLIT },
    Tile { name: "m8 64x32x2", each: [2, 2], products: 2, threads: [8, 32, 1], rate: 2.0, ..M8 },
    Tile { name: "m8/8 64x32x2", each: [8, 2], products: 2, threads: [8, 8, 1], rate: 0.9, ..M8_CPU },
];

/// Tile of 64 rows and 64 columns, in which every sum belongs to one invocation.
const WHOLE: Tile = Tile {
    name: "64x64",
    each: [4, 1],
    products: 1,
    threads: [16, 16, 1],
    staged: Some(4),
    by: By::Registers,
    share: Share::Whole,
    slots: 1,
    rate: 0.6,
};

/// Blocks of a convolution. They multiply 2.25 times less, of which transforms and repeated reads of the input are
/// estimated to leave 1.4 times the rate. Their 256 invocations take 160 to 224 registers each, so that a unit holds one
/// (benches/records/compilers.md).
pub(crate) const BLOCKS: &[Tile] =
    &[Tile { name: "winograd 128x32", threads: [8, 32, 1], by: By::Winograd, slots: 2, rate: 1.4, ..WHOLE }];

/// Tile like [`WHOLE`] for kernels that are no products and stage nothing: its workgroup memory holds sums of its
/// invocations only.
pub(crate) const UNSTAGED: Tile = Tile { staged: None, ..WHOLE };

/// Tile of the second stage of a split product. It has 64 rows, because moments cover 64 rows, and few columns, so that
/// there are many workgroups.
pub(super) const END: Tile = Tile { name: "end", each: [4, 1], threads: [4, 16, 1], staged: None, ..WHOLE };
/// Tile of the second stage of a split product that writes the moments of rows, which cover 32 columns.
pub(super) const END_OF_ROWS: Tile = Tile { name: "end of rows", each: [2, 1], threads: [8, 16, 1], ..END };

//! Tests of the choice of a tile for a shape, and of the properties of tiles that the shaders rely on.

use super::{BLOCKS, Matrix, Moments, PAIR, SINGLE, Sizes, UNSTAGED, variants};
use crate::kernel::{Kernel, Param, Stage};
use crate::names;
use crate::prologue::Prologue;
use crate::variant::tests::with_matrices;
use crate::variant::{Machine, Needs, Units, choose};
use crate::{Conv2d, Linear};
use mobilediffusion_runtime::Caps;

fn taken(rows: usize, cols: usize, moments: Moments) -> &'static str {
    choose(&Linear { rows, k: 1024, cols, moments, ..Linear::default() }, &Machine::PORTABLE).name
}

#[test]
fn the_shape_decides() {
    assert_eq!(taken(65_536, 512, Moments::None), "128x128");
    assert_eq!(taken(65_536, 64, Moments::None), "128x64", "half of the columns of the largest tile would be empty");
    assert_eq!(taken(4096, 320, Moments::None), "64x64", "80 of the largest tiles leave a device idle");
    assert_eq!(taken(256, 1024, Moments::None), "32x32/4");
    assert_eq!(taken(256, 1024, Moments::Channels), "64x64 in 4", "moments are those of 64 rows");
    assert_eq!(taken(262_144, 3, Moments::None), "128x16");
    assert_eq!(taken(1, 1280, Moments::None), "2x16/64");
    assert_eq!(taken(77, 1024, Moments::None), "32x32/4");
}

#[test]
fn the_shape_decides_among_matrices_too() {
    let machine = with_matrices(32);
    let taken = |rows, cols| choose(&Linear { rows, k: 1024, cols, ..Linear::default() }, &machine).name;
    assert_eq!(taken(65_536, 512), "m16 128x256 4x4");
    assert_eq!(taken(262_144, 64), "m16 128x64");
    assert_eq!(taken(4096, 320), "m16 64x64");
    assert_eq!(taken(256, 1024), "m16 32x64/8");
    let long = Linear { rows: 256, k: 6144, cols: 1024, ..Linear::default() };
    assert_eq!(choose(&long, &machine).name, "m16 64x128/2 in 4");
    let wider = Linear { rows: 1024, k: 3840, cols: 640, ..Linear::default() };
    assert_eq!(
        choose(&wider, &machine).name,
        "m16 64x128 in 4",
        "320 workgroups that fill a unit each run in three rounds"
    );
    let wide = with_matrices(64);
    let taken = |rows, cols| choose(&Linear { rows, k: 1024, cols, ..Linear::default() }, &wide).name;
    assert_eq!(taken(65_536, 512), "m16/64 128x128 4x4");
    assert_eq!(taken(4096, 320), "m16/64 32x64/4");
}

#[test]
fn the_number_of_units_decides_among_tiles_of_alike_rates() {
    let linear = Linear { rows: 4096, k: 1024, cols: 320, ..Linear::default() };
    let taken = |units| choose(&linear, &Machine { units: Units::Known(units), ..with_matrices(32) }).name;
    assert_eq!(taken(132), "m16 64x128", "192 workgroups on 132 units, where 320 of 64x64 need three rounds");
    assert_eq!(taken(28), "m16 128x128 4x4", "96 workgroups keep few units busy");
    let long = Conv2d { n: 1, h: 64, w: 64, ci: 320, co: 320, ..Conv2d::default() };
    let long = Conv2d { kernel: 3, stride: 1, upsample: 1, pad_start: 1, pad_end: 1, ..long };
    let machine = Machine { units: Units::Known(132), ..with_matrices(32) };
    assert_eq!(choose(&long, &machine).name, "m16 128x128 4x4 in 2");
}

#[test]
fn long_sums_of_few_tiles_are_made_in_parts() {
    let linear = Linear { rows: 256, k: 6144, cols: 1024, bias: true, residual: true, ..Linear::default() };
    let taken = |machine: &Machine| choose(&linear, machine);
    assert_eq!(taken(&Machine::PORTABLE).name, "64x64 in 4");
    let busy = Machine { units: Units::Guessed(4), ..Machine::PORTABLE };
    assert_eq!(taken(&busy).name, "128x128", "a few workgroups keep it busy");
    let parts = taken(&Machine::PORTABLE);
    let bound = |stage: &Stage| {
        let there = stage.operands.iter().filter(|operand| operand.present);
        there.map(|operand| operand.name).collect::<Vec<_>>()
    };
    let stages = linear.stages(&parts);
    let [first, second] = &stages[..] else { panic!("{} stages", stages.len()) };
    assert_eq!(bound(first), ["x", "w", "parts"]);
    assert_eq!(bound(second), ["bias", "residual", "y", "parts"]);
    assert_eq!(first.program.grid, [4 * 16, 4, 1]);
    let large = Linear { rows: 65_536, ..linear };
    assert!(large.variants().iter().all(|variant| !variant.name.contains("in 4")), "a GiB of sums");
}

#[test]
fn wide_products_take_tiles_that_devices_accept() {
    // One column more than 65,535 workgroups of 16 columns compute.
    let wide = Linear { rows: 1, k: 1, cols: (1 << 20) + 1, ..Linear::default() };
    for units in [1, 128] {
        let chosen = choose(&wide, &Machine { units: Units::Guessed(units), ..Machine::PORTABLE });
        assert_ne!(chosen.name, "2x16/64", "65,537 workgroups along x");
    }
    for kernel in [wide.clone(), Linear { moments: Moments::Rows, ..wide.clone() }, Linear { cols: 1 << 20, ..wide }] {
        for variant in kernel.variants() {
            for stage in kernel.stages(&variant) {
                let grid = stage.program.grid;
                let fits = grid.iter().all(|groups| *groups <= Caps::PORTABLE.max_groups);
                assert!(fits, "{kernel:?} by {}: a grid of {grid:?}", variant.name);
            }
        }
    }
    let endless = Sizes { rows: 1, k: 1, cols: 1 << 30, phases: 1 };
    let endless = variants(SINGLE, endless, &Prologue::default(), Moments::None);
    assert!(!endless.is_empty(), "something must be left for the device to refuse");
}

#[test]
fn a_tile_that_stages_nothing_has_a_vec4_for_each_invocation() {
    assert_eq!(UNSTAGED.scratch(), 256, "sums of 256 invocations");
}

#[test]
fn subgroups_cover_the_tile() {
    for tile in SINGLE.iter().chain(PAIR) {
        let Some(&Matrix { edge, subgroup, strips, across, split, .. }) = tile.matrix() else { continue };
        let [edge, strips, across, split] = [edge, strips, across, split].map(|size| size as usize);
        let down = tile.threads.iter().product::<usize>() / subgroup as usize / across / split;
        assert_eq!([tile.rows(), tile.cols()], [strips * edge * down, 4 * edge * across], "{}", tile.name);
        assert!((4 * tile.staged.unwrap()).is_multiple_of(split * edge), "{}: a step has unequal parts", tile.name);
        // The shader's take_sums relies on this.
        assert!(edge.is_multiple_of(tile.each[0]), "{}: rows of an invocation lie in several matrices", tile.name);
    }
}

#[test]
fn convolutions_choose_alike() {
    let conv =
        Conv2d { n: 1, h: 16, w: 16, ci: 1024, co: 1024, kernel: 1, stride: 1, upsample: 1, ..Conv2d::default() };
    assert_eq!(choose(&conv, &Machine::PORTABLE).name, taken(256, 1024, Moments::None));
}

#[test]
fn divided_programs_cover_every_tile_once() {
    for rows in [1, 64, 1000, 9_000_000] {
        let linear = Linear { rows, k: 4, cols: 8, ..Linear::default() };
        for variant in linear.variants() {
            let whole = linear.program(&variant);
            let [x, y, z] = whole.grid;
            for parts in [1, 2, 3, 7, 1000] {
                let divided = whole.divided(parts);
                let most = parts.max(u64::from(y * z).div_ceil(65_535));
                assert!(divided.len() as u64 <= most, "{rows} rows, {parts} parts, {}", variant.name);
                let mut next = 0;
                for part in &divided {
                    let first = part.params.iter().find(|param| param.name() == names::FIRST_ROW_TILE);
                    assert_eq!(first, Some(&Param::U(names::FIRST_ROW_TILE, next)), "{rows} rows, {parts} parts");
                    assert!(part.grid.iter().all(|axis| (1..=65_535).contains(axis)), "{:?}", part.grid);
                    assert_eq!((part.grid[0], &part.constants), (x, &whole.constants), "the same code");
                    next += part.grid[1] * part.grid[2];
                }
                assert_eq!(next, y * z, "{rows} rows, {parts} parts");
            }
        }
    }
}

#[test]
fn tiles_without_matrices_fit_into_the_workgroup_memory_of_every_device() {
    for tile in SINGLE.iter().chain(PAIR).chain(BLOCKS).filter(|tile| tile.matrix().is_none()) {
        let bytes = tile.scratch() * 16;
        assert!(bytes <= Needs::PORTABLE.workgroup_bytes as usize, "{}: {bytes} bytes", tile.name);
        let invocations = tile.threads.iter().product::<usize>();
        assert!(invocations <= Needs::PORTABLE.invocations as usize, "{}: {invocations}", tile.name);
    }
}

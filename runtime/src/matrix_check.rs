//! A trial of the matrix units of every device that is opened. wgpu's support for cooperative matrices is experimental:
//! a driver may list a product that it does not implement, so that the result is all zeros, and shaders do not say that
//! matrices are loaded from memory which other invocations have written, so that a compiler may move a load across a
//! barrier. The trial therefore does what kernels do: it adds products of several steps, whose factors pass through the
//! same workgroup memory, to many sums at once, which then leave through one piece of workgroup memory, one after the
//! other. All are small integers, and the result must be exact. Where Mesa's driver for AMD's GPUs (RADV) has subgroups
//! of several sizes, the trial also tells the size that shaders with matrices get, since no API does.

use crate::caps::Caps;
use crate::{Binding, Bound, Gpu, Role, RuntimeError};
use std::fmt::Write;
use std::sync::atomic::Ordering;

/// Invocations of the trial's workgroup: as many as most tiles of matrices have.
const INVOCATIONS: u32 = 256;

/// Steps whose products are added up.
const STEPS: u32 = 3;

/// Matrices of the left factor. Every subgroup multiplies each of them with each of the right factor.
const ROWS: u32 = 4;

/// Matrices of the right factor.
const COLUMNS: u32 = 2;

/// Parts of the trial shader that do not depend on the number of sums. Invocations fill both factors in workgroup memory,
/// as the kernels do; `w` is stored by columns.
const HEAD: &str = "
@group(0) @binding(0) var<storage, read_write> products: array<f32>;
var<workgroup> x: array<f16, ROWS * AREA>;
var<workgroup> w: array<f16, COLUMNS * AREA>;
var<workgroup> batch: array<f32, SUBGROUPS * AREA>;

fn fill(thread: u32, step: u32) {
    for (var i = thread; i < ROWS * AREA; i += INVOCATIONS) {
        let at = i % AREA;
        x[i] = f16(i32(3u * (at / EDGE) + at % EDGE + i / AREA + step) % 5 - 2);
    }
    for (var i = thread; i < COLUMNS * AREA; i += INVOCATIONS) {
        let at = i % AREA;
        w[i] = f16(i32(at / EDGE + 2u * (at % EDGE) + 3u * (i / AREA) + step) % 7 - 3);
    }
}

fn hand_over(thread: u32, sum: u32) {
    for (var i = thread; i < SUBGROUPS * AREA; i += INVOCATIONS) { products[sum * SUBGROUPS * AREA + i] = batch[i]; }
}
";

/// Returns the trial shader for matrices of `edge` x `edge`. Each of the first `subgroups` subgroups stores its own sums, and
/// the size of subgroups follows the last of them. Where the size is not known, the shader asks for it.
fn shader(edge: u32, subgroups: u32, known_size: Option<u32>) -> String {
    let (builtin, size) = match known_size {
        Some(known) => ("", format!("{known}u")),
        None => (", @builtin(subgroup_size) size: u32", "size".to_owned()),
    };
    let mut text = "enable f16;\nenable wgpu_cooperative_matrix;\n".to_owned();
    let constants = [
        ("EDGE", edge),
        ("AREA", edge * edge),
        ("SUBGROUPS", subgroups),
        ("ROWS", ROWS),
        ("COLUMNS", COLUMNS),
        ("STEPS", STEPS),
        ("INVOCATIONS", INVOCATIONS),
    ];
    let mut line = |line: &str| text.write_fmt(format_args!("{line}\n")).expect("a string takes everything");
    constants.iter().for_each(|(name, value)| line(&format!("const {name} = {value}u;")));
    for (name, float, role) in [("Left", "f16", "A"), ("Right", "f16", "B"), ("Sum", "f32", "C")] {
        line(&format!("alias {name} = coop_mat{edge}x{edge}<{float}, {role}>;"));
    }
    line(HEAD);
    line("@compute @workgroup_size(INVOCATIONS)");
    line(&format!("fn main(@builtin(local_invocation_index) thread: u32{builtin}) {{"));
    let sums = || (0..ROWS).flat_map(|row| (0..COLUMNS).map(move |column| (row * COLUMNS + column, row, column)));
    sums().for_each(|(sum, ..)| line(&format!("var sum{sum} = Sum();")));
    line("for (var step = 0u; step < STEPS; step++) {\nfill(thread, step);\nworkgroupBarrier();");
    (0..ROWS).for_each(|row| line(&format!("let row{row} = coopLoadT<Left>(&x[{row}u * AREA], EDGE);")));
    (0..COLUMNS).for_each(|column| line(&format!("let column{column} = coopLoad<Right>(&w[{column}u * AREA], EDGE);")));
    sums().for_each(|(sum, row, column)| {
        line(&format!("sum{sum} = coopMultiplyAdd(row{row}, column{column}, sum{sum});"));
    });
    line("workgroupBarrier();\n}");
    for (sum, ..) in sums() {
        line(&format!("coopStoreT(sum{sum}, &batch[min(thread / {size}, SUBGROUPS - 1u) * AREA], EDGE);"));
        line("workgroupBarrier();");
        line(&format!("hand_over(thread, {sum}u);\nworkgroupBarrier();"));
    }
    line(&format!("if thread == 0u {{ products[ROWS * COLUMNS * SUBGROUPS * AREA] = f32({size}); }}\n}}"));
    text
}

impl Gpu {
    /// Removes matrix shapes whose trial product is wrong from the capabilities, so that no kernel uses them, and
    /// notes the size of subgroups if it was not known.
    pub(crate) fn keep_working_matrices(mut self) -> Self {
        let Caps { mut matrices, mut subgroup_size, .. } = self.caps().clone();
        matrices.retain(|shape| {
            if !shape.is_tried() {
                return true;
            }
            let found = self.trial(shape.m, subgroup_size).ok().flatten();
            let works = found.is_some() && subgroup_size.is_none_or(|known| Some(known) == found);
            subgroup_size = subgroup_size.or(found);
            works
        });
        self.adapter.caps = Caps { matrices, subgroup_size, ..self.adapter.caps };
        // The buffers and pipelines of the trial are not counted.
        [&self.buffers_made, &self.pipelines_made].iter().for_each(|made| made.store(0, Ordering::Relaxed));
        self
    }

    /// Multiplies matrices of `edge` x `edge`. Returns the size of subgroups if every product is right.
    fn trial(&self, edge: u32, known_size: Option<u32>) -> Result<Option<u32>, RuntimeError> {
        let least = known_size.unwrap_or(self.device.adapter_info().subgroup_min_size).max(1);
        let factors = 2 * (ROWS + COLUMNS) * edge * edge;
        let room = self.caps().max_workgroup_bytes.saturating_sub(factors) / (4 * edge * edge);
        let subgroups = (INVOCATIONS / least).min(room).max(1);
        let bytes = 4 * u64::from(ROWS * COLUMNS * subgroups * edge * edge + 1);
        let products = self.buffer("products", bytes, Role::Storage)?;
        let staging = self.buffer("products staging", bytes, Role::Staging)?;
        let pipeline = self.pipeline("matrix trial", &shader(edge, subgroups, known_size), &[Binding::Write])?;
        let dispatch = self.dispatch("matrix trial", &pipeline, &[Bound::whole(&products)], [1, 1, 1])?;
        self.submit([&dispatch])?;
        let found = self.download(&products, &staging)?;
        let found: Vec<f32> = found.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(subgroup_of(edge, subgroups, &found))
    }
}

/// Returns the size of subgroups if every subgroup of the trial that stores its sums stored the right ones.
fn subgroup_of(edge: u32, subgroups: u32, found: &[f32]) -> Option<u32> {
    let (size, products) = found.split_last()?;
    let size = (1..=INVOCATIONS).find(|possible| possible.is_power_of_two() && *possible as f32 == *size)?;
    let area = (edge * edge) as usize;
    let mut sums = (0..).zip(products.chunks(subgroups as usize * area));
    let stored = subgroups.min(INVOCATIONS / size) as usize;
    let is_right = |(sum, all): (u32, &[f32])| all.chunks(area).take(stored).all(|found| is_product(edge, sum, found));
    sums.all(is_right).then_some(size)
}

/// Returns whether `found` is the sum of this number of the products that the trial shader adds up.
fn is_product(edge: u32, sum: u32, found: &[f32]) -> bool {
    let x = |step: u32, row: u32, k: u32| f64::from((3 * row + k + sum / COLUMNS + step) % 5) - 2.0;
    let w = |step: u32, col: u32, k: u32| f64::from((col + 2 * k + 3 * (sum % COLUMNS) + step) % 7) - 3.0;
    let product = |step, row, col| (0..edge).map(|k| x(step, row, k) * w(step, col, k)).sum::<f64>();
    let wanted = (0..edge * edge).map(|at| (0..STEPS).map(|step| product(step, at / edge, at % edge)).sum::<f64>());
    found.len() == (edge * edge) as usize && wanted.zip(found).all(|(wanted, found)| wanted == f64::from(*found))
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, INVOCATIONS, ROWS, STEPS, is_product, subgroup_of};
    use crate::{AdapterKind, Gpu, adapter};

    /// Returns one of the sums over some steps, with `w` as the shader stores it or by rows.
    fn sum_of(edge: u32, sum: u32, steps: std::ops::Range<u32>, is_swapped: bool) -> Vec<f32> {
        let x = |step: u32, row: u32, k: u32| ((3 * row + k + sum / COLUMNS + step) % 5) as f32 - 2.0;
        let w = |step: u32, col: u32, k: u32| ((col + 2 * k + 3 * (sum % COLUMNS) + step) % 7) as f32 - 3.0;
        let w = |step, col, k| if is_swapped { w(step, k, col) } else { w(step, col, k) };
        let one = |row: u32, col: u32| -> f32 {
            steps.clone().map(|step| (0..edge).map(|k| x(step, row, k) * w(step, col, k)).sum::<f32>()).sum()
        };
        (0..edge * edge).map(|at| one(at / edge, at % edge)).collect()
    }

    #[test]
    fn wrong_sums_are_seen() {
        for (edge, sum) in [8, 16].into_iter().flat_map(|edge| (0..ROWS * COLUMNS).map(move |sum| (edge, sum))) {
            let right = sum_of(edge, sum, 0..STEPS, false);
            assert!(is_product(edge, sum, &right));
            assert!(!is_product(edge, sum, &right[1..]), "one element is missing");
            assert!(!is_product(edge, sum, &vec![0.0; right.len()]), "nothing was multiplied");
            let turned: Vec<f32> = (0..edge * edge).map(|at| right[(at % edge * edge + at / edge) as usize]).collect();
            assert!(!is_product(edge, sum, &turned), "the sum is transposed");
            assert!(!is_product(edge, sum, &sum_of(edge, sum, 0..STEPS, true)), "w is read by rows");
            assert!(!is_product(edge, sum, &sum_of(edge, sum, 1..STEPS, false)), "the first step is missing");
            assert!(!is_product(edge, sum, &sum_of(edge, sum, 0..STEPS - 1, false)), "the last step is missing");
            let other = sum_of(edge, (sum + 1) % (ROWS * COLUMNS), 0..STEPS, false);
            assert!(!is_product(edge, sum, &other), "another sum was handed over");
        }
    }

    #[test]
    fn every_subgroup_must_store_its_sums() {
        let (least, area) = (8, 64);
        let subgroups = INVOCATIONS / least;
        let stored = |size: f32, stores: u32| {
            let sums = (0..ROWS * COLUMNS).flat_map(|sum| {
                let mut all = vec![0.0; (subgroups * area) as usize];
                let each = sum_of(8, sum, 0..STEPS, false).repeat(stores as usize);
                all[..each.len()].copy_from_slice(&each);
                all
            });
            sums.chain([size]).collect::<Vec<f32>>()
        };
        assert_eq!(subgroup_of(8, subgroups, &stored(0.0, 0)), None, "nothing was stored");
        assert_eq!(subgroup_of(8, subgroups, &stored(32.0, 8)), Some(32));
        assert_eq!(subgroup_of(8, subgroups, &stored(16.0, 8)), None, "only half of the subgroups stored a sum");
        assert_eq!(subgroup_of(8, subgroups, &stored(4.0, 32)), Some(4), "there is room for half of them");
        for size in [f32::NAN, 0.0, 33.0, 512.0] {
            assert_eq!(subgroup_of(8, subgroups, &stored(size, 32)), None, "subgroups of {size}");
        }
        let mut one_is_wrong = stored(8.0, 32);
        *one_is_wrong.iter_mut().nth_back(1).expect("it has sums") += 1.0;
        assert_eq!(subgroup_of(8, subgroups, &one_is_wrong), None, "the last sum is wrong");
    }

    #[test]
    fn the_trial_finds_the_size_that_the_driver_reports() {
        let all = pollster::block_on(adapter::enumerate());
        for (index, raw) in all.iter().enumerate() {
            let mut summary = adapter::summary(index, raw);
            let Some(known) = summary.caps.subgroup_size.filter(|_| summary.kind == AdapterKind::Software) else {
                continue;
            };
            let listed = summary.caps.matrices.clone();
            summary.caps.subgroup_size = None;
            let opened = pollster::block_on(Gpu::open_on(raw, summary, false)).expect("a listed adapter opens");
            assert_eq!((opened.caps().subgroup_size, &opened.caps().matrices), (Some(known), &listed));
        }
    }
}

//! A trial of the matrix units of every device that is opened. wgpu's support for cooperative matrices is experimental:
//! a driver may list a product that it does not implement, so that the result is all zeros, or count the stride of a
//! load in other units; and shaders do not say that matrices are loaded from memory which other invocations have
//! written, so that a compiler may move a load across a barrier. The trial therefore does what kernels do: it adds
//! products of several steps, whose factors pass through the same workgroup memory, to many sums at once, which then
//! leave through one piece of workgroup memory, one after the other. One factor is kept from before the first step, from
//! another place for each subgroup, and multiplied in the end by matrices that are loaded by rows, as attention does. In
//! one step the trial also sums a value of every invocation by ordinary loads and stores. All are small integers, and
//! every result must be exact. Where Mesa's driver for AMD's GPUs (RADV) has subgroups of several sizes, the trial also
//! tells the size that shaders with matrices get, since no API does.

use crate::caps::{Caps, MatrixShape};
use crate::incidents::one_line;
use crate::shader::{Compose, compose};
use crate::{Binding, Bound, Gpu, Role, RuntimeError};
use std::sync::atomic::Ordering;

/// Invocations of the trial's workgroup: as many as most tiles of matrices have, and as `sum_all` adds up.
const INVOCATIONS: u32 = 256;

/// Steps whose products are added up. Each has two matrices of both factors, side by side.
const STEPS: u32 = 3;

/// Matrices of the left factor, one below the other. Every subgroup multiplies each of them with both of the right
/// factor.
const ROWS: u32 = 4;

/// Pairs of sums of a subgroup: those of the steps, and those of the factor that it keeps.
const PAIRS: u32 = ROWS + 1;

/// Matrix shape that an adapter lists, and that its device does not use because the trial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedMatrix {
    /// Shape and types of the matrices.
    pub shape: MatrixShape,
    /// What the trial found.
    pub reason: String,
}

impl std::fmt::Display for RefusedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "matrix units {} are listed but not used: {}", self.shape, self.reason)
    }
}

/// Returns the permission to request cooperative matrices, the only requested feature that wgpu calls experimental.
#[expect(unsafe_code, reason = "wgpu offers cooperative matrices in no other way")]
pub(crate) fn experimental_features() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu warns that wrong use of such a feature may be undefined behaviour: it checks neither that a matrix
    // lies within its array nor that a whole subgroup takes part. The shader contract of `Gpu::pipeline` makes the
    // caller responsible for both. The shaders of this project load and store matrices in workgroup memory, at offsets
    // that are multiples of tile sizes, or in a buffer made for them, in control flow that naga finds uniform.
    // tests/kernels.rs runs each of them on Mesa's driver between fences, tests/shaders.rs adds up their memory, and
    // `keep_working_matrices` tries out a product on every device that is opened (wgpu #8805: naga does not tell
    // drivers all that Vulkan requires about memory that matrices share).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Returns the bytes of workgroup memory that the trial needs: those of its factors and of the sum over all invocations,
/// and those of the sums of one subgroup.
fn workgroup_bytes(edge: u32) -> (u32, u32) {
    let (step_stride, sum_stride) = (edge / 2 + 2, edge / 2 + edge / 8);
    (8 * (ROWS + 2) * edge * step_stride + 4 * INVOCATIONS, 16 * edge * sum_stride)
}

/// Returns the trial shader for matrices of `edge` x `edge`. Each of the first `subgroups` subgroups stores its sums
/// at a place of its own, and the others store theirs, which are equal, at the last place. Where the
/// size of subgroups is not known, the shader asks for it. Vulkan takes pointers to vec4s (`wide`), as kernels do there,
/// and Metal requires pointers to scalars.
fn shader(edge: u32, subgroups: u32, known_size: Option<u32>, wide: bool) -> String {
    let constants = [
        ("EDGE", edge),
        ("EDGE_8", (edge == 8).into()),
        ("ROWS", ROWS),
        ("STEPS", STEPS),
        ("INVOCATIONS", INVOCATIONS),
        ("SUBGROUPS", subgroups),
        ("SIZE", known_size.unwrap_or(0)),
        ("WIDE", wide.into()),
    ];
    let prelude = "enable f16;\nenable wgpu_cooperative_matrix;\n";
    // Parts of the kernels' shaders: what is tried is what they do.
    let common = [
        ("matrix_unit", include_str!("../../shaders/common/matrix_unit.wgsl")),
        ("sum_all", include_str!("../../shaders/common/sum_all.wgsl")),
    ];
    let parts = Compose { prelude, constants: &constants, body: include_str!("matrix_check.wgsl"), common: &common };
    compose(&parts).expect("the trial's shader is well-formed")
}

impl Gpu {
    /// Removes matrix shapes whose trial fails from the capabilities, so that no kernel uses them, and notes why, and the
    /// size of subgroups if it was not known.
    pub(crate) fn keep_working_matrices(mut self) -> Self {
        let Caps { mut matrices, mut subgroup_size, .. } = self.caps().clone();
        let mut refused = Vec::new();
        matrices.retain(|shape| {
            if !shape.is_tried() {
                return true;
            }
            match self.trial(shape.m, subgroup_size) {
                Ok(found) => subgroup_size = Some(found),
                Err(reason) => refused.push(RefusedMatrix { shape: *shape, reason }),
            }
            refused.last().is_none_or(|last| last.shape != *shape)
        });
        self.adapter.caps = Caps { matrices, subgroup_size, ..self.adapter.caps };
        self.refused_matrices = refused;
        // The buffers and pipelines of the trial are not counted.
        [&self.buffers_made, &self.pipelines_made].iter().for_each(|made| made.store(0, Ordering::Relaxed));
        self
    }

    /// Multiplies matrices of `edge` x `edge`. Returns the size of subgroups if every product is right, or what is wrong.
    fn trial(&self, edge: u32, known_size: Option<u32>) -> Result<u32, String> {
        let (subgroups, results) = self.multiply(edge, known_size).map_err(|error| one_line(&error.to_string()))?;
        let found = subgroup_of(edge, subgroups, &results)?;
        match known_size {
            Some(known) if known != found => Err(format!("expected subgroups of {known} invocations, found {found}")),
            _ => Ok(found),
        }
    }

    /// Runs the trial's shader. Returns the number of subgroups that had room for their sums, and the results.
    fn multiply(&self, edge: u32, known_size: Option<u32>) -> Result<(u32, Vec<f32>), RuntimeError> {
        let info = self.device.adapter_info();
        let least = known_size.unwrap_or(info.subgroup_min_size).max(1);
        let (always, each) = workgroup_bytes(edge);
        let room = self.caps().max_workgroup_bytes.saturating_sub(always) / each;
        let subgroups = (INVOCATIONS / least).min(room).max(1);
        let bytes = 4 * u64::from(2 * PAIRS * subgroups * edge * edge + 4);
        let found = self.buffer("trial results", bytes, Role::Storage)?;
        let staging = self.buffer("trial staging", bytes, Role::Staging)?;
        let text = shader(edge, subgroups, known_size, info.backend != wgpu::Backend::Metal);
        let pipeline = self.pipeline("matrix trial", &text, &[Binding::Write])?;
        let dispatch = self.dispatch("matrix trial", &pipeline, &[Bound::whole(&found)], [1, 1, 1])?;
        self.submit([&dispatch])?;
        let found = self.download(&found, &staging)?;
        Ok((subgroups, found.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }
}

/// Returns the size of subgroups if every subgroup of the trial that stores its sums stored the right ones, and the sums
/// over all invocations are right; else what is wrong.
fn subgroup_of(edge: u32, subgroups: u32, found: &[f32]) -> Result<u32, String> {
    let (products, [size, total, ..]) = found.split_last_chunk::<4>().expect("the shader has more results");
    let possible = (0..=INVOCATIONS.ilog2()).map(|power| 1 << power).find(|possible| *possible as f32 == *size);
    let found = possible.ok_or_else(|| format!("expected a power of two as the size of subgroups, found {size}"))?;
    let batch = 2 * (edge * edge) as usize;
    let stored = subgroups.min(INVOCATIONS / found) as usize;
    for (pair, all) in (0..).zip(products.chunks(subgroups as usize * batch)) {
        for (subgroup, sums) in (0..).zip(all.chunks(batch).take(stored)) {
            let wrong = |why| format!("subgroup {subgroup}, matrices {pair}: {why}");
            are_sums(edge, |row, column| expected(edge, subgroup, pair, row, column), sums).map_err(wrong)?;
        }
    }
    let of_all: u32 = (0..INVOCATIONS).sum();
    if *total == of_all as f32 { Ok(found) } else { Err(format!("expected a sum of {of_all} over all, found {total}")) }
}

/// Returns what the trial shader adds up for a pair of sums, in a row and a column of both side by side.
fn expected(edge: u32, subgroup: u32, pair: u32, row: u32, column: u32) -> f64 {
    let x = |step: u32, row: u32, k: u32| f64::from((3 * row + k + step) % 5) - 2.0;
    let w = |step: u32, column: u32, k: u32| f64::from((column + 2 * k + step) % 7) - 3.0;
    if pair == ROWS {
        let row = subgroup % ROWS * edge + row;
        let by_rows = |k| w(STEPS - 1, column / edge * edge + k, column % edge);
        return (0..edge).map(|k| x(STEPS, row, k) * by_rows(k)).sum();
    }
    let terms = (0..STEPS).flat_map(|step| (0..2 * edge).map(move |k| (step, k)));
    terms.map(|(step, k)| x(step, pair * edge + row, k) * w(step, column, k)).sum()
}

/// Checks that `found` are `edge` rows of two sums with these values. Returns what is wrong.
fn are_sums(edge: u32, expected: impl Fn(u32, u32) -> f64, found: &[f32]) -> Result<(), String> {
    let width = 2 * edge;
    let sum = |at: u32| expected(at / width, at % width);
    if found.len() != (edge * width) as usize {
        return Err(format!("expected {} sums, found {}", edge * width, found.len()));
    }
    let mut wrong = (0..).zip(found).filter(|(at, found)| sum(*at) != f64::from(**found));
    match wrong.next() {
        None => Ok(()),
        Some((at, found)) => {
            let (row, column, others) = (at / width, at % width, wrong.count());
            Err(format!("expected {} in row {row}, column {column}, found {found}; {others} more are wrong", sum(at)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{INVOCATIONS, PAIRS, ROWS, RefusedMatrix, STEPS};
    use super::{are_sums, expected, shader, subgroup_of, workgroup_bytes};
    use crate::{AdapterKind, Gpu, MatrixShape, MatrixType, adapter};

    /// Sum of the numbers of all invocations.
    const TOTAL: f32 = 32_640.0;

    /// Returns the two sums of a row of matrices over some steps and depths, with `w` as the shader stores it or by rows.
    fn sums_of(edge: u32, row: u32, steps: std::ops::Range<u32>, depth: u32, is_swapped: bool) -> Vec<f32> {
        let x = |step: u32, row: u32, k: u32| ((3 * row + k + step) % 5) as f32 - 2.0;
        let w = |step: u32, col: u32, k: u32| ((col + 2 * k + step) % 7) as f32 - 3.0;
        let w = |step, col, k| if is_swapped { w(step, k, col) } else { w(step, col, k) };
        let one = |row: u32, col: u32| -> f32 {
            steps.clone().map(|step| (0..depth).map(|k| x(step, row, k) * w(step, col, k)).sum::<f32>()).sum()
        };
        (0..2 * edge * edge).map(|at| one(row * edge + at / (2 * edge), at % (2 * edge))).collect()
    }

    /// Returns the sums of the factor that a subgroup keeps: of row `row` of matrices in a step, with `w` as the shader
    /// loads it or by columns.
    fn kept(edge: u32, step: u32, row: u32, is_swapped: bool) -> Vec<f32> {
        let x = |row: u32, k: u32| ((3 * row + k + step) % 5) as f32 - 2.0;
        let w = |row: u32, col: u32| ((row + 2 * col + STEPS - 1) % 7) as f32 - 3.0;
        let w = |half: u32, k: u32, col: u32| if is_swapped { w(half + col, k) } else { w(half + k, col) };
        let one = |row: u32, half: u32, col: u32| -> f32 { (0..edge).map(|k| x(row, k) * w(half, k, col)).sum() };
        let places = (0..edge).flat_map(|r| [0, edge].into_iter().flat_map(move |h| (0..edge).map(move |c| (r, h, c))));
        places.map(|(r, half, col)| one(row * edge + r, half, col)).collect()
    }

    /// Checks one pair of sums of subgroup 0.
    fn are_products(edge: u32, pair: u32, found: &[f32]) -> Result<(), String> {
        are_sums(edge, |row, column| expected(edge, 0, pair, row, column), found)
    }

    #[test]
    fn wrong_sums_are_seen() {
        for (edge, row) in [8, 16].into_iter().flat_map(|edge| (0..ROWS).map(move |row| (edge, row))) {
            let (width, depth) = (2 * edge as usize, 2 * edge);
            let right = sums_of(edge, row, 0..STEPS, depth, false);
            assert_eq!(are_products(edge, row, &right), Ok(()), "right sums are refused");
            assert!(are_products(edge, row, &right[1..]).is_err(), "one element is missing");
            assert!(are_products(edge, row, &vec![0.0; right.len()]).is_err(), "nothing was multiplied");
            let wrong = |sums: Vec<f32>, what: &str| assert!(are_products(edge, row, &sums).is_err(), "{what}");
            let shuffled = |from: &dyn Fn(usize, usize) -> (usize, usize)| -> Vec<f32> {
                let from = |at: usize| from(at / width, at % width);
                (0..right.len()).map(from).map(|(row, col)| right[row * width + col]).collect()
            };
            let half = edge as usize;
            let transposed = |row: usize, col: usize| (col % half, col / half * half + row);
            wrong(shuffled(&transposed), "each sum is transposed");
            wrong(shuffled(&|row, col| (row, (col + half) % width)), "the two sums are exchanged");
            wrong(shuffled(&|row, col| (row, col % half)), "the first sum was handed over twice");
            wrong(sums_of(edge, row, 0..STEPS, depth, true), "w is read by rows");
            wrong(sums_of(edge, row, 1..STEPS, depth, false), "the first step is missing");
            wrong(sums_of(edge, row, 0..STEPS - 1, depth, false), "the last step is missing");
            wrong(sums_of(edge, row, 0..STEPS, edge, false), "the second matrices of the steps are missing");
            wrong(sums_of(edge, (row + 1) % ROWS, 0..STEPS, depth, false), "another row was handed over");
        }
    }

    #[test]
    fn wrong_sums_of_a_kept_factor_are_seen() {
        for (edge, subgroup) in [8, 16].into_iter().flat_map(|edge| (0..=ROWS).map(move |subgroup| (edge, subgroup))) {
            let check =
                |found: &[f32]| are_sums(edge, |row, column| expected(edge, subgroup, ROWS, row, column), found);
            let own = subgroup % ROWS;
            assert_eq!(check(&kept(edge, STEPS, own, false)), Ok(()), "right sums are refused");
            let wrong = |sums: Vec<f32>, what: &str| assert!(check(&sums).is_err(), "{what}");
            wrong(kept(edge, STEPS, own, true), "w is read by columns");
            wrong(kept(edge, STEPS, (own + 1) % ROWS, false), "the factor is another subgroup's");
            for step in 0..STEPS {
                wrong(kept(edge, step, own, false), "the factor was loaded after a later step");
            }
        }
    }

    #[test]
    fn a_refused_shape_is_named_with_the_reason() {
        let shape = MatrixShape::square(16, MatrixType::F16, MatrixType::F32);
        let refused = RefusedMatrix { shape, reason: "expected 3, found 4".to_owned() };
        let text = "matrix units 16x16x16 f16 to f32 are listed but not used: expected 3, found 4";
        assert_eq!(refused.to_string(), text);
    }

    #[test]
    fn every_subgroup_must_store_its_sums() {
        let (least, batch) = (8, 128);
        let subgroups = INVOCATIONS / least;
        let stored = |size: f32, stores: u32, total: f32| {
            let sums = (0..PAIRS).flat_map(|pair| {
                let mut all = vec![0.0; (subgroups * batch) as usize];
                let each = (0..stores).flat_map(|subgroup| match pair {
                    ROWS => kept(8, STEPS, subgroup % ROWS, false),
                    row => sums_of(8, row, 0..STEPS, 16, false),
                });
                let each: Vec<f32> = each.collect();
                all[..each.len()].copy_from_slice(&each);
                all
            });
            sums.chain([size, total, 0.0, 0.0]).collect::<Vec<f32>>()
        };
        let found = |sums: &[f32]| subgroup_of(8, subgroups, sums);
        let refused = |sums: &[f32], why: &str| {
            let reason = found(sums).expect_err(why);
            assert!(reason.contains(why), "no {why} in: {reason}");
        };
        refused(&stored(0.0, 0, TOTAL), "expected a power of two as the size of subgroups, found 0");
        assert_eq!(found(&stored(32.0, 8, TOTAL)), Ok(32));
        refused(&stored(32.0, 8, TOTAL - 1.0), "expected a sum of 32640 over all, found 32639");
        refused(&stored(16.0, 8, TOTAL), "subgroup 8, matrices 0: expected");
        assert_eq!(found(&stored(4.0, 32, TOTAL)), Ok(4), "there is room for half of them");
        for size in [f32::NAN, 0.0, 33.0, 512.0] {
            refused(&stored(size, 32, TOTAL), "as the size of subgroups");
        }
        let mut one_is_wrong = stored(8.0, 32, TOTAL);
        *one_is_wrong.iter_mut().nth_back(4).expect("it has sums") += 1.0;
        refused(&one_is_wrong, "subgroup 31, matrices 4: expected");
        refused(&one_is_wrong, "in row 7, column 15");
        refused(&one_is_wrong, "; 0 more are wrong");
    }

    /// wgpu validates the form that a device uses when it opens; this is for those that no device here uses.
    #[test]
    fn every_form_of_the_shader_is_valid() {
        use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
        let forms = [8, 16].into_iter().flat_map(|edge| [None, Some(32)].map(|size| (edge, size)));
        for (edge, size, wide) in forms.flat_map(|(edge, size)| [false, true].map(|wide| (edge, size, wide))) {
            let text = shader(edge, 8, size, wide);
            let module = wgpu::naga::front::wgsl::parse_str(&text).expect("it parses");
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
            let valid = validator.validate(&module);
            assert!(valid.is_ok(), "edge {edge}, size {size:?}, wide {wide}: {valid:?}");
            let (always, each) = workgroup_bytes(edge);
            let laid_out = |ty| module.types[ty].inner.size(module.to_ctx());
            let shared = module.global_variables.iter().filter(|v| v.1.space == wgpu::naga::AddressSpace::WorkGroup);
            let used: u32 = shared.map(|(_, variable)| laid_out(variable.ty)).sum();
            assert_eq!(used, always + 8 * each, "workgroup memory, edge {edge}, wide {wide}");
        }
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

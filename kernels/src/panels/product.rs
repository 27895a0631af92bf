//! Products with panels, divided into tasks for threads. A task is a range of rows times a range of panels.

use super::tile::{PanelPart, ROWS, STRETCH, Strip};
use super::{Left, PANEL, Panel, Panels, Values, grain};
use crate::cpu::{Epilogue, Threads, with_simd};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// The elements of a product, of which several threads write disjoint blocks of columns.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    first: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

/// The place of a block of the product.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) y: &'a Shared<'a>,
    /// Index of the first element of the block.
    pub(super) at: usize,
    /// Elements from the beginning of one row to that of the next.
    pub(super) stride: usize,
}

#[expect(unsafe_code, reason = "blocks of columns interleave in memory, so they are no slices of their own")]
// SAFETY: elements are reached only by `piece`, whose caller guarantees that pieces do not overlap while they exist.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// Returns the elements `at..at + len`.
    ///
    /// # Safety
    /// No other piece that contains one of these elements may exist at the same time, on any thread.
    ///
    /// # Panics
    /// If the elements are not all inside the product.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "tasks write pieces that do not overlap")]
    #[inline(always)]
    pub(super) unsafe fn piece(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.len, "elements {at}..{} of {}", at + len, self.len);
        // SAFETY: the elements are inside the slice, which stays borrowed for as long as `self` exists, and the caller
        // guarantees that no other piece contains them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
}

/// Computes `y = left * weights`, `[left.rows, weights.cols]`, and applies the epilogue to `y` if there is one.
///
/// # Panics
/// If `y` or `left` is too short, which is a bug of the calling kernel.
pub(crate) fn multiply(
    y: &mut [f32],
    left: Left<'_>,
    weights: Panels<'_>,
    epilogue: Option<Epilogue<'_>>,
    threads: Threads,
) {
    let y = Shared::new(y);
    in_tasks(left.rows, weights, weights.count(), threads, |rows, panels| {
        for panel in panels {
            let values = weights.panel(panel, panel + 1);
            let at = rows.start * weights.cols + panel * PANEL;
            block(Target { y: &y, at, stride: weights.cols }, left.slice_rows(&rows), values);
            let Some(epilogue) = epilogue else { continue };
            with_simd(
                #[inline(always)]
                || {
                    for i in rows.clone() {
                        let at = i * weights.cols + panel * PANEL;
                        #[expect(unsafe_code, reason = "columns of a row that belong to this task")]
                        // SAFETY: no other task has these rows and panels, and this task has one piece at a time.
                        let y = unsafe { y.piece(at, values.cols) };
                        epilogue.row(y, weights.cols, i, panel * PANEL);
                    }
                },
            );
        }
    });
}

/// Computes `y = left * weights` on the calling thread. Rows of `y` begin `stride` elements apart.
///
/// # Panics
/// If `y` or `left` is too short, which is a bug of the calling kernel.
pub(crate) fn multiply_strided(y: &mut [f32], stride: usize, left: Left<'_>, weights: Panels<'_>) {
    let y = Shared::new(y);
    for panel in 0..weights.count() {
        block(Target { y: &y, at: panel * PANEL, stride }, left, weights.panel(panel, panel + 1));
    }
}

/// Computes two products with the two halves of the columns of `weights` and combines them into `y`,
/// `[left.rows, weights.cols / 2]`.
///
/// `gate(y, gates, col)` combines a piece of a row of `y`, which holds the first product and begins at column `col`,
/// with the second product at the same columns. `gates` is scratch memory.
///
/// # Panics
/// If half of the columns are not a multiple of [`PANEL`], or if `y` or `left` is too short: bugs of the calling
/// kernel.
pub(crate) fn multiply_gated(
    y: &mut [f32],
    left: Left<'_>,
    weights: Panels<'_>,
    gate: impl Fn(&mut [f32], &mut [f32], usize) + Copy + Sync,
) {
    let cols = weights.cols / 2;
    assert!(cols.is_multiple_of(PANEL), "{cols} columns are not a multiple of {PANEL}");
    let y = Shared::new(y);
    in_tasks(left.rows, weights, cols / PANEL, Threads::All, |rows, panels| {
        let (left, mut gates) = (left.slice_rows(&rows), vec![0.0; rows.len() * PANEL]);
        for panel in panels {
            let gate_panel = panel + cols / PANEL;
            // The first product goes straight to its place: the memory of `y` is fetched while the product runs, and
            // not by a pass that does little else.
            let values = Target { y: &y, at: rows.start * cols + panel * PANEL, stride: cols };
            block(values, left, weights.panel(panel, gate_panel));
            let target = Target { y: &Shared::new(&mut gates), at: 0, stride: PANEL };
            block(target, left, weights.panel(gate_panel, panel + 1));
            with_simd(
                #[inline(always)]
                || {
                    for (i, gates) in rows.clone().zip(gates.chunks_exact_mut(PANEL)) {
                        #[expect(unsafe_code, reason = "columns of a row that belong to this task")]
                        // SAFETY: no other task has these rows and panels, and this task has one piece at a time.
                        let y = unsafe { y.piece(i * cols + panel * PANEL, PANEL) };
                        gate(y, gates, panel * PANEL);
                    }
                },
            );
        }
    });
}

/// Divides `rows` rows and the first `panels` panels of `weights` into tasks, and runs `task(rows, panels)` for each,
/// on all threads if the product is large enough.
fn in_tasks(
    rows: usize,
    weights: Panels<'_>,
    panels: usize,
    threads: Threads,
    task: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    // Weights of a task that stay in a core's own cache while the task's rows pass by.
    const CACHED: usize = 1 << 17;
    // Rows of a task: enough that reading the weights costs little beside the product, few enough to balance threads.
    const TASK: usize = 32 * ROWS;
    let most = rows.div_ceil(rows.div_ceil(TASK).max(1)).next_multiple_of(ROWS);
    let chunks = rows.div_ceil(most.max(1));
    // With one chunk of rows, no task reads the weights of another: one panel per task keeps the last task short.
    let group = if chunks <= 1 { 1 } else { (CACHED / (PANEL * weights.k.max(1))).clamp(1, panels.max(1)) };
    let groups = panels.div_ceil(group);
    let task = |index: usize| {
        let (first, group_at) = (index / groups * most, index % groups * group);
        task(first..(first + most).min(rows), group_at..(group_at + group).min(panels));
    };
    let tasks = chunks * groups;
    // Fewer multiply-accumulates than this are not worth waking the other threads (measured on two cores).
    const PARALLEL_FROM: usize = 1 << 18;
    if threads == Threads::All && rows * weights.k * weights.cols >= PARALLEL_FROM {
        // Tasks with the same weights are neighbours, so that a thread continues with the weights in its cache. rayon
        // may split down to single tasks, so that no thread waits for several tasks of another.
        (0..tasks).into_par_iter().with_max_len(1).for_each(|i| task(i % chunks * groups + i / chunks));
    } else {
        (0..tasks).for_each(task);
    }
}

/// Computes the product of some rows with one panel.
fn block(target: Target<'_>, left: Left<'_>, panel: Panel<'_>) {
    // A part of `k` at a time, so that a panel, or some of its grains, stays in a core's own cache from one tile of
    // rows to the next. Smaller parts move sums to memory and back more often: with vectors of eight, 256 was a tenth
    // slower.
    const OWN: usize = 1280;
    let Panel { values, width, cols, k: depth } = panel;
    let grain = grain(width);
    let parts = depth.div_ceil(OWN).max(1);
    let step = depth.div_ceil(parts).next_multiple_of(STRETCH);
    for first in (0..depth).step_by(step.max(1)) {
        let k = first..(first + step).min(depth);
        let (left, accumulate) = (left.skip_k(first), first > 0);
        match values {
            Values::Floats { panel, next } => {
                // The next part of the first grain or, after the last part, the beginning of the next panel.
                let next = if k.end < depth { &panel[grain * k.end..grain * depth] } else { next };
                let next = &next[..next.len().min(grain * k.len())];
                let panel = PanelPart { values: panel, width, depth, grain, k, next };
                pulp::Arch::new().dispatch(Strip { left, panel, target, cols, accumulate });
            }
            Values::Narrow(panel) => panel.widened(grain, depth, k.clone(), |panel| {
                let (k, depth) = (0..k.len(), k.len());
                let panel = PanelPart { values: panel, width, depth, grain, k, next: &[] };
                pulp::Arch::new().dispatch(Strip { left, panel, target, cols, accumulate });
            }),
        }
    }
}

/// Computes columns `first..first + width` of `y = left * weights` on the calling thread. Rows of `y` begin `stride`
/// elements apart. The weights are one panel of floats without padding, given with its width and `k`.
///
/// # Panics
/// If `y`, `left` or the weights are too short, which is a bug of the calling kernel.
pub(crate) fn multiply_part(
    y: &mut [f32],
    stride: usize,
    first: usize,
    left: Left<'_>,
    (panel, width, k): (&[f32], usize, usize),
) {
    let values = Values::Floats { panel: &panel[..width * k], next: &[] };
    block(Target { y: &Shared::new(y), at: first, stride }, left, Panel { values, width, cols: width, k });
}

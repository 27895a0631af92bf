//! Products with panels, in tasks for threads: some rows and some panels each.

use super::tile::{ROWS, STRETCH, Strip};
use super::{Left, PANEL, Panel, Panels, Values, grain};
use crate::cpu::{Epilogue, Threads, with_simd};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// The elements of a product, whose blocks of columns threads write.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    first: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "blocks of columns interleave in memory, so they are no slices of their own")]
// SAFETY: whoever calls `piece` is the only one to have these elements while the piece is there.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// Some of the elements.
    ///
    /// # Safety
    /// No other piece with any of them may be there at the same time, on whatever thread.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "as above: tasks write pieces that do not overlap")]
    #[inline(always)]
    pub(super) unsafe fn piece(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.len, "elements {at}..{} of {}", at + len, self.len);
        // SAFETY: inside of the slice, which is borrowed for as long as this is there, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(at), len) }
    }
}

/// `y = left * weights`, finished by `epilogue` if there is one; rows of `y` are as long as `weights` has columns.
///
/// # Panics
/// If `y` or `left` is too short: bugs of the calling kernel.
pub(crate) fn multiply(
    y: &mut [f32],
    left: Left<'_>,
    weights: Panels<'_>,
    epilogue: Option<(&Epilogue<'_>, usize)>,
    threads: Threads,
) {
    let y = Shared::new(y);
    in_tasks(left.rows, weights, weights.count(), threads, |rows, panels| {
        for panel in panels {
            let values = weights.panel(panel, panel + 1);
            let at = rows.start * weights.cols + panel * PANEL;
            block((&y, at, weights.cols), left, rows.clone(), (values, weights.k));
            let Some((epilogue, row)) = epilogue else { continue };
            with_simd(
                #[inline(always)]
                || {
                    for i in rows.clone() {
                        let at = i * weights.cols + panel * PANEL;
                        #[expect(unsafe_code, reason = "columns of a row that belong to this task")]
                        // SAFETY: a task has its rows and panels to itself, and one piece at a time.
                        let y = unsafe { y.piece(at, values.cols) };
                        epilogue.row(y, weights.cols, row + i, panel * PANEL);
                    }
                },
            );
        }
    });
}

/// `y = left * weights` by one thread, where rows of `y` are `stride` apart.
///
/// # Panics
/// If `y` or `left` is too short: bugs of the calling kernel.
pub(crate) fn multiply_strided(y: &mut [f32], stride: usize, left: Left<'_>, weights: Panels<'_>) {
    let y = Shared::new(y);
    for panel in 0..weights.count() {
        let values = weights.panel(panel, panel + 1);
        block((&y, panel * PANEL, stride), left, 0..left.rows, (values, weights.k));
    }
}

/// Two products of as many columns, which are whole panels, side by side in `weights`; `gate` makes a piece of a row of `y`
/// of the two, from a column on.
///
/// # Panics
/// If `y` or `left` is too short, or the columns are no panels: bugs of the calling kernel.
pub(crate) fn multiply_gated(
    y: &mut [f32],
    left: Left<'_>,
    weights: Panels<'_>,
    gate: impl Fn(&mut [f32], (&[f32], &[f32]), usize) + Copy + Sync,
) {
    let cols = weights.cols / 2;
    assert!(cols.is_multiple_of(PANEL), "{cols} columns are no panels");
    let y = Shared::new(y);
    in_tasks(left.rows, weights, cols / PANEL, Threads::All, |rows, panels| {
        let (mut a, mut g) = (vec![0.0; rows.len() * PANEL], vec![0.0; rows.len() * PANEL]);
        for panel in panels {
            let gate_panel = panel + cols / PANEL;
            for (y, panel, next) in [(&mut a, panel, gate_panel), (&mut g, gate_panel, panel + 1)] {
                let values = weights.panel(panel, next);
                block((&Shared::new(y), 0, PANEL), left, rows.clone(), (values, weights.k));
            }
            with_simd(
                #[inline(always)]
                || {
                    for (i, halves) in rows.clone().zip(a.chunks_exact(PANEL).zip(g.chunks_exact(PANEL))) {
                        #[expect(unsafe_code, reason = "columns of a row that belong to this task")]
                        // SAFETY: a task has its rows and panels to itself, and one piece at a time.
                        let y = unsafe { y.piece(i * cols + panel * PANEL, PANEL) };
                        gate(y, halves, panel * PANEL);
                    }
                },
            );
        }
    });
}

/// Rows and panels of a product as tasks, which are some of both: `panels` of those that `weights` has.
fn in_tasks(
    rows: usize,
    weights: Panels<'_>,
    panels: usize,
    threads: Threads,
    task: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    // Values of weights that stay in a core's own cache while all rows of a task pass by.
    const CACHED: usize = 1 << 17;
    // Rows of a task: enough that reading the weights for them is little, few enough that tasks come out even.
    const TASK: usize = 32 * ROWS;
    let most = rows.div_ceil(rows.div_ceil(TASK).max(1)).next_multiple_of(ROWS);
    let chunks = rows.div_ceil(most.max(1));
    // Weights that one task alone reads need not stay: one panel each, so that no thread waits long for another's last task.
    let group = if chunks <= 1 { 1 } else { (CACHED / (PANEL * weights.k.max(1))).clamp(1, panels.max(1)) };
    let groups = panels.div_ceil(group);
    let task = |index: usize| {
        let (first, group_at) = (index / groups * most, index % groups * group);
        task(first..(first + most).min(rows), group_at..(group_at + group).min(panels));
    };
    let tasks = chunks * groups;
    // Below this many multiply-accumulates waking the other threads costs more than it saves (measured on two cores).
    const PARALLEL_FROM: usize = 1 << 18;
    if threads == Threads::All && rows * weights.k * weights.cols >= PARALLEL_FROM {
        // Tasks with the same weights are neighbours, so that a thread goes on with those it has in its cache.
        // Each by itself, so that no thread waits for several of another's.
        (0..tasks).into_par_iter().with_max_len(1).for_each(|i| task(i % chunks * groups + i / chunks));
    } else {
        (0..tasks).for_each(task);
    }
}

/// These rows of a product at the columns of a panel of `k`: where the result is, and how far apart its rows are.
fn block(
    (y, at, y_stride): (&Shared<'_>, usize, usize),
    left: Left<'_>,
    rows: Range<usize>,
    (Panel { values, width, cols }, k): (Panel<'_>, usize),
) {
    let strip = Strip {
        left: &left.values[rows.start * left.stride..],
        stride: left.stride,
        rows: rows.len(),
        k: 0..k,
        panel: &[],
        width,
        depth: k,
        grain: grain(width),
        next: &[],
        y,
        at,
        y_stride,
        cols,
        accumulate: false,
    };
    in_parts(strip, values);
}

/// Of `k` at a time what keeps a panel in a core's own cache, or some of its grains, between one tile and the next. More
/// often than that, sums would go to memory and back: with vectors of eight every 256 was a tenth slower.
fn in_parts(strip: Strip<'_>, values: Values<'_>) {
    const OWN: usize = 1280;
    let Strip { grain, depth, .. } = strip;
    let parts = depth.div_ceil(OWN).max(1);
    let step = depth.div_ceil(parts).next_multiple_of(STRETCH);
    for first in (0..depth).step_by(step.max(1)) {
        let k = first..(first + step).min(depth);
        let part = Strip { left: &strip.left[first..], accumulate: first > 0, ..strip.clone() };
        match values {
            Values::Floats(panel, next) => {
                // The next part of the first grain, or what comes after the panel, which begins like it.
                let next = if k.end < depth { &panel[grain * k.end..grain * depth] } else { next };
                let next = &next[..next.len().min(grain * k.len())];
                pulp::Arch::new().dispatch(Strip { k, panel, next, ..part });
            }
            Values::Int8(panel) => panel.widened(grain, depth, k.clone(), |panel| {
                pulp::Arch::new().dispatch(Strip { k: 0..k.len(), panel, depth: k.len(), ..part });
            }),
        }
    }
}

/// `y = left * weights` at columns `first..first + width` of a `y` whose rows are `stride` apart, by one thread; the
/// weights are one panel, given with its width and `k`.
///
/// # Panics
/// If `y`, `left` or the weights are too short: bugs of the calling kernel.
pub(crate) fn multiply_part(
    y: &mut [f32],
    stride: usize,
    first: usize,
    left: Left<'_>,
    (panel, width, k): (&[f32], usize, usize),
) {
    let panel = Panel { values: Values::Floats(&panel[..width * k], &[]), width, cols: width };
    block((&Shared::new(y), first, stride), left, 0..left.rows, (panel, k));
}

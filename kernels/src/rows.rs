//! What kernels that work row by row share, and others of the kind may need: sums, the loop over rows on the CPU, test
//! cases and shapes.
//!
//! `shaders/common/rows.wgsl` is no counterpart of this: it is the left factor of a product.

use crate::cpu::{rows_per_task, with_simd};
use crate::kernel::{Case, Fill, Kernel};
use rayon::prelude::*;

/// Returns the sum of `f` over a row. It has 32 partial sums, so that it vectorises and stays accurate.
#[inline(always)]
pub(crate) fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 32];
    let chunks = row.chunks_exact(32);
    let rest = chunks.remainder().iter().map(|v| f(*v)).sum::<f32>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += f(*v));
    }
    rest + lanes.iter().sum::<f32>()
}

/// Calls `each` with every row of the input and its row of the output, on all threads, in tasks of about 64 KiB. Input and
/// output are given with the length of their rows. `each` is compiled for the widest vectors, see [`with_simd`]: it must
/// be `inline(always)`.
#[inline(always)]
pub(crate) fn for_rows(
    (x, x_len): (&[f32], usize),
    (y, y_len): (&mut [f32], usize),
    each: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let rows = rows_per_task(x_len);
    y.par_chunks_mut(rows * y_len).zip(x.par_chunks(rows * x_len)).for_each(|(y, x)| {
        with_simd(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(y_len).zip(x.chunks_exact(x_len)) {
                    each(x, y);
                }
            },
        );
    });
}

/// Test cases of kernels that work row by row. `of(rows, c)` makes the kernel.
pub(crate) fn row_cases<K: Kernel + 'static>(of: impl Fn(usize, usize) -> K) -> Vec<Case> {
    vec![
        Case::new(of(1, 1)),
        Case::new(of(3, 2)),
        Case::new(of(5, 7)),
        Case::new(of(77, 37)),
        // One vec4 less than a workgroup reads at once, exactly as many, one more, and a last vec4 with padding.
        Case::new(of(2, 1020)),
        Case::new(of(3, 1024)),
        Case::new(of(2, 1028)),
        Case::new(of(2, 1026)),
        // A small variance, which shows a wrong eps; then means far from zero, which show padding in the mean or
        // variance.
        Case::new(of(4, 33)).fill("x", Fill::Normal(0.0, 3e-3)),
        Case::new(of(4, 41)).fill("x", Fill::Normal(1000.0, 1.0)),
        Case::new(of(3, 643)).fill("x", Fill::Normal(-300.0, 0.05)),
        Case::new(of(2, 29)).fill("x", Fill::Constant(1000.1)),
        Case::new(of(2, 640)).fill("x", Fill::Constant(0.1)),
        Case::new(of(2, 12)).fill("x", Fill::Constant(0.0)),
        // More rows than workgroups along one axis of the grid.
        Case::new(of(65_537, 1)),
    ]
}

/// Shapes of the model: the transformers at 16x16 and at 32x32, and the text encoder. `of(rows, c)` makes the kernel.
pub(crate) fn row_shapes<K: Kernel + 'static>(of: impl Fn(usize, usize) -> K) -> Vec<Case> {
    [(256, 1024), (1024, 640), (77, 768)].into_iter().map(|(rows, c)| Case::new(of(rows, c))).collect()
}

//! The CPU form of any convolution: blocks of output pixels become rows of a matrix of patches, which is multiplied by
//! the weights. If the prologue changes the input as it is read, the input lines under one block at a time are prepared
//! in scratch memory.

use super::Conv2d;
use crate::cpu::{Epilogue, Threads, rows_per_task};
use crate::panels::{Left, Panels, multiply};
use crate::prologue::Rows;
use rayon::prelude::*;
use std::ops::Range;

/// Computes the convolution, except for its moments.
pub(super) fn run(conv: &Conv2d, x: &Rows<'_>, w: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32]) {
    let w = Panels::new(w, conv.co, conv.patch_len());
    if conv.is_pointwise() {
        return pointwise(conv, x, w, epilogue, y);
    }
    // Both limits are measured, in values of the matrix of patches. 2 MiB per thread stay in its L2 cache and are
    // enough work for smaller weights; reading larger weights again pays only for blocks of 16 MiB, which all threads
    // share.
    const OWN: usize = 1 << 19;
    const SHARED: usize = 1 << 22;
    if conv.co * conv.patch_len() > OWN {
        one_by_one(conv, (SHARED / conv.patch_len()).max(1), x, w, epilogue, y);
    } else {
        let fair = conv.pixels().div_ceil(4 * rayon::current_num_threads());
        side_by_side(conv, (OWN / conv.patch_len()).clamp(1, fair), x, w, epilogue, y);
    }
}

/// Computes a 1x1 convolution, where `x` itself is the matrix of patches.
fn pointwise(conv: &Conv2d, x: &Rows<'_>, w: Panels<'_>, epilogue: &Epilogue<'_>, y: &mut [f32]) {
    x.in_large_blocks(|first, x| {
        let rows = x.len() / conv.ci;
        let y = &mut y[first * conv.co..][..rows * conv.co];
        multiply(y, Left::new(x, rows, conv.ci), w, Some(epilogue.at_row(first)), Threads::All);
    });
}

/// Returns the input lines, counted over all images, under these output pixels of all images.
fn lines_under(conv: &Conv2d, pixels: &Range<usize>) -> Range<usize> {
    let (oh, ow) = conv.out_size();
    let under = |pixel: usize, tap: usize| {
        let (image, oy) = (pixel / (oh * ow), pixel / ow % oh);
        let line = (oy * conv.stride + tap).saturating_sub(conv.pad_start) / conv.upsample;
        image * conv.h + line.min(conv.h - 1)
    };
    under(pixels.start, 0)..under(pixels.end - 1, conv.kernel - 1) + 1
}

/// Returns the first of the input lines under these output pixels, counted over all images, and the values of these
/// lines, in memory or prepared in `scratch`.
fn ready<'a>(
    conv: &Conv2d,
    x: &Rows<'a>,
    pixels: &Range<usize>,
    scratch: &'a mut Vec<f32>,
    threads: Threads,
) -> (usize, &'a [f32]) {
    let lines = lines_under(conv, pixels);
    (lines.start, x.ready(lines.start * conv.w..lines.end * conv.w, scratch, threads))
}

/// Copies the input values under the kernel, for consecutive output pixels from `first` on, into the rows of `patches`.
/// The lines of `x` are those from line `top` on, counted over all images.
fn gather(conv: &Conv2d, (top, x): (usize, &[f32]), first: usize, patches: &mut [f32]) {
    let (oh, ow) = conv.out_size();
    let len = conv.w * conv.ci;
    for (i, patch) in patches.chunks_exact_mut(conv.patch_len()).enumerate() {
        let (image, oy, ox) = ((first + i) / (oh * ow), (first + i) / ow % oh, (first + i) % ow);
        for (ky, row) in patch.chunks_exact_mut(conv.kernel * conv.ci).enumerate() {
            let Some(iy) = conv.input_at(oy, ky, conv.h) else {
                row.fill(0.0);
                continue;
            };
            let line = &x[(image * conv.h + iy - top) * len..][..len];
            for (kx, tap) in row.chunks_exact_mut(conv.ci).enumerate() {
                match conv.input_at(ox, kx, conv.w) {
                    Some(ix) => tap.copy_from_slice(&line[ix * conv.ci..][..conv.ci]),
                    None => tap.fill(0.0),
                }
            }
        }
    }
}

/// Computes one block of `block` pixels after the other, with all threads on each: the weights are read once per block.
fn one_by_one(conv: &Conv2d, block: usize, x: &Rows<'_>, w: Panels<'_>, epilogue: &Epilogue<'_>, y: &mut [f32]) {
    let len = conv.patch_len();
    let mut patches = vec![0.0; block.min(conv.pixels()) * len];
    let mut scratch = Vec::new();
    for (i, y) in y.chunks_mut(block * conv.co).enumerate() {
        let rows = y.len() / conv.co;
        let x = ready(conv, x, &(i * block..i * block + rows), &mut scratch, Threads::All);
        let patches = &mut patches[..rows * len];
        let task = rows_per_task(len);
        let gather = |(j, part): (usize, &mut [f32])| gather(conv, x, i * block + j * task, part);
        patches.par_chunks_mut(task * len).enumerate().for_each(gather);
        multiply(y, Left::new(patches, rows, len), w, Some(epilogue.at_row(i * block)), Threads::All);
    }
}

/// Computes blocks of `block` pixels in parallel, with one thread on each.
///
/// Input lines that must be prepared are prepared for several blocks together, because the outer lines of a block are
/// under its neighbours too.
pub(super) fn side_by_side(
    conv: &Conv2d,
    block: usize,
    x: &Rows<'_>,
    w: Panels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
) {
    // Output lines for which the input is prepared together.
    const LINES: usize = 16;
    let len = conv.patch_len();
    let (_, ow) = conv.out_size();
    let task = if x.are_plain() { block } else { block.max(LINES * ow) };
    let buffers = || (Vec::new(), vec![0.0; block * len]);
    y.par_chunks_mut(task * conv.co).enumerate().for_each_init(buffers, |(scratch, patches), (i, y)| {
        let pixels = i * task..i * task + y.len() / conv.co;
        let x = ready(conv, x, &pixels, scratch, Threads::One);
        for (j, y) in y.chunks_mut(block * conv.co).enumerate() {
            let (first, rows) = (i * task + j * block, y.len() / conv.co);
            let patches = &mut patches[..rows * len];
            gather(conv, x, first, patches);
            multiply(y, Left::new(patches, rows, len), w, Some(epilogue.at_row(first)), Threads::One);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::cases::plain;
    use crate::kernel::{Activation, Kernel};
    use crate::prologue::{Norm, Prologue, PrologueInputs};

    #[test]
    fn every_block_size_gives_the_same_result() {
        let norm = Norm::Channels { images: 2, activation: Activation::Relu };
        for prologue in [Prologue::default(), Prologue { joined: 1, norm, f32_input: false }] {
            let conv = Conv2d { bias: true, shift: true, residual: true, stride: 2, prologue, ..plain(2, 9, 7, 5, 6) };
            let whole = |len: usize| (0..len).map(|i| ((i * 7919) % 9) as f32 - 4.0).collect::<Vec<f32>>();
            let inputs: Vec<Vec<f32>> =
                conv.operands().iter().map(|o| o.host.pack(&o.shape, whole(o.host_len()))).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let mut want = vec![0.0; conv.pixels() * conv.co];
            conv.cpu(&inputs[..7], &mut [&mut want, &mut []]);
            let &[x, w, bias, shift, residual, x2, norm, ..] = &inputs[..] else { panic!("seven operands are read") };
            let w = Panels::new(w, conv.co, conv.patch_len());
            let inputs = PrologueInputs { x, x2, norm, ..Default::default() };
            let x = conv.prologue.rows(2 * 9 * 7, conv.ci, inputs);
            let rows_per_image = conv.pixels() / conv.n;
            let epilogue =
                Epilogue { bias, shift, rows_per_image, activation: Activation::None, residual, first_row: 0 };
            for block in [1, 7, conv.pixels(), 1000] {
                let mut y = vec![f32::NAN; want.len()];
                one_by_one(&conv, block, &x, w, &epilogue, &mut y);
                assert_eq!(y, want, "one by one, {block} pixels each");
                y.fill(f32::NAN);
                side_by_side(&conv, block, &x, w, &epilogue, &mut y);
                assert_eq!(y, want, "side by side, {block} pixels each");
            }
        }
    }
}

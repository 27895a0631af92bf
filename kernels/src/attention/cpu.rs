//! The CPU form of attention: keys and values of a head are laid out as panels once, and a block of queries is two products
//! with them.

use super::{Attention, Phi};
use crate::cpu::{activate, exp, with_simd};
use crate::kernel::Activation;
use crate::panels::{self, Aligned, Left, Panels};
use rayon::prelude::*;

/// Most queries of a task, whose scores stay in a core's own cache.
const BLOCK: usize = 48;

/// Keys and values as panels, those of a head after those of the one before, image by image.
struct Packed {
    keys: Aligned,
    values: Aligned,
}

/// Every query's result.
pub(super) fn run(attention: &Attention, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let channels = attention.channels();
    // As many to each task as there can be, in whole tiles of a product.
    let block_len = attention.queries.div_ceil(attention.queries.div_ceil(BLOCK)).next_multiple_of(panels::ROWS);
    let (per_image, per_block) = (attention.queries * channels, block_len * channels);
    let packed = pack(attention, k, v);
    let images = y.par_chunks_mut(per_image).zip(q.par_chunks(per_image)).enumerate();
    images.for_each(|(image, (y, q))| {
        let blocks = y.par_chunks_mut(per_block).zip(q.par_chunks(per_block)).enumerate();
        blocks.for_each_init(Vec::new, |scores, (block, (y, q))| {
            attend(attention, &packed, image, block * block_len, q, y, scores);
        });
    });
}

fn pack(attention: &Attention, k: &[f32], v: &[f32]) -> Packed {
    let (keys, head_dim, channels) = (attention.keys, attention.head_dim, attention.channels());
    let heads = attention.n * attention.heads;
    // A key is a column of the first product, and a line of the second.
    let lens = [panels::packed_len(keys, head_dim), panels::packed_len(head_dim, keys)];
    let [mut of_keys, mut of_values] = lens.map(|len| Aligned::zeros(heads * len).expect("as much as there is of `k`"));
    let pairs = of_keys.par_chunks_mut(lens[0].max(1)).zip(of_values.par_chunks_mut(lens[1].max(1)));
    pairs.enumerate().for_each(|(head, (of_keys, of_values))| {
        let first = head / attention.heads * keys * channels + head % attention.heads * head_dim;
        let (k, v) = (&k[first..], &v[first..]);
        panels::pack_into(of_keys, keys, head_dim, |key, d, out| {
            out.copy_from_slice(&k[key * channels + d..][..out.len()]);
        });
        panels::pack_lines(of_values, head_dim, keys, |key| &v[key * channels..][..head_dim]);
    });
    Packed { keys: of_keys, values: of_values }
}

fn of_head(packed: &Aligned, head: usize, cols: usize, k: usize) -> Panels<'_> {
    let len = panels::packed_len(cols, k);
    Panels::new(&packed[head * len..][..len], cols, k)
}

/// The queries of a block, which begin at `first` of their image.
fn attend(
    attention: &Attention,
    packed: &Packed,
    image: usize,
    first: usize,
    q: &[f32],
    y: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let &Attention { keys, heads, head_dim, phi, .. } = attention;
    let (channels, scale) = (attention.channels(), attention.scale() as f32);
    let rows = y.len() / channels;
    scores.resize(rows * keys, 0.0);
    for head in 0..heads {
        let at = head * head_dim;
        let queries = Left::new(&q[at..], rows, channels);
        panels::multiply_strided(scores, keys, queries, of_head(&packed.keys, image * heads + head, keys, head_dim));
        with_simd(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                    let (seen, masked) = scores.split_at_mut(attention.seen(first + row));
                    masked.fill(0.0);
                    match phi {
                        Phi::Relu => seen.iter_mut().for_each(|s| *s = activate(Activation::Relu, *s) * scale),
                        Phi::Softmax => softmax(seen, scale),
                    }
                }
            },
        );
        let weights = Left::new(scores, rows, keys);
        panels::multiply_strided(
            &mut y[at..],
            channels,
            weights,
            of_head(&packed.values, image * heads + head, head_dim, keys),
        );
    }
}

/// `exp(scale s) / sum of exp(scale s)` in place, of a positive scale.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let highest = fold(scores, f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = exp((*s - highest) * scale));
    let norm = 1.0 / fold(scores, 0.0, |a, b| a + b);
    scores.iter_mut().for_each(|s| *s *= norm);
}

/// A fold in sixteen lanes, which is what lets it vectorise.
#[inline(always)]
fn fold(values: &[f32], start: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = combine(*lane, *value));
    }
    lanes.iter().chain(rest).fold(start, |a, b| combine(a, *b))
}

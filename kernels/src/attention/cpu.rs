//! The CPU form of attention.
//!
//! Keys and values of every head are packed into panels once. A task then computes a block of queries: per head, one
//! product with the keys gives the scores, which become weights in place, and one product with the values gives the
//! result.

use super::{Attention, Phi};
use crate::cpu::{activate, exp, with_simd};
use crate::kernel::Activation;
use crate::panels::{self, Aligned, Left, Panels};
use rayon::prelude::*;

/// Number of queries of a task at most, if tiles of rows divide it, so that their scores stay in a core's own cache.
const BLOCK: usize = 48;

/// The keys and values of all heads as panels.
struct Packed<'a> {
    attention: &'a Attention,
    /// Keys and values of each head, image by image.
    heads: Vec<(Aligned, Aligned)>,
}

/// Computes the attention of all queries.
pub(super) fn run(attention: &Attention, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let packed = Packed::new(attention, k, v);
    blocks(attention, y).into_par_iter().for_each_init(Vec::new, |scores, block| packed.attend(block, q, scores));
}

/// Block of queries, the work of one task.
struct Block<'a> {
    /// Index of the image.
    image: usize,
    /// Index of the first query in the image.
    first: usize,
    /// `[queries of the block, channels]`
    y: &'a mut [f32],
}

/// Divides the queries into blocks. Of each image they differ by one tile of rows at most, and those of all images come
/// out even between the threads where there are enough rows.
fn blocks<'a>(attention: &Attention, y: &'a mut [f32]) -> Vec<Block<'a>> {
    let &Attention { n, queries, .. } = attention;
    let (channels, tiles) = (attention.channels(), queries.div_ceil(panels::ROWS));
    let fewest = (n * queries.div_ceil(BLOCK)).next_multiple_of(rayon::current_num_threads());
    let per_image = fewest.div_ceil(n.max(1)).min(tiles);
    let mut blocks = Vec::with_capacity(n * per_image);
    for (image, mut rest) in y.chunks_mut((queries * channels).max(1)).enumerate() {
        for i in 0..per_image {
            let [first, end] = [i, i + 1].map(|i| queries.min(i * tiles / per_image * panels::ROWS));
            let (y, others) = std::mem::take(&mut rest).split_at_mut((end - first) * channels);
            blocks.push(Block { image, first, y });
            rest = others;
        }
    }
    blocks
}

impl<'a> Packed<'a> {
    /// Packs keys and values, on all threads.
    fn new(attention: &'a Attention, k: &[f32], v: &[f32]) -> Self {
        let (keys, head_dim, channels) = (attention.keys, attention.head_dim, attention.channels());
        // A key is a column of the first product, and a position of `k` in the second.
        let (keys_len, values_len) = (panels::packed_len(keys, head_dim), panels::packed_len(head_dim, keys));
        let zeros = |len| Aligned::zeros(len).expect("the panels take about as much memory as the operands");
        let of_head = |head: usize| {
            let first = head / attention.heads * keys * channels + head % attention.heads * head_dim;
            let (k, v) = (&k[first..], &v[first..]);
            let (mut of_keys, mut of_values) = (zeros(keys_len), zeros(values_len));
            panels::pack_into(&mut of_keys, keys, head_dim, |key, d, out| {
                out.copy_from_slice(&k[key * channels + d..][..out.len()]);
            });
            panels::pack_lines(&mut of_values, head_dim, keys, |key| &v[key * channels..][..head_dim]);
            (of_keys, of_values)
        };
        Self { attention, heads: (0..attention.n * attention.heads).into_par_iter().map(of_head).collect() }
    }

    /// Computes a block of queries. `q` holds those of all images, and `scores` is scratch memory.
    fn attend(&self, Block { image, first, y }: Block<'_>, q: &[f32], scores: &mut Vec<f32>) {
        let &Attention { queries, keys, heads, head_dim, phi, .. } = self.attention;
        let (channels, scale) = (self.attention.channels(), self.attention.scale() as f32);
        let (rows, q) = (y.len() / channels, &q[(image * queries + first) * channels..]);
        scores.resize(rows * keys, 0.0);
        for head in 0..heads {
            let (of_keys, of_values) = &self.heads[image * heads + head];
            let at = head * head_dim;
            let of_keys = Panels::floats(of_keys, keys, head_dim);
            panels::multiply_strided(scores, keys, Left::new(&q[at..], rows, channels), of_keys);
            with_simd(
                #[inline(always)]
                || {
                    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                        let (seen, masked) = scores.split_at_mut(self.attention.seen(first + row));
                        masked.fill(0.0);
                        match phi {
                            Phi::Relu => seen.iter_mut().for_each(|s| *s = activate(Activation::Relu, *s) * scale),
                            Phi::Softmax => softmax(seen, scale),
                        }
                    }
                },
            );
            let of_values = Panels::floats(of_values, head_dim, keys);
            panels::multiply_strided(&mut y[at..], channels, Left::new(scores, rows, keys), of_values);
        }
    }
}

/// Replaces every score `s` by `exp(scale s)`, divided by their sum. `scale` is positive.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let highest = fold(scores, f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = exp((*s - highest) * scale));
    let norm = 1.0 / fold(scores, 0.0, |a, b| a + b);
    scores.iter_mut().for_each(|s| *s *= norm);
}

/// Folds the values in sixteen lanes, so that the loop vectorises, then folds the lanes.
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

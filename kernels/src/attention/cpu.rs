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

/// Largest number of queries of a task, so that their scores stay in a core's own cache.
const BLOCK: usize = 48;

/// The keys and values of all heads as panels, image by image and head by head.
struct Packed<'a> {
    attention: &'a Attention,
    keys: Aligned,
    values: Aligned,
}

/// Computes the attention of all queries.
pub(super) fn run(attention: &Attention, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32]) {
    let channels = attention.channels();
    // Tasks of equal length, in whole tiles of a product.
    let block_len = attention.queries.div_ceil(attention.queries.div_ceil(BLOCK)).next_multiple_of(panels::ROWS);
    let (per_image, per_block) = (attention.queries * channels, block_len * channels);
    let packed = Packed::new(attention, k, v);
    let images = y.par_chunks_mut(per_image).zip(q.par_chunks(per_image)).enumerate();
    images.for_each(|(image, (y, q))| {
        let blocks = y.par_chunks_mut(per_block).zip(q.par_chunks(per_block)).enumerate();
        blocks.for_each_init(Vec::new, |scores, (block, (y, q))| {
            packed.attend(image, block * block_len, q, y, scores);
        });
    });
}

impl<'a> Packed<'a> {
    /// Packs keys and values, on all threads.
    fn new(attention: &'a Attention, k: &[f32], v: &[f32]) -> Self {
        let (keys, head_dim, channels) = (attention.keys, attention.head_dim, attention.channels());
        let heads = attention.n * attention.heads;
        // A key is a column of the first product, and a position of `k` in the second.
        let (keys_len, values_len) = (panels::packed_len(keys, head_dim), panels::packed_len(head_dim, keys));
        let [mut of_keys, mut of_values] = [keys_len, values_len]
            .map(|len| Aligned::zeros(heads * len).expect("the panels take about as much memory as the operands"));
        let pairs = of_keys.par_chunks_mut(keys_len.max(1)).zip(of_values.par_chunks_mut(values_len.max(1)));
        pairs.enumerate().for_each(|(head, (of_keys, of_values))| {
            let first = head / attention.heads * keys * channels + head % attention.heads * head_dim;
            let (k, v) = (&k[first..], &v[first..]);
            panels::pack_into(of_keys, keys, head_dim, |key, d, out| {
                out.copy_from_slice(&k[key * channels + d..][..out.len()]);
            });
            panels::pack_lines(of_values, head_dim, keys, |key| &v[key * channels..][..head_dim]);
        });
        Self { attention, keys: of_keys, values: of_values }
    }

    /// Returns the keys of a head, which is counted over all images.
    fn keys(&self, head: usize) -> Panels<'_> {
        head_panels(&self.keys, head, self.attention.keys, self.attention.head_dim)
    }

    /// Returns the values of a head, which is counted over all images.
    fn values(&self, head: usize) -> Panels<'_> {
        head_panels(&self.values, head, self.attention.head_dim, self.attention.keys)
    }

    /// Computes a block of queries that begins at query `first` of its image. `scores` is scratch memory.
    fn attend(&self, image: usize, first: usize, q: &[f32], y: &mut [f32], scores: &mut Vec<f32>) {
        let &Attention { keys, heads, head_dim, phi, .. } = self.attention;
        let (channels, scale) = (self.attention.channels(), self.attention.scale() as f32);
        let rows = y.len() / channels;
        scores.resize(rows * keys, 0.0);
        for head in 0..heads {
            let (at, of_all) = (head * head_dim, image * heads + head);
            panels::multiply_strided(scores, keys, Left::new(&q[at..], rows, channels), self.keys(of_all));
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
            panels::multiply_strided(&mut y[at..], channels, Left::new(scores, rows, keys), self.values(of_all));
        }
    }
}

/// Returns the panels of one head, `cols` columns of `k`.
fn head_panels(packed: &Aligned, head: usize, cols: usize, k: usize) -> Panels<'_> {
    let len = panels::packed_len(cols, k);
    Panels::floats(&packed[head * len..][..len], cols, k)
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

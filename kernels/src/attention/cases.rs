//! Cases of the attention kernel: problems that expose mistakes, the shapes of the model, and random problems.

use super::{Attention, Phi, Tiling};
use crate::draw::Draw;
use crate::kernel::{Case, Fill};

pub(super) fn cases() -> Vec<Case> {
    let softmax = |n, queries, keys, heads, head_dim| Attention {
        n,
        queries,
        keys,
        heads,
        head_dim,
        phi: Phi::Softmax,
        causal: false,
        shared: false,
    };
    let relu =
        |n, queries, keys, heads, head_dim| Attention { phi: Phi::Relu, ..softmax(n, queries, keys, heads, head_dim) };
    let shared = |attention| Attention { shared: true, ..attention };
    let causal = |attention| Attention { causal: true, ..attention };
    let mut cases = vec![
        // Cross-attention to a text; a single key, for which softmax returns its value.
        Case::new(softmax(1, 19, 77, 2, 64)),
        Case::new(relu(2, 20, 77, 3, 64)),
        Case::new(softmax(2, 5, 1, 2, 8)),
        Case::new(shared(relu(1, 1, 1, 1, 4))),
        // The causal mask of the text encoder; with more keys than queries, and with more queries than keys.
        Case::new(causal(softmax(1, 77, 77, 1, 64))),
        Case::new(causal(relu(2, 35, 35, 2, 12))),
        Case::new(causal(shared(softmax(1, 7, 21, 1, 16)))),
        Case::new(causal(softmax(1, 40, 9, 1, 132))),
        // Scores far beyond the range of `exp`: all equal, then far apart but exact.
        Case::new(softmax(1, 3, 40, 1, 64)).fill("q", Fill::Constant(16.0)).fill("k", Fill::Constant(16.0)),
        Case::new(softmax(1, 3, 40, 1, 64)).fill("q", Fill::Constant(-16.0)).fill("k", Fill::Constant(16.0)),
        Case::new(softmax(1, 17, 70, 1, 64)).fill("q", Fill::Constant(32.0)).fill("k", Fill::Integers),
        Case::new(causal(softmax(1, 9, 9, 1, 256))).fill("q", Fill::Constant(-64.0)).fill("k", Fill::Integers),
        // No positive score: ReLU gives zero.
        Case::new(relu(1, 5, 33, 2, 16)).fill("q", Fill::Constant(-1.0)).fill("k", Fill::Constant(1.0)),
        // Every divisor is a power of two: exact.
        Case::new(relu(1, 18, 8, 2, 4)).integers(),
        Case::new(shared(relu(1, 5, 8, 1, 16))).integers(),
    ];
    // Exactly a tile, and one query or key more or less, for every kind of tiling.
    for head_dim in [4, 32, 64, 72, 128, 132, 260, 484, 500, 512] {
        let tile = Tiling::of(head_dim);
        cases.push(Case::new(softmax(1, tile.queries, tile.keys, 2, head_dim)));
        cases.push(Case::new(relu(2, tile.queries - 1, tile.keys + 1, 1, head_dim)));
        cases.push(Case::new(shared(softmax(1, tile.queries + 1, 2 * tile.keys - 1, 1, head_dim))));
        cases.push(Case::new(shared(relu(1, 13, 23, 1, head_dim))));
    }
    cases
}

pub(super) fn model_shapes() -> Vec<Case> {
    let attention = Attention {
        n: 1,
        queries: 256,
        keys: 256,
        heads: 16,
        head_dim: 64,
        phi: Phi::Relu,
        causal: false,
        shared: true,
    };
    let cross = Attention { keys: 77, shared: false, ..attention.clone() };
    let text = Attention { queries: 77, heads: 12, phi: Phi::Softmax, causal: true, ..cross.clone() };
    vec![
        // mid_block: attn1 with ReLU and with softmax, attn2. up_blocks.0: attn2. The text encoder.
        Case::new(attention.clone()),
        Case::new(Attention { phi: Phi::Softmax, ..attention }),
        Case::new(cross.clone()),
        Case::new(Attention { queries: 1024, heads: 10, ..cross }),
        Case::new(text),
    ]
}

pub(super) fn random(draw: &mut Draw<'_>) -> Case {
    let head_dim = draw.of(&[4, 8, 32, 64, 72, 128, 132, 512]);
    let tile = Tiling::of(head_dim);
    Case::new(Attention {
        n: draw.of(&[1, 2]),
        queries: draw.size(tile.queries),
        keys: draw.of(&[1, 7, tile.keys.max(2) - 1, tile.keys, tile.keys + 1, 77]),
        heads: draw.of(&[1, 2, 3]),
        head_dim,
        phi: draw.of(&[Phi::Relu, Phi::Softmax]),
        causal: draw.flip(),
        shared: draw.flip(),
    })
}

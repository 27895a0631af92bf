//! Test cases of the linear layer, and the shapes of the model.

use super::Linear;
use crate::draw::Draw;
use crate::kernel::{Activation, Case, Fill};
use crate::prologue::{Norm, Prologue};
use crate::tile::{Moments, TILE};

pub(super) fn cases() -> Vec<Case> {
    let plain = |rows, k, cols| Linear { rows, k, cols, ..Linear::default() };
    let full = |rows, k, cols| Linear { bias: true, residual: true, ..plain(rows, k, cols) };
    let mut cases = vec![
        Case::new(plain(1, 1, 1)),
        Case::new(full(63, 17, 65)),
        Case::new(full(64, 16, 64)),
        Case::new(full(65, 15, 63)),
        Case::new(full(2, 130, 7)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(plain(67, 29, 131)).integers(),
        Case::new(full(5, 40, 72)).integers(),
    ];
    for activation in Activation::ALL {
        cases.push(Case::new(Linear { activation, ..full(9, 20, 12) }).fill("bias", Fill::Normal(-1.0, 4.0)));
    }
    let reading =
        |linear: Linear, joined, norm| Linear { prologue: Prologue { joined, norm, ..Prologue::default() }, ..linear };
    let channels = |images, activation| Norm::Channels { images, activation };
    cases.extend([
        // An input of two tensors: the second of any width, the border inside a step of `k` and at its end.
        Case::new(reading(full(65, 23, 70), 3, Norm::None)),
        Case::new(reading(full(7, 36, 5), 20, Norm::None)).integers(),
        // Normalised inputs, whose padding must stay zero; a tile that contains rows of several images.
        Case::new(reading(full(66, 17, 65), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        // Statistics of several blocks of channels, the last of which is not full.
        Case::new(reading(plain(5, 330, 3), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(full(66, 18, 63), 0, channels(3, Activation::Silu))),
        Case::new(reading(plain(130, 40, 9), 0, channels(2, Activation::None))).integers(),
        Case::new(reading(full(12, 21, 64), 9, channels(1, Activation::Relu))),
        // Images of whole tiles of rows.
        Case::new(reading(full(384, 21, 36), 5, channels(3, Activation::Silu))).fill("norm", Fill::Normal(3.0, 1.0)),
        // An f32 `x`, alone and beside an `x2` in the stored type.
        Case::new(Linear { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..full(67, 21, 64) }),
        Case::new(Linear {
            prologue: Prologue { joined: 9, f32_input: true, norm: channels(1, Activation::Silu) },
            ..full(12, 21, 64)
        }),
        // With moments: tiles of rows and columns that are not full.
        Case::new(Linear { moments: Moments::Channels, ..full(63, 17, 65) }),
        Case::new(Linear { moments: Moments::Channels, activation: Activation::Silu, ..full(193, 16, 6) }),
        Case::new(Linear {
            moments: Moments::Channels,
            ..reading(full(128, 20, 67), 8, channels(2, Activation::Silu))
        }),
        // With moments of rows: one block, several, and a last one that is not full; a padding of three, one and none.
        Case::new(Linear { moments: Moments::Rows, ..full(65, 17, 31) }),
        Case::new(Linear { moments: Moments::Rows, activation: Activation::Relu, ..full(18, 16, 195) })
            .fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Linear { moments: Moments::Rows, residual: false, ..reading(full(130, 140, 128), 0, Norm::LAYER) }),
        // More rows than a block of the CPU form.
        Case::new(reading(full(257, 4097, 3), 0, Norm::LAYER)),
    ]);
    cases.extend(cases_of_layers());
    cases
}

/// Cases of several layers: with and without rows of zeros behind each, also rows that a further tile holds.
fn cases_of_layers() -> Vec<Case> {
    let layers = |layers, rows, k, cols| Linear { rows, k, cols, layers, ..Linear::default() };
    let reading =
        |linear: Linear, joined, norm| Linear { prologue: Prologue { joined, norm, ..Prologue::default() }, ..linear };
    let channels = Norm::Channels { images: 2, activation: Activation::Silu };
    vec![
        Case::new(layers(2, 1, 1, 4)),
        Case::new(layers(3, 64, 16, 64)),
        Case::new(Linear { bias: true, ..layers(3, 63, 17, 68) }),
        Case::new(Linear { bias: true, activation: Activation::Silu, ..layers(5, 65, 15, 36) }),
        Case::new(Linear { bias: true, ..layers(2, 67, 29, 132) }).integers(),
        Case::new(Linear { bias: true, ..layers(7, 1, 40, 20) }),
        Case::new(reading(layers(2, 66, 21, 64), 0, Norm::LAYER)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(reading(layers(2, 9, 330, 8), 0, Norm::LAYER)),
        Case::new(reading(Linear { bias: true, ..layers(2, 12, 19, 12) }, 7, channels)),
        // Images of whole tiles, beside tiles of zeros alone.
        Case::new(reading(Linear { bias: true, ..layers(2, 32, 9, 12) }, 0, channels)),
        Case::new(Linear { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..layers(2, 9, 17, 64) }),
        // More rows than a block of the CPU form.
        Case::new(reading(layers(2, 257, 4097, 4), 0, Norm::LAYER)),
    ]
}

pub(super) fn model_shapes() -> Vec<Case> {
    let plain = Linear { rows: 256, k: 1024, cols: 1024, ..Linear::default() };
    vec![
        // mid_block: queries; the second matrix of the feed-forward; pwconv1 and pwconv2.
        Case::new(plain.clone()),
        Case::new(Linear { k: 3072, bias: true, residual: true, ..plain.clone() }),
        Case::new(Linear { cols: 6144, bias: true, activation: Activation::Silu, ..plain.clone() }),
        Case::new(Linear { k: 6144, bias: true, residual: true, ..plain.clone() }),
        // mid_block: queries with a LayerNorm; pwconv1 with a GroupNorm.
        Case::new(Linear { prologue: Prologue { norm: Norm::LAYER, ..Prologue::default() }, ..plain.clone() }),
        Case::new(Linear {
            cols: 6144,
            bias: true,
            activation: Activation::Silu,
            prologue: Prologue {
                norm: Norm::Channels { images: 1, activation: Activation::None },
                ..Prologue::default()
            },
            ..plain.clone()
        }),
        // up_blocks.0: the shortcut of 1664 channels at 32x32, from one tensor and from two. A projection of the text
        // encoder, and one of the time.
        Case::new(Linear { rows: 1024, k: 1664, cols: 640, bias: true, ..plain.clone() }),
        Case::new(Linear {
            rows: 1024,
            k: 1664,
            cols: 640,
            bias: true,
            prologue: Prologue { joined: 640, ..Prologue::default() },
            ..plain.clone()
        }),
        Case::new(Linear { rows: 77, k: 768, cols: 768, bias: true, residual: true, ..plain.clone() }),
        Case::new(Linear { rows: 1, k: 512, bias: true, ..plain.clone() }),
        // mid_block: queries with keys and values in one. Keys and values of the text for all layers of the width. Queries,
        // keys and values of the text encoder.
        Case::new(Linear {
            layers: 2,
            prologue: Prologue { norm: Norm::LAYER, ..Prologue::default() },
            ..plain.clone()
        }),
        Case::new(Linear { rows: 77, k: 768, layers: 30, ..plain.clone() }),
        Case::new(Linear {
            rows: 77,
            k: 768,
            cols: 768,
            layers: 3,
            bias: true,
            prologue: Prologue { norm: Norm::LAYER, ..Prologue::default() },
            ..plain
        }),
    ]
}

pub(super) fn random(draw: &mut Draw<'_>) -> Case {
    let (rows, k, cols, bias) = (draw.size(TILE), draw.size(16), draw.size(TILE), draw.flip());
    if draw.flip() && draw.flip() {
        let (layers, cols, activation) = (draw.of(&[2, 3, 5]), cols.next_multiple_of(4), draw.of(&Activation::ALL));
        let prologue = Prologue::random(draw, k, &[Norm::None, Norm::LAYER]);
        return Case::new(Linear { rows, k, cols, layers, bias, activation, prologue, ..Linear::default() });
    }
    let (activation, residual) = (draw.of(&Activation::ALL), draw.flip());
    let norms = [Norm::None, Norm::LAYER, Norm::Channels { images: 1, activation: Activation::Silu }];
    let prologue = Prologue::random(draw, k, &norms);
    // With a LayerNorm, a residual and row moments it would bind more buffers than every device has.
    let by_rows = prologue.norm == Norm::LAYER;
    let moments = if !by_rows && draw.flip() {
        Moments::Channels
    } else if !(by_rows && residual) && draw.flip() {
        Moments::Rows
    } else {
        Moments::None
    };
    let exact = activation == Activation::None && prologue.norm == Norm::None && moments == Moments::None;
    let linear = Linear { rows, k, cols, bias, activation, residual, prologue, moments, layers: 1 };
    let case = Case::new(linear);
    if exact && draw.flip() { case.integers() } else { case }
}

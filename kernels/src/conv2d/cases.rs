//! Cases of the convolution: problems that expose mistakes, the shapes of the model, and random problems.

use super::{Conv2d, WinogradForm};
use crate::draw::Draw;
use crate::kernel::{Activation, Case, Fill};
use crate::prologue::{Norm, Prologue};
use crate::tile::TILE;

/// Returns a 3x3 convolution of stride 1 that keeps height and width, without bias.
pub(super) fn plain(n: usize, h: usize, w: usize, ci: usize, co: usize) -> Conv2d {
    Conv2d { n, h, w, ci, co, kernel: 3, stride: 1, pad_start: 1, pad_end: 1, upsample: 1, ..Conv2d::default() }
}

pub(super) fn cases() -> Vec<Case> {
    let full = |n, h, w, ci, co| Conv2d { bias: true, shift: true, residual: true, ..plain(n, h, w, ci, co) };
    let pointwise = |conv| Conv2d { kernel: 1, pad_start: 0, pad_end: 0, ..conv };
    let mut cases = vec![
        Case::new(plain(1, 1, 1, 1, 1)),
        Case::new(full(2, 5, 7, 3, 5)),
        // One pixel less than a tile, exactly a tile, one pixel more; likewise for channels.
        Case::new(full(1, 7, 9, 4, 63)),
        Case::new(full(1, 8, 8, 16, 64)),
        Case::new(full(1, 5, 13, 17, 65)),
        // Stride 2 with even and odd sizes; the encoder's padding, below and to the right only.
        Case::new(Conv2d { stride: 2, ..full(2, 6, 8, 5, 6) }),
        Case::new(Conv2d { stride: 2, ..full(1, 7, 9, 6, 7) }),
        Case::new(Conv2d { stride: 2, pad_start: 0, ..full(2, 8, 6, 7, 9) }),
        Case::new(Conv2d { upsample: 2, ..full(2, 3, 5, 6, 10) }),
        Case::new(Conv2d { upsample: 2, ..full(1, 8, 4, 33, 3) }),
        Case::new(pointwise(full(2, 5, 7, 11, 13))),
        Case::new(Conv2d { stride: 2, ..pointwise(full(1, 5, 7, 11, 13)) }),
        // More pixels than one block of the CPU form; a mean that exposes padding with anything but zero.
        Case::new(full(2, 31, 37, 8, 20)).fill("x", Fill::Normal(3.0, 1.0)),
        // Enough tiles and channels for Winograd's algorithm on the CPU: an odd number of rows and columns; upsampled.
        Case::new(full(2, 11, 17, 32, 40)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(Conv2d { upsample: 2, ..full(2, 7, 5, 40, 32) }).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(Conv2d { activation: Activation::Silu, ..full(1, 9, 14, 96, 64) }),
        Case::new(full(2, 11, 17, 64, 80)).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(full(1, 13, 13, 40, 32)).integers(),
        Case::new(Conv2d { upsample: 2, ..full(1, 7, 9, 32, 40) }).integers(),
        // Upsampled maps smaller than a tile, with an odd row or column, and of exactly whole tiles.
        Case::new(Conv2d { upsample: 2, ..full(1, 1, 1, 32, 48) }).integers(),
        Case::new(Conv2d { upsample: 2, ..full(2, 1, 4, 48, 32) }).integers(),
        Case::new(Conv2d { upsample: 2, ..full(2, 3, 5, 64, 80) }).integers(),
        Case::new(Conv2d { upsample: 2, ..full(1, 6, 2, 80, 64) }).integers(),
        Case::new(Conv2d { upsample: 2, ..full(1, 11, 13, 128, 64) }).fill("x", Fill::Normal(3.0, 1.0)),
        Case::new(plain(2, 9, 5, 7, 67)).integers(),
        Case::new(Conv2d { stride: 2, ..full(2, 9, 11, 9, 5) }).integers(),
        Case::new(Conv2d { upsample: 2, ..full(2, 5, 3, 5, 66) }).integers(),
    ];
    for activation in Activation::ALL {
        cases.push(Case::new(Conv2d { activation, ..full(1, 4, 6, 5, 6) }).fill("bias", Fill::Normal(-1.0, 4.0)));
    }
    let reading =
        |conv: Conv2d, joined, norm| Conv2d { prologue: Prologue { joined, norm, ..Prologue::default() }, ..conv };
    let shifted = |n, h, w, ci, co| Conv2d { residual: false, ..full(n, h, w, ci, co) };
    let channels = |images, activation| Norm::Channels { images, activation };
    cases.extend([
        // Inputs of two tensors and normalised inputs, for every CPU form. Offsets of three expose zeros of the padding
        // that are normalised.
        Case::new(reading(full(2, 5, 7, 9, 5), 5, Norm::None)).integers(),
        Case::new(reading(full(2, 9, 6, 11, 6), 0, channels(2, Activation::Silu))).fill("norm", Fill::Normal(3.0, 1.0)),
        Case::new(reading(Conv2d { upsample: 2, ..full(1, 5, 4, 6, 7) }, 2, channels(1, Activation::Relu))),
        Case::new(reading(Conv2d { stride: 2, ..full(2, 9, 5, 10, 4) }, 6, channels(2, Activation::None))).integers(),
        Case::new(reading(pointwise(full(2, 5, 7, 11, 13)), 3, channels(2, Activation::Silu))),
        // Images of whole tiles of output pixels, as many as those of the input, fewer or more.
        Case::new(reading(full(2, 8, 16, 9, 36), 5, channels(2, Activation::Silu)))
            .fill("norm", Fill::Normal(3.0, 1.0)),
        Case::new(reading(Conv2d { stride: 2, ..full(3, 31, 15, 8, 5) }, 0, channels(3, Activation::None))).integers(),
        Case::new(reading(Conv2d { upsample: 2, ..full(2, 8, 4, 8, 5) }, 0, channels(2, Activation::None))).integers(),
        // An f32 `x`, alone and beside an `x2` in the stored type.
        Case::new(Conv2d {
            prologue: Prologue { joined: 5, f32_input: true, ..Prologue::default() },
            ..full(2, 5, 7, 9, 5)
        }),
        Case::new(Conv2d { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..full(1, 9, 7, 8, 70) })
            .integers(),
        // An f32 output, for every CPU form, and with moments of values that are not rounded.
        Case::new(Conv2d { f32_output: true, ..full(2, 5, 7, 9, 5) }),
        Case::new(Conv2d { f32_output: true, ..shifted(1, 13, 11, 40, 6) }).fill("bias", Fill::Normal(3.0, 1.0)),
        Case::new(Conv2d { f32_output: true, moments: true, ..shifted(1, 9, 15, 32, 66) }),
        Case::new(reading(full(1, 40, 23, 16, 3), 8, channels(1, Activation::Silu))),
        Case::new(reading(full(2, 23, 17, 64, 40), 24, channels(2, Activation::Silu)))
            .fill("norm", Fill::Normal(3.0, 1.0)),
        Case::new(reading(full(2, 11, 17, 32, 40), 0, channels(2, Activation::Relu))).integers(),
        Case::new(reading(Conv2d { upsample: 2, ..full(2, 9, 5, 40, 32) }, 16, channels(2, Activation::Relu)))
            .integers(),
        // Weights too large for one thread's cache: all threads work on one block.
        Case::new(reading(full(1, 3, 5, 250, 240), 2, channels(1, Activation::Silu))),
        // Outputs with moments.
        Case::new(Conv2d { moments: true, ..full(1, 7, 9, 5, 65) }),
        Case::new(Conv2d { moments: true, ..full(2, 8, 16, 32, 40) }).fill("bias", Fill::Normal(30.0, 1.0)),
        // Upsampled, by phases: one tile of a phase and image, two, and an output that is only measured as a whole.
        Case::new(Conv2d { moments: true, upsample: 2, ..full(2, 8, 8, 6, 10) }).fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Conv2d {
            moments: true,
            upsample: 2,
            ..reading(shifted(2, 16, 8, 12, 70), 4, channels(2, Activation::Silu))
        }),
        Case::new(Conv2d { moments: true, upsample: 2, ..full(1, 5, 7, 6, 10) }),
        Case::new(Conv2d { moments: true, upsample: 2, ..full(1, 6, 32, 32, 40) })
            .fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Conv2d {
            moments: true,
            stride: 2,
            ..reading(shifted(1, 17, 17, 12, 9), 4, channels(1, Activation::Silu))
        }),
        // Maps of whole blocks for Winograd's algorithm on a GPU, of every width: one block, several across or below.
        Case::new(full(2, 24, 16, 6, 33)).integers(),
        Case::new(reading(full(2, 16, 16, 12, 40), 4, channels(2, Activation::Silu)))
            .fill("norm", Fill::Normal(3.0, 1.0)),
        Case::new(Conv2d { moments: true, ..full(2, 8, 32, 9, 36) }).fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Conv2d { moments: true, ..full(2, 4, 192, 5, 34) }).fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(Conv2d { moments: true, ..full(1, 16, 16, 8, 6) }).fill("bias", Fill::Normal(30.0, 1.0)),
        Case::new(reading(shifted(1, 6, 64, 6, 4), 2, channels(1, Activation::Relu))).integers(),
        Case::new(Conv2d { prologue: Prologue { f32_input: true, ..Prologue::default() }, ..full(1, 4, 32, 8, 70) }),
    ]);
    cases
}

pub(super) fn model_shapes() -> Vec<Case> {
    let with_bias = |size, ci, co| Conv2d { bias: true, ..plain(1, size, size, ci, co) };
    let norm = Norm::Channels { images: 1, activation: Activation::Silu };
    let normalised = Prologue { norm, ..Prologue::default() };
    let joined = Prologue { joined: 320, ..Prologue::default() };
    let f32_input = Prologue { f32_input: true, ..Prologue::default() };
    let measured = |conv: Conv2d| Case::new(Conv2d { moments: true, ..conv });
    let reading = |prologue: &Prologue, conv: Conv2d| Conv2d { prologue: prologue.clone(), ..conv };
    let added = |size, c| Conv2d { residual: true, ..with_bias(size, c, c) };
    let upsampled = |size, c| Conv2d { upsample: 2, ..with_bias(size, c, c) };
    // As the plan runs them, see `plan --list`: with the moments that a norm behind them needs, and with a norm before
    // the UNet's conv_out alone.
    vec![
        // UNet: conv_in; both convolutions of a residual block; the first convolutions of the last two blocks, whose
        // input is two tensors; the samplers; conv_out.
        measured(reading(&f32_input, with_bias(64, 8, 320))),
        measured(Conv2d { shift: true, ..with_bias(64, 320, 320) }),
        Case::new(added(64, 320)),
        measured(added(64, 320)),
        measured(reading(&joined, Conv2d { shift: true, ..with_bias(64, 960, 320) })),
        measured(reading(&joined, Conv2d { shift: true, ..with_bias(64, 640, 320) })),
        Case::new(Conv2d { stride: 2, ..with_bias(64, 320, 320) }),
        Case::new(Conv2d { stride: 2, ..with_bias(32, 640, 640) }),
        Case::new(upsampled(16, 1024)),
        Case::new(upsampled(32, 640)),
        Case::new(reading(&normalised, Conv2d { f32_output: true, ..with_bias(64, 320, 8) })),
        // Decoder: conv_in; a residual block of every width; those in which channels become fewer; the upsamplers;
        // conv_out.
        measured(with_bias(64, 8, 256)),
        measured(added(64, 256)),
        measured(added(128, 256)),
        measured(added(256, 128)),
        measured(added(512, 64)),
        measured(with_bias(256, 256, 128)),
        measured(with_bias(512, 128, 64)),
        measured(upsampled(64, 256)),
        measured(upsampled(128, 256)),
        measured(upsampled(256, 128)),
        Case::new(with_bias(512, 64, 3)),
    ]
}

pub(super) fn random(draw: &mut Draw<'_>) -> Case {
    let (kernel, upsample) = (draw.of(&[3, 1]), draw.of(&[1, 2]));
    let (pad_start, pad_end) = draw.of(&[(1, 1), (0, 1), (0, 0)]);
    let least = usize::saturating_sub(kernel, pad_start + pad_end).max(1);
    let (n, ci) = (draw.of(&[1, 2]), draw.channels());
    let norms = [Norm::None, Norm::Channels { images: n, activation: Activation::Silu }];
    let residual = draw.flip();
    let conv = Conv2d {
        kernel,
        stride: draw.of(&[1, 2]),
        pad_start,
        pad_end,
        upsample,
        bias: draw.flip(),
        shift: draw.flip(),
        activation: draw.of(&Activation::ALL),
        residual,
        prologue: Prologue::random(draw, ci, &norms),
        moments: n == 1 && !residual && draw.flip(),
        f32_output: draw.flip(),
        ..plain(n, draw.size(4).max(least), draw.size(8).max(least), ci, draw.size(TILE))
    };
    // Few maps have blocks for Winograd's algorithm on a GPU, so these are drawn on purpose.
    let (h, w) = draw.of(&[(conv.h, conv.w), (conv.h, conv.w), (8, 16), (4, 32), (2, 64), (4, 128)]);
    let conv = match (h, w) == (conv.h, conv.w) {
        true => conv,
        false => Conv2d { h, w, kernel: 3, stride: 1, pad_start: 1, pad_end: 1, upsample: 1, ..conv },
    };
    let plain = conv.activation == Activation::None && conv.prologue.norm == Norm::None && !conv.moments;
    let exact = plain && WinogradForm::of(&conv).is_none_or(WinogradForm::is_exact) && draw.flip();
    if exact { Case::new(conv).integers() } else { Case::new(conv) }
}

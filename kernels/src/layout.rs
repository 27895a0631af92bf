//! Layouts of weights in device memory. Weights are packed once, when they are loaded.

use crate::conv2d::{self, WinogradForm};
use crate::kernel::{Shape, elements};
use crate::panels::{self, Format};
use rayon::prelude::*;

/// Layout of an operand in memory, relative to the orientation in PyTorch's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Row by row, as in the file.
    Rows,
    /// Convolution weight `[co, ci, kh, kw]`, packed as `[co, kh, kw, ci]`.
    Taps,
    /// 3x3 convolution weight of an upsampled input, summed to `[4 * co, 2, 2, ci]` as `conv2d/phases.rs` says. GPU only.
    Phases,
    /// Depthwise convolution weight `[c, 1, kh, kw]`, packed as `[kh, kw, c]`.
    DepthwiseTaps,
    /// Matrix `[cols, k]`, or a convolution weight read as such a matrix, in panels of columns (see `panels`): so many
    /// matrices of equal size, one below the other, each in panels of its own. CPU only.
    Panels {
        /// Number of matrices.
        layers: usize,
        /// How weights are stored. An f32 element holds several of fewer bits.
        format: Format,
    },
    /// Convolution weight as a matrix `[kh * kw * co, ci]` in panels, so that the columns of each tap lie together. CPU
    /// only.
    TapPanels,
    /// 3x3 convolution weight, transformed for a form of Winograd's algorithm. CPU only.
    Winograd(WinogradForm),
}

impl Layout {
    /// Returns the layout of `layers` matrices in panels of floats.
    pub const fn panels(layers: usize) -> Self {
        Self::Panels { layers, format: Format::Floats }
    }

    /// Returns the shape of the packed form of a tensor of `shape`.
    pub fn packed_shape(self, shape: &[usize]) -> Shape {
        match (self, shape) {
            (Self::Taps, &[co, ci, kh, kw]) => vec![co, kh, kw, ci],
            (Self::Phases, &[co, ci, ..]) => vec![4 * co, 2, 2, ci],
            (Self::DepthwiseTaps, &[c, _, kh, kw]) => vec![kh, kw, c],
            (Self::Panels { layers, format }, &[cols, ref k @ ..]) => {
                vec![layers * format.packed_len(cols / layers, elements(k))]
            }
            (Self::TapPanels, &[co, ci, kh, kw]) => vec![(kh * kw * co).next_multiple_of(panels::STEP), ci],
            (Self::Winograd(form), &[co, ci, ..]) => {
                vec![co.next_multiple_of(panels::STEP), form.places() * form.places(), ci]
            }
            _ => shape.to_vec(),
        }
    }

    /// Packs `data` from the file's orientation into this layout. The result is dense, without the padding of rows.
    pub fn pack(self, shape: &[usize], data: Vec<f32>) -> Vec<f32> {
        let (outer, inner, taps) = match (self, shape) {
            (Self::Taps, &[co, ci, kh, kw]) => (co, ci, kh * kw),
            (Self::DepthwiseTaps, &[c, _, kh, kw]) => (1, c, kh * kw),
            (Self::Panels { layers: 1, format }, &[cols, k]) => return format.pack(cols, k, &data),
            (Self::Panels { layers, format }, &[cols, k]) => {
                let cols = cols / layers;
                let layers = data.chunks_exact((cols * k).max(1)).map(|data| format.pack(cols, k, data));
                return layers.collect::<Vec<_>>().concat();
            }
            (Self::Panels { .. }, &[co, ci, kh, kw]) => {
                let taps = Self::Taps.pack(shape, data);
                return self.pack(&[co, kh * kw * ci], taps);
            }
            (Self::TapPanels, &[co, ci, kh, kw]) => {
                let (taps, data) = (kh * kw, &data);
                return panels::pack(taps * co, ci, |col, at, out| {
                    let (tap, o) = (col / co, col % co);
                    out.iter_mut().enumerate().for_each(|(i, out)| *out = data[(o * ci + at + i) * taps + tap]);
                });
            }
            (Self::Phases, &[_, ci, ..]) => return conv2d::phase_weights(ci, &data),
            (Self::Winograd(form), &[co, ci, ..]) => return conv2d::transformed_weights(form, ci, co, &data),
            _ => return data,
        };
        let mut packed = vec![0.0; outer * inner * taps];
        let blocks =
            packed.par_chunks_exact_mut((inner * taps).max(1)).zip(data.par_chunks_exact((inner * taps).max(1)));
        blocks.for_each(|(to, from)| {
            for (tap, to) in to.chunks_exact_mut(inner).enumerate() {
                to.iter_mut().zip(from.chunks_exact(taps)).for_each(|(to, from)| *to = from[tap]);
            }
        });
        packed
    }

    /// Returns the layout of each of the matrices that this layout packs by themselves.
    pub fn of_layer(self) -> Self {
        match self {
            Self::Panels { format, .. } => Self::Panels { layers: 1, format },
            whole => whole,
        }
    }

    /// Returns the number of rows of the first axis that are packed together. If a tensor is cut after a multiple of
    /// this number of rows, its packed form is the packed parts one after the other. `None` if a tensor cannot be cut
    /// in this way.
    pub fn rows_together(self) -> Option<usize> {
        match self {
            Self::Rows | Self::Taps | Self::Phases => Some(1),
            Self::Panels { layers: 1, .. } | Self::Winograd(_) => Some(panels::PANEL),
            Self::Panels { .. } | Self::DepthwiseTaps | Self::TapPanels => None,
        }
    }
}

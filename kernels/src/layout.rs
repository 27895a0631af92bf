//! How weights lie in memory on a device: packed once, when they are loaded.

use crate::kernel::{Shape, elements};
use crate::{conv2d, panels};

/// How an operand lies in memory, compared with the orientation of PyTorch's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// As in the file, row by row.
    Rows,
    /// A convolution weight `[co, ci, kh, kw]`, packed to `[co, kh, kw, ci]`.
    Taps,
    /// A depthwise weight `[c, 1, kh, kw]`, packed to `[kh, kw, c]`.
    DepthwiseTaps,
    /// A matrix `[cols, k]`, or a convolution weight as one, as panels of columns: see `panels`. For the CPU.
    Panels,
    /// The same in 8 bits, four weights to an element: see `panels::int8`. For the CPU.
    Int8Panels,
    /// A convolution weight as a matrix `[kh * kw * co, ci]` in panels: every tap's columns by themselves. For the CPU.
    TapPanels,
    /// A 3x3 convolution weight transformed for Winograd's algorithm, with so many places along an edge. For the CPU.
    Winograd(usize),
}

impl Layout {
    /// Shape of the packed form of a tensor of `shape`.
    pub fn packed_shape(self, shape: &[usize]) -> Shape {
        match (self, shape) {
            (Self::Taps, &[co, ci, kh, kw]) => vec![co, kh, kw, ci],
            (Self::DepthwiseTaps, &[c, _, kh, kw]) => vec![kh, kw, c],
            (Self::Panels, &[cols, ref k @ ..]) => vec![cols.next_multiple_of(panels::STEP), elements(k)],
            (Self::Int8Panels, &[cols, ref k @ ..]) => vec![panels::int8::packed_len(cols, elements(k))],
            (Self::TapPanels, &[co, ci, kh, kw]) => vec![(kh * kw * co).next_multiple_of(panels::STEP), ci],
            (Self::Winograd(edge), &[co, ci, ..]) => vec![co.next_multiple_of(panels::STEP), edge * edge, ci],
            _ => shape.to_vec(),
        }
    }

    /// Packs `data`, which lies as in the file, into the layout the kernel reads. Dense: without padding.
    pub fn pack(self, shape: &[usize], data: Vec<f32>) -> Vec<f32> {
        let (outer, inner, taps) = match (self, shape) {
            (Self::Taps, &[co, ci, kh, kw]) => (co, ci, kh * kw),
            (Self::DepthwiseTaps, &[c, _, kh, kw]) => (1, c, kh * kw),
            (Self::Panels, &[cols, k]) => return panels::pack_matrix(cols, k, &data),
            (Self::Int8Panels, &[cols, k]) => return panels::int8::pack_matrix(cols, k, &data),
            (Self::Panels | Self::Int8Panels, &[co, ci, kh, kw]) => {
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
            (Self::Winograd(edge), &[co, ci, ..]) => return conv2d::transformed_weights(edge, ci, co, &data),
            _ => return data,
        };
        let mut packed = Vec::with_capacity(data.len());
        for o in 0..outer {
            for tap in 0..taps {
                packed.extend((0..inner).map(|i| data[(o * inner + i) * taps + tap]));
            }
        }
        packed
    }

    /// What [`pack`](Self::pack) made of a tensor of `shape`, as in the file again.
    ///
    /// # Panics
    /// If the layout is one of the CPU's.
    pub fn unpack(self, shape: &[usize], packed: Vec<f32>) -> Vec<f32> {
        match (self, shape) {
            (Self::Taps, &[co, ci, kh, kw]) => self.pack(&[co, kh * kw, ci, 1], packed),
            (Self::DepthwiseTaps, &[c, _, kh, kw]) => self.pack(&[kh * kw, 1, c, 1], packed),
            (Self::Panels | Self::Int8Panels | Self::TapPanels | Self::Winograd(_), _) => {
                panic!("{self:?} of {shape:?} is not read back")
            }
            _ => packed,
        }
    }

    /// Rows of the first axis that are packed together: a packed tensor is its parts of a multiple of so many, one after
    /// the other. None if it has no such parts.
    pub fn rows_together(self) -> Option<usize> {
        match self {
            Self::Rows | Self::Taps => Some(1),
            Self::Panels | Self::Int8Panels | Self::Winograd(_) => Some(panels::PANEL),
            Self::DepthwiseTaps | Self::TapPanels => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_can_be_unpacked() {
        for (shape, layout) in [
            (&[5, 7][..], Layout::Rows),
            (&[5, 7, 3, 3], Layout::Taps),
            (&[5, 7, 1, 3], Layout::Taps),
            (&[6, 1, 3, 3], Layout::DepthwiseTaps),
        ] {
            let values: Vec<f32> = (0_u16..).take(elements(shape)).map(f32::from).collect();
            assert_eq!(layout.unpack(shape, layout.pack(shape, values.clone())), values, "{layout:?}");
        }
    }
}

//! Convolutions by Winograd's algorithm on a GPU, in blocks of the map: `shaders/common/gemm_winograd.wgsl`.
//!
//! The form is F(2x2, 3x3): 4 multiplications per output and input channel instead of 9. A workgroup transforms inputs
//! and weights as it reads them, so weights are packed as for every other variant, and nothing transformed takes
//! memory. Matrix units multiply faster than the ordinary units of a device transform, so where there are such units
//! their tiles are preferred.
//!
//! A workgroup computes a block of 128 pixels. Blocks divide the map, and are such that a workgroup has all pixels of
//! whole tiles of moments: those are 64 consecutive pixels, which are half of a block as wide as the map, or a line of
//! a block 64 wide.

use super::Conv2d;
use crate::tile::Tile;

/// Number of pixels of a block.
const PIXELS: usize = 128;

/// Width of blocks of which several may lie side by side.
const WIDEST: usize = 64;

impl Conv2d {
    /// Returns the width of a block, or `None` if the convolution is not computed in blocks.
    pub(super) fn block_width(&self) -> Option<usize> {
        let width = if self.w.is_multiple_of(WIDEST) { WIDEST } else { self.w };
        let divides = matches!(width, 16 | 32 | WIDEST) && self.h.is_multiple_of(PIXELS / width);
        (self.keeps_size() && self.upsample == 1 && divides).then_some(width)
    }

    /// Returns what the shader takes as further constants if it computes `tile` as a block.
    pub(super) fn block_constants(&self, tile: &Tile) -> Vec<(&'static str, u32)> {
        match self.block_width() {
            Some(width) if tile.is_block() => {
                vec![("BLOCK_W", u32::try_from(width).expect("64 or less")), ("LONG_LINES", (width == WIDEST).into())]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Conv2d;
    use crate::conv2d::cases::plain;
    use crate::kernel::Kernel;
    use crate::variant::tests::with_matrices;
    use crate::variant::{Machine, choose};

    #[test]
    fn blocks_divide_the_map() {
        for (h, w, width) in [
            (8, 16, Some(16)),
            (4, 32, Some(32)),
            (2, 64, Some(64)),
            (6, 192, Some(64)),
            (4, 16, None),
            (6, 32, None),
            (1, 64, None),
            (16, 8, None),
            (4, 96, None),
            (8, 48, None),
        ] {
            let conv = plain(2, h, w, 4, 4);
            assert_eq!(conv.block_width(), width, "{h} x {w}");
            let offered = conv.variants().iter().any(|variant| variant.name.starts_with("winograd"));
            assert_eq!(offered, width.is_some(), "{h} x {w}");
        }
        let fits = plain(1, 64, 64, 4, 4);
        for other in [
            Conv2d { upsample: 2, ..fits.clone() },
            Conv2d { stride: 2, ..fits.clone() },
            Conv2d { pad_start: 0, ..fits.clone() },
            Conv2d { kernel: 1, pad_start: 0, pad_end: 0, ..fits },
        ] {
            assert_eq!(other.block_width(), None, "{other:?}");
        }
    }

    #[test]
    fn devices_without_matrix_units_take_blocks_if_they_have_the_registers() {
        let conv = plain(1, 128, 128, 256, 256);
        let machine = Machine::PORTABLE;
        assert_eq!(choose(&conv, &machine).name, "winograd 128x32");
        let few = Machine { registers: 163, ..machine.clone() };
        assert_eq!(choose(&conv, &few).name, "128x128", "164 values are kept");
        assert!(choose(&conv, &with_matrices(32)).needs.matrix.is_some(), "matrix units are faster");
        assert_eq!(choose(&plain(1, 128, 128, 8, 256), &machine).name, "128x128", "the exchange is most of the work");
    }
}

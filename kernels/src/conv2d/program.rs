//! Programs of the convolution on a GPU.

use super::{Conv2d, phases};
use crate::kernel::{Param, Program};
use crate::names;
use crate::tile::{self, Moments, ProductEnd, Sizes, Tile};
use crate::variant::Variant;

impl Conv2d {
    /// Returns the sizes of the matrix product.
    pub(super) fn sizes(&self) -> Sizes {
        let (cols, phases) = (self.co, phases::PHASES);
        match phases::suits(self) {
            true => Sizes { rows: self.n * self.h * self.w, k: phases * self.ci, cols, phases },
            false => Sizes { rows: self.pixels(), k: self.patch_len(), cols, phases: 1 },
        }
    }

    /// Returns the variants by tiles of the product, and by blocks where those divide the map.
    pub(super) fn tile_variants(&self) -> Vec<Variant> {
        let of = |tiles| tile::variants(tiles, self.sizes(), &self.prologue, Moments::of_channels(self.moments));
        let mut variants = of(tile::SINGLE);
        if self.block_width().is_some() {
            variants.extend(of(tile::BLOCKS));
        }
        variants
    }

    /// Returns the tile of one of these variants.
    pub(super) fn tile(&self, variant: &Variant) -> Tile {
        tile::of(tile::SINGLE.iter().chain(tile::BLOCKS), variant)
    }

    /// Returns the program that computes `y` with one of the tiles.
    pub(super) fn program_of(&self, tile: &Tile) -> Program {
        let switch = |size: usize| u32::try_from(size).expect("1 to 4");
        let sizes = self.sizes();
        // A phase is a 2x2 convolution whose output has the size of its input.
        let phased = sizes.phases > 1;
        let (kernel, upsample) = if phased { (2, 1) } else { (self.kernel, self.upsample) };
        let (oh, ow) = if phased { (self.h, self.w) } else { self.out_size() };
        let end = ProductEnd {
            bias: self.bias,
            activation: self.activation,
            residual: self.residual,
            layers: 1,
            phases: sizes.phases,
            moments: Moments::of_channels(self.moments),
            f32_output: self.f32_output,
        };
        let mut constants = vec![
            ("KERNEL", switch(kernel)),
            ("STRIDE", switch(self.stride)),
            ("UPSAMPLE", switch(upsample)),
            ("HAS_SHIFT", self.shift.into()),
            ("SHIFT_IMAGE", (self.shift && self.n == 1).into()),
            ("SHIFT_IMAGES", (self.shift && self.n > 1).into()),
        ];
        constants.extend(end.constants());
        constants.extend(self.prologue.constants(tile.divides(oh * ow)));
        constants.extend(tile.constants());
        constants.extend(self.block_constants(tile));
        let mut params = vec![
            Param::size(names::FIRST_ROW_TILE, 0),
            Param::size("rows", sizes.rows),
            Param::size("h", self.h),
            Param::size("w", self.w),
            Param::size("oh", oh),
            Param::size("ow", ow),
            Param::size("ci4", self.ci.div_ceil(4)),
            Param::size("cols", self.co),
            Param::size("cols4", self.co.div_ceil(4)),
            Param::size("pad_start", self.pad_start),
        ];
        params.extend(self.prologue.params(self.n * self.h * self.w, self.ci));
        let wgsl = include_str!("../../../shaders/conv2d.wgsl");
        Program { wgsl, constants, params, grid: tile.grid_of(sizes) }
    }
}

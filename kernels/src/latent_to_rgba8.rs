//! `y = r | g << 8 | b << 16 | a << 24`: converts the decoder's output in [-1, 1] to RGBA pixels of four bytes
//! (docs/model.md, section 2.2).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `x` | `[n, h, w, 3]` | red, green, blue |
//! | `y` | `[n, h, w]` | u32, written |
//!
//! A channel `v` is clamped to [-1, 1] and becomes `(v + 1) / 2 * 255`, rounded with halves up. Alpha is 255, or 0 if
//! one of the channels is not finite, which marks a pixel that must not end up in a picture. Stores in f16 saturate at
//! 65504, so that magnitudes from there on count as not finite, whatever floats are stored in.
//!
//! * GPU: workgroups of 64 invocations, one pixel each. Non-finite values are recognised by their bits, since a shader
//!   compiler may assume that no float is NaN.
//! * CPU: tasks of 8192 pixels.

use crate::draw::Draw;
use crate::kernel::{Case, Cost, DType, Family, Fill, Kernel, Operand, Param, Program, Tolerance, grid_of, parse};
use crate::variant::Variant;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Magnitude from which a value counts as not finite: the largest of f16.
const NOT_FINITE: f32 = 65_504.0;

/// Pixels per task of the CPU form.
const BLOCK: usize = 8192;

/// Conversion of `n` images to RGBA pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rgba8 {
    /// Images.
    pub n: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "latent_to_rgba8",
    summary: "the decoder's output in [-1, 1] as pixels of four bytes",
    cases,
    model_shapes,
    random,
    parse: parse::<Rgba8>,
};

impl Rgba8 {
    /// Returns the number of pixels of all images.
    fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }
}

impl Kernel for Rgba8 {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("x", [self.n, self.h, self.w, 3]),
            Operand::write("y", [self.n, self.h, self.w]).dtype(DType::U32),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        Program {
            wgsl: include_str!("../../shaders/latent_to_rgba8.wgsl"),
            constants: vec![],
            params: vec![Param::size("pixels", self.pixels())],
            grid: grid_of(self.pixels()),
        }
    }

    fn cost(&self) -> Cost {
        Cost::elementwise(3 * self.pixels(), 5)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::EXACT
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[x] = inputs else { panic!("latent_to_rgba8 reads one operand") };
        let mut y = Vec::with_capacity(self.pixels());
        for pixel in x.chunks_exact(3) {
            let byte = |v: f64| if v.is_nan() { 0.0 } else { ((v.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0 + 0.5).floor() };
            let alpha = if pixel.iter().all(|v| v.abs() < f64::from(NOT_FINITE)) { 255.0 } else { 0.0 };
            y.push(byte(pixel[0]) + 256.0 * byte(pixel[1]) + 65_536.0 * byte(pixel[2]) + alpha * 16_777_216.0);
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[x], [y]) = (inputs, outputs) else { panic!("latent_to_rgba8 has two operands") };
        let y: &mut [u32] = bytemuck::cast_slice_mut(y);
        // `as u8` truncates, and converts NaN to zero.
        let byte = |v: f32| (v.clamp(-1.0, 1.0) * 127.5 + 128.0) as u8;
        y.par_chunks_mut(BLOCK).zip(x.par_chunks(3 * BLOCK)).for_each(|(y, x)| {
            for (y, pixel) in y.iter_mut().zip(x.chunks_exact(3)) {
                let alpha = if pixel.iter().all(|v| v.abs() < NOT_FINITE) { 255 } else { 0 };
                *y = u32::from_le_bytes([byte(pixel[0]), byte(pixel[1]), byte(pixel[2]), alpha]);
            }
        });
    }
}

fn cases() -> Vec<Case> {
    let case = |n, h, w| Case::new(Rgba8 { n, h, w }).fill("x", Fill::Normal(0.0, 0.5));
    vec![
        case(1, 1, 1),
        case(1, 7, 9),
        case(1, 8, 8),
        case(1, 5, 13),
        case(2, 11, 17),
        // Both ends of the range, and its middle, which is halfway between two bytes; then values beyond the ends.
        case(1, 9, 10).integers(),
        case(1, 6, 6).fill("x", Fill::Normal(0.0, 3.0)),
        case(1, 2, 3).fill("x", Fill::Constant(6e4)),
        case(1, 2, 3).fill("x", Fill::Constant(-6e4)),
        // The ends of f16, where stores saturate, and a value beyond them.
        case(1, 2, 3).fill("x", Fill::Constant(65_504.0)),
        case(1, 2, 3).fill("x", Fill::Constant(-65_504.0)),
        case(1, 2, 3).fill("x", Fill::Constant(1e9)),
    ]
}

fn model_shapes() -> Vec<Case> {
    vec![Case::new(Rgba8 { n: 1, h: 512, w: 512 })]
}

fn random(draw: &mut Draw<'_>) -> Case {
    let kernel = Rgba8 { n: draw.of(&[1, 2]), h: draw.size(8), w: draw.size(8) };
    // No arbitrary values: one in ten thousand is so close to a half that f32 and f64 round it differently.
    Case::new(kernel).fill("x", draw.of(&[Fill::Integers, Fill::Constant(0.3), Fill::Constant(-0.7)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_pixels_are_transparent() {
        let mut y = [1.0; 4];
        let x = [f32::NAN, 1.0, -1.0, 0.0, 0.0, f32::INFINITY, 0.0, 65_503.0, 0.0, 0.0, 65_504.0, 0.0];
        let kernel = Rgba8 { n: 1, h: 1, w: 4 };
        kernel.cpu(&[&x], &mut [&mut y]);
        let expected = [0x0000_FF00, 0x00FF_8080, 0xFF80_FF80, 0x0080_FF80];
        assert_eq!(y.map(f32::to_bits), expected, "NaN, infinity, the largest finite value, the end of f16");
        assert_eq!(kernel.reference(&[&x.map(f64::from)])[0], expected.map(f64::from), "the reference");
    }
}

//! Winograd's transforms of one line: a row or a column of a tile.
//!
//! A line of outputs is `y = A^T ((G g) * (B^T d))`, with `*` element by element: `d` are the `D` input pixels under
//! the line, `g` the three weights, and the element-wise product has `N` entries. Two-dimensional transforms apply
//! these to the rows and then to the columns of a tile.
//!
//! # Tiles of 2x2 and of 4x4
//!
//! The matrices follow from the points at which the polynomials of `d` and `g` are evaluated. F(2x2, 3x3) uses 0, 1, -1
//! and infinity. F(4x4, 3x3) uses 0, `A`, `-A`, `B`, `-B` and infinity. `A` = 3/4 and `B` = 3/2 lose fewer digits than
//! the usual 1 and 2: with 128 channels of normally distributed numbers the largest error is 7.9e-6 instead of 2.7e-5.
//!
//! # Tiles of 4x4 of an upsampled map
//!
//! Tiles begin at multiples of four. The first of four outputs is at the upsampled pixel `4 t`, and with one pixel of
//! padding the line reads the upsampled pixels `4 t - 1` to `4 t + 4`. Upsampled pixel `u` is source pixel `floor(u /
//! 2)`, so these six are `a b b c c e`, where `a b c e` are the source pixels `2 t - 1` to `2 t + 2`. The zeros around
//! the upsampled map are zeros around the source map, as an upsampled map has an even number of pixels. The four
//! outputs are
//!
//! ```text
//! y0 = g0 a + (g1 + g2) b        y1 = (g0 + g1) b + g2 c
//! y2 = g0 b + (g1 + g2) c        y3 = (g0 + g1) c + g2 e
//! ```
//!
//! Take six points, of which one is -1 and the other five are 0, 1, `s`, `-s` and infinity. The row of `B^T` for a
//! point is the coefficients of the product of `x - q` over all other finite points `q`. For the point -1 this is `x (x
//! - 1) (x^2 - s^2) = (x^4 - x^3) - s^2 (x^2 - x)`: its coefficients of `x` and `x^2`, and of `x^3` and `x^4`, are
//! opposite and meet equal pixels, so this entry is always zero and five products are left. The rows for `s` and `-s`
//! both become multiples of `c - b`. So only the sum and the difference of their products matter, which are products
//! with `c - b` again and need only `s^2`. With `s^2 = -1` all factors but those of the weights are 1 or -1:
//!
//! ```text
//! m0 = g0 (a - c)                       y0 = m0 + m1 + m2
//! m1 = (g0 + g1 + g2) / 2 (b + c)       y1 = m1 + m3
//! m2 = (g0 - g1 - g2) / 2 (c - b)       y2 = m1 - m2
//! m3 = (g2 - g0 - g1) / 2 (c - b)       y3 = m1 - m3 - m4
//! m4 = g2 (b - e)
//! ```
//!
//! The four transformed pixels are those of F(2x2, 3x3), so that both forms share `B^T`. A tile of 4x4 outputs takes 5
//! x 5 products of 4 x 4 transformed pixels.

use pulp::Simd;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// Returns `G g`, the three weights of a line transformed for `N` products.
pub(super) fn weight_line<const N: usize>(g: [f64; 3]) -> [f64; N] {
    let [a, b, a2, b2] = [A, B, A2, B2].map(f64::from);
    let at = |point: f64| g[0] + point * g[1] + point * point * g[2];
    std::array::from_fn(|i| match (N, i) {
        (6, 0) => g[0] / (a2 * b2),
        (6, 1) => at(a) / (2.0 * a2 * (a2 - b2)),
        (6, 2) => at(-a) / (2.0 * a2 * (a2 - b2)),
        (6, 3) => at(b) / (2.0 * b2 * (b2 - a2)),
        (6, 4) => at(-b) / (2.0 * b2 * (b2 - a2)),
        (_, 0) => g[0],
        (4 | 5, 1) => at(1.0) / 2.0,
        (4, 2) => at(-1.0) / 2.0,
        (5, 2) => (g[0] - g[1] - g[2]) / 2.0,
        (5, 3) => (g[2] - g[0] - g[1]) / 2.0,
        _ => g[2],
    })
}

/// Returns the transformed pixel, of `D` in a line, that the product at `place`, of `N` in a line, multiplies.
pub(super) fn pixel_of<const D: usize, const N: usize>(place: usize) -> usize {
    // With one product more than pixels, the third pixel is in two products.
    if N > D && place > 2 { place - 1 } else { place }
}

/// Vectors of values of a line, one vector per position.
#[derive(Clone, Copy)]
struct Line<S: Simd, const N: usize> {
    simd: S,
    values: [S::f32s; N],
}

impl<S: Simd, const N: usize> Line<S, N> {
    /// Returns the sum of the values at two positions.
    #[inline(always)]
    fn plus(self, a: usize, b: usize) -> S::f32s {
        self.simd.add_f32s(self.values[a], self.values[b])
    }

    /// Returns the value at position `a` minus the value at position `b`.
    #[inline(always)]
    fn minus(self, a: usize, b: usize) -> S::f32s {
        self.simd.sub_f32s(self.values[a], self.values[b])
    }

    /// Returns `sum + factor * value`.
    #[inline(always)]
    fn add(self, sum: S::f32s, factor: f32, value: S::f32s) -> S::f32s {
        self.simd.mul_add_e_f32s(self.simd.splat_f32s(factor), value, sum)
    }
}

/// Returns `B^T d`, the transformed pixels of a line.
#[inline(always)]
pub(super) fn input_line<S: Simd, const D: usize>(simd: S, d: [S::f32s; D]) -> [S::f32s; D] {
    let line = Line { simd, values: d };
    let mut out = d;
    if D == 4 {
        [out[0], out[1], out[2], out[3]] = [line.minus(0, 2), line.plus(1, 2), line.minus(2, 1), line.minus(1, 3)];
        return out;
    }
    // The rows for a point and its opposite share their even part, and their odd parts are opposite.
    let (even_a, odd_a) = (line.add(d[4], -B2, d[2]), line.add(d[3], -B2, d[1]));
    let (even_b, odd_b) = (line.add(d[4], -A2, d[2]), line.add(d[3], -A2, d[1]));
    out[0] = line.add(line.add(d[4], -A2 - B2, d[2]), A2 * B2, d[0]);
    (out[1], out[2]) = (line.add(even_a, A, odd_a), line.add(even_a, -A, odd_a));
    (out[3], out[4]) = (line.add(even_b, B, odd_b), line.add(even_b, -B, odd_b));
    out[5] = line.add(line.add(d[5], -A2 - B2, d[3]), A2 * B2, d[1]);
    out
}

/// Returns `A^T m`, the outputs of a line: two for `N` = 4, otherwise four. The other elements of the result are
/// unspecified.
#[inline(always)]
pub(super) fn output_line<S: Simd, const N: usize>(simd: S, m: [S::f32s; N]) -> [S::f32s; N] {
    let line = Line { simd, values: m };
    let mut out = m;
    match N {
        4 => [out[0], out[1]] = [simd.add_f32s(m[0], line.plus(1, 2)), simd.sub_f32s(line.minus(1, 2), m[3])],
        5 => {
            [out[0], out[1]] = [simd.add_f32s(m[0], line.plus(1, 2)), line.plus(1, 3)];
            [out[2], out[3]] = [line.minus(1, 2), simd.sub_f32s(line.minus(1, 3), m[4])];
        }
        _ => {
            let (even_a, odd_a, even_b, odd_b) = (line.plus(1, 2), line.minus(1, 2), line.plus(3, 4), line.minus(3, 4));
            let scaled = |factor: f32, value: S::f32s| simd.mul_f32s(simd.splat_f32s(factor), value);
            out[0] = simd.add_f32s(m[0], simd.add_f32s(even_a, even_b));
            out[1] = line.add(scaled(A, odd_a), B, odd_b);
            out[2] = line.add(scaled(A2, even_a), B2, even_b);
            out[3] = line.add(line.add(m[5], A * A2, odd_a), B * B2, odd_b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Scalar;

    /// Returns the outputs of a line of `D` pixels by `N` products.
    fn transformed<const D: usize, const N: usize>(d: [f32; D], g: [f64; 3]) -> [f32; N] {
        let (pixels, weights) = (input_line(Scalar, d), weight_line::<N>(g));
        output_line(Scalar, std::array::from_fn(|place| pixels[pixel_of::<D, N>(place)] * weights[place] as f32))
    }

    /// Returns the outputs of a line of pixels from the definition.
    fn defined<const M: usize>(d: &[f32], g: [f64; 3]) -> [f32; M] {
        std::array::from_fn(|at| (0..3).map(|tap| d[at + tap] * g[tap] as f32).sum())
    }

    #[test]
    fn a_line_of_whole_numbers_is_exact() {
        for g in [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, -3.0, 2.0]] {
            for d in [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [7.0, -2.0, 3.0, 11.0]] {
                assert_eq!(transformed::<4, 4>(d, g)[..2], defined::<2>(&d, g), "{d:?} by {g:?}");
                let upsampled = [d[0], d[1], d[1], d[2], d[2], d[3]];
                assert_eq!(transformed::<4, 5>(d, g)[..4], defined::<4>(&upsampled, g), "{d:?} upsampled by {g:?}");
            }
        }
    }

    #[test]
    fn a_line_of_four_outputs_is_close() {
        let (d, g) = ([7.0, -2.0, 3.0, 11.0, -5.0, 4.0], [5.0, -3.0, 2.0]);
        let (got, want) = (transformed::<6, 6>(d, g), defined::<4>(&d, g));
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-4), "{got:?} instead of {want:?}");
    }
}

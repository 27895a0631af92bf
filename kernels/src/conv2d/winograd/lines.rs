//! The matrices of Winograd's algorithm, applied to one line at a time.
//!
//! They follow from the points at which polynomials are evaluated: 0, 1, -1 and infinity for tiles of 2 by 2; 0, `A`, `-A`,
//! `B`, `-B` and infinity for tiles of 4 by 4, where 3/4 and 3/2 keep more digits than the usual 1 and 2 (largest error with
//! 128 channels of normal numbers: 7.9e-6 and 2.7e-5). Upsampled by nearest neighbour, the pixels under a tile of 2 by 2
//! are `a b b c`, and the third of `a-b, 2b, 0, b-c` falls out: three pixels and three places.

use pulp::Simd;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// `G g`.
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
        (3 | 4, 1) => at(1.0) / 2.0,
        (4, 2) => at(-1.0) / 2.0,
        _ => g[2],
    })
}

/// Vectors of a line, by their numbers.
#[derive(Clone, Copy)]
struct Line<S: Simd, const N: usize> {
    simd: S,
    values: [S::f32s; N],
}

impl<S: Simd, const N: usize> Line<S, N> {
    #[inline(always)]
    fn plus(self, a: usize, b: usize) -> S::f32s {
        self.simd.add_f32s(self.values[a], self.values[b])
    }

    #[inline(always)]
    fn minus(self, a: usize, b: usize) -> S::f32s {
        self.simd.sub_f32s(self.values[a], self.values[b])
    }

    /// `sum + factor * value`.
    #[inline(always)]
    fn add(self, sum: S::f32s, factor: f32, value: S::f32s) -> S::f32s {
        self.simd.mul_add_e_f32s(self.simd.splat_f32s(factor), value, sum)
    }
}

/// `B' d`.
#[inline(always)]
pub(super) fn input_line<S: Simd, const N: usize>(simd: S, d: [S::f32s; N]) -> [S::f32s; N] {
    let line = Line { simd, values: d };
    let mut out = d;
    match N {
        3 => [out[0], out[1], out[2]] = [line.minus(0, 1), line.plus(1, 1), line.minus(1, 2)],
        4 => [out[0], out[1], out[2], out[3]] = [line.minus(0, 2), line.plus(1, 2), line.minus(2, 1), line.minus(1, 3)],
        _ => {
            // Two opposite points have this in common, and that with opposite signs.
            let (even_a, odd_a) = (line.add(d[4], -B2, d[2]), line.add(d[3], -B2, d[1]));
            let (even_b, odd_b) = (line.add(d[4], -A2, d[2]), line.add(d[3], -A2, d[1]));
            out[0] = line.add(line.add(d[4], -A2 - B2, d[2]), A2 * B2, d[0]);
            (out[1], out[2]) = (line.add(even_a, A, odd_a), line.add(even_a, -A, odd_a));
            (out[3], out[4]) = (line.add(even_b, B, odd_b), line.add(even_b, -B, odd_b));
            out[5] = line.add(line.add(d[5], -A2 - B2, d[3]), A2 * B2, d[1]);
        }
    }
    out
}

/// `A' m`: the first `M` are meant.
#[inline(always)]
pub(super) fn output_line<S: Simd, const N: usize>(simd: S, m: [S::f32s; N]) -> [S::f32s; N] {
    let line = Line { simd, values: m };
    let mut out = m;
    match N {
        3 => [out[0], out[1]] = [line.plus(0, 1), line.minus(1, 2)],
        4 => [out[0], out[1]] = [simd.add_f32s(m[0], line.plus(1, 2)), simd.sub_f32s(line.minus(1, 2), m[3])],
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

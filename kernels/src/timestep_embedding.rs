//! `y = [cos(t f), sin(t f)]`: the sinusoidal embedding of timesteps (docs/model.md, section 1.6).
//!
//! | operand | shape | |
//! |---|---|---|
//! | `t` | `[n]` | f32 |
//! | `frequencies` | `[dim / 2]` | f32, see [`TimestepEmbedding::frequencies`] |
//! | `y` | `[n, dim]` | written; cosines first (diffusers' `flip_sin_to_cos`) |
//!
//! All forms round the angle `t f` to f32, as diffusers does.
//!
//! * GPU: workgroups of 64 invocations, four values (one vec4) each. The shader reduces the angle to [-π/4, π/4] and
//!   evaluates polynomials of its own, because WGSL guarantees only eleven bits for sine and cosine, and those only for
//!   small angles.
//! * CPU: one thread, with the standard library's `sin_cos`.

use crate::draw::Draw;
use crate::kernel::{
    Case, Cost, DType, Family, Fill, GROUP, Kernel, Operand, Param, Program, Tolerance, grid_of, parse,
};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// Sinusoidal embedding of `n` timesteps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestepEmbedding {
    /// Timesteps, one per image.
    pub n: usize,
    /// Values per timestep, an even number: the first half are cosines, the second half sines.
    pub dim: usize,
}

/// Entry of this kernel in [`FAMILIES`](crate::FAMILIES).
pub(crate) const FAMILY: Family = Family {
    name: "timestep_embedding",
    summary: "`[cos(t f), sin(t f)]`, the timestep as the UNet sees it",
    cases,
    model_shapes,
    random,
    parse: parse::<TimestepEmbedding>,
};

impl TimestepEmbedding {
    /// Largest number of timesteps of a schedule. Frequencies are at most 1, so no angle reaches this number: the shader
    /// clamps angles there, and needs them to be below 2^16 quarters of a turn.
    pub const MOST_TIMESTEPS: u32 = 100_000;

    /// Returns the operand `frequencies`: `exp(-ln(10000) i / half)` for `i` in `0..half`, where `half = dim / 2`.
    pub fn frequencies(dim: usize) -> Vec<f32> {
        let half = dim / 2;
        (0..half).map(|i| (-(10_000_f64.ln()) * i as f64 / half as f64).exp() as f32).collect()
    }
}

impl Kernel for TimestepEmbedding {
    fn name(&self) -> &'static str {
        FAMILY.name
    }

    fn refusal(&self) -> Option<&'static str> {
        (!self.dim.is_multiple_of(2)).then_some("`dim` must be even")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read("t", [self.n]).dtype(DType::F32),
            Operand::read("frequencies", [self.dim / 2]).dtype(DType::F32),
            Operand::write("y", [self.n, self.dim]),
        ]
    }

    fn program(&self, _: &Variant) -> Program {
        let dim4 = self.dim.div_ceil(4);
        Program {
            wgsl: include_str!("../../shaders/timestep_embedding.wgsl"),
            constants: vec![("LARGEST_ANGLE", Self::MOST_TIMESTEPS)],
            params: vec![
                Param::size("vec4s", self.n * dim4),
                Param::size("dim", self.dim),
                Param::size("dim4", dim4),
                Param::size("half", self.dim / 2),
            ],
            grid: grid_of(self.n * dim4),
        }
    }

    fn cost(&self) -> Cost {
        // A product, the reduction of the angle and a polynomial.
        Cost::elementwise(self.n * self.dim, 16)
    }

    fn tolerance(&self) -> Tolerance {
        // Values are at most one, and the reduced angle is off by about a unit of rounding.
        Tolerance { absolute: 3.0 * f64::from(f32::EPSILON), ..Tolerance::EXACT }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let &[t, frequencies] = inputs else { panic!("timestep_embedding reads two operands") };
        let half = self.dim / 2;
        let mut y = vec![0.0; self.n * self.dim];
        for n in 0..self.n {
            for i in 0..half {
                let angle = f64::from(t[n] as f32 * frequencies[i] as f32);
                y[n * self.dim + i] = angle.cos();
                y[n * self.dim + half + i] = angle.sin();
            }
        }
        vec![y]
    }

    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let (&[t, frequencies], [y]) = (inputs, outputs) else { panic!("timestep_embedding has three operands") };
        for (y, t) in y.chunks_exact_mut(self.dim).zip(t) {
            let (cosines, sines) = y.split_at_mut(self.dim / 2);
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
                (*sine, *cosine) = (t * frequency).sin_cos();
            }
        }
    }
}

fn case(n: usize, dim: usize) -> Case {
    // Whole timesteps and frequencies near the real ones: angles up to about a thousand, a few of them negative.
    let case = Case::new(TimestepEmbedding { n, dim });
    case.fill("t", Fill::Below(1000)).fill("frequencies", Fill::Normal(0.5, 0.2))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 2),
        case(2, 4),
        case(3, 6),
        case(5, 14),
        case(9, 64),
        // One vec4 less than a workgroup, exactly one workgroup, one vec4 more.
        case(1, 252),
        case(2, 128),
        case(1, 260),
        case(2, 320),
        // Timestep zero, which gives ones and zeros; small angles of either sign; the last timestep.
        case(2, 10).fill("t", Fill::Constant(0.0)),
        case(4, 40).fill("t", Fill::Normal(0.0, 1.0)),
        case(2, 320).fill("t", Fill::Constant(999.0)),
        // The last timestep of the longest schedule.
        case(1, 4).fill("t", Fill::Constant(99_999.0)).fill("frequencies", Fill::Constant(1.0)),
    ]
}

fn model_shapes() -> Vec<Case> {
    vec![case(1, 320), case(2, 320)]
}

fn random(draw: &mut Draw<'_>) -> Case {
    case(draw.of(&[1, 2, 5]), 2 * draw.size(2 * GROUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_to_nearly_a_ten_thousandth() {
        let f = TimestepEmbedding::frequencies(320);
        assert_eq!(f.len(), 160);
        assert_eq!((f[0], f[80]), (1.0, 0.01), "the first and the geometric middle");
        assert!((f[159] - 1.059_253_7e-4).abs() < 1e-10, "the last is {}", f[159]);
        assert!(f.windows(2).all(|pair| pair[1] < pair[0]), "they fall");
    }
}

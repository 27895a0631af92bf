//! Activations in f64, the only code that the references of kernels share.

use crate::kernel::Activation;

/// Computes `activation(u)` in f64.
pub(crate) fn activate(activation: Activation, u: f64) -> f64 {
    match activation {
        Activation::None => u,
        Activation::Relu => {
            if u < 0.0 {
                0.0
            } else {
                u
            }
        }
        Activation::Silu => u / (1.0 + (-u).exp()),
        Activation::Gelu => 0.5 * u * (1.0 + erf(u / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => u / (1.0 + (-1.702 * u).exp()),
    }
}

/// Computes the error function, by a Taylor series for `|x| < 3` and by a continued fraction beyond. The error is about
/// 1e-15.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        // erf(a) = 2/sqrt(pi) * exp(-a^2) * sum of 2^n a^(2n+1) / (1*3*5*...*(2n+1))
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > 1e-17 * sum {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        return (2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum).copysign(x);
    }
    let mut fraction = 0.0;
    for n in (1..=60).rev() {
        fraction = f64::from(n) / 2.0 / (a + fraction);
    }
    (1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_function_has_its_known_values() {
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (-1.0, -0.842_700_792_949_714_9),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - want).abs() < 1e-14, "erf({x}) = {}, not {want}", erf(x));
        }
    }
}

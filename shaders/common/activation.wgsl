// Activation functions on vec4s. The codes are those of `Activation::code` (kernels/src/kernel.rs).
const ACTIVATION_NONE = 0u;
const ACTIVATION_RELU = 1u;
const ACTIVATION_SILU = 2u;
const ACTIVATION_GELU = 3u;
const ACTIVATION_QUICK_GELU = 4u;

// Returns 1 / (1 + exp(-u)).
fn sigmoid4(u: vec4<f32>) -> vec4<f32> {
    // The clamp keeps exp from overflowing to infinity. Below -80 the quotient is practically zero.
    return 1.0 / (1.0 + exp(-max(u, vec4<f32>(-80.0))));
}

// Returns erf(x) by Abramowitz and Stegun 7.1.26, with an absolute error below 1.5e-7.
fn erf4(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-x * x));
}

// Applies the activation with this code.
fn activate(code: u32, u: vec4<f32>) -> vec4<f32> {
    switch code {
        case ACTIVATION_RELU: { return max(u, vec4<f32>(0.0)); }
        case ACTIVATION_SILU: { return u * sigmoid4(u); }
        case ACTIVATION_GELU: { return 0.5 * u * (1.0 + erf4(u * 0.70710678118)); }
        case ACTIVATION_QUICK_GELU: { return u * sigmoid4(1.702 * u); }
        default: { return u; }
    }
}

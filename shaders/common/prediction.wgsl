// Conversion of the network's prediction p to the clean latent x0 and to the noise. A noisy latent is z = a * x0 + s *
// noise. The codes are those of `Prediction::code` (kernels/src/prediction.rs): p is the noise (epsilon), the velocity
// v = a * noise - s * x0, or x0 itself (sample).
const PREDICTION_EPSILON = 0u;
const PREDICTION_V = 1u;
const PREDICTION_SAMPLE = 2u;

// Returns x0.
fn predicted_x0(kind: u32, p: vec4<f32>, z: vec4<f32>, a: f32, s: f32) -> vec4<f32> {
    switch kind {
        case PREDICTION_V: { return a * z - s * p; }
        case PREDICTION_SAMPLE: { return p; }
        default: { return (z - s * p) / a; }
    }
}

// Returns the noise.
fn predicted_noise(kind: u32, p: vec4<f32>, z: vec4<f32>, a: f32, s: f32) -> vec4<f32> {
    switch kind {
        case PREDICTION_V: { return a * p + s * z; }
        case PREDICTION_SAMPLE: { return (z - a * p) / s; }
        default: { return p; }
    }
}

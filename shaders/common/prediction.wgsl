// What the network's answer stands for, by the numbers of `Prediction::code`: see kernels/src/prediction.rs. At every
// step z = a * x0 + s * noise.
const PREDICTION_EPSILON = 0u;
const PREDICTION_V = 1u;
const PREDICTION_SAMPLE = 2u;

fn predicted_x0(kind: u32, p: vec4<f32>, z: vec4<f32>, a: f32, s: f32) -> vec4<f32> {
    switch kind {
        case PREDICTION_V: { return a * z - s * p; }
        case PREDICTION_SAMPLE: { return p; }
        default: { return (z - s * p) / a; }
    }
}

fn predicted_noise(kind: u32, p: vec4<f32>, z: vec4<f32>, a: f32, s: f32) -> vec4<f32> {
    switch kind {
        case PREDICTION_V: { return a * p + s * z; }
        case PREDICTION_SAMPLE: { return (z - a * p) / s; }
        default: { return p; }
    }
}

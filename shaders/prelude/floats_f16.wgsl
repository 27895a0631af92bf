enable f16;
// Floats in f16.
alias Pack = vec4<f16>;
fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(p); }
fn store4(v: vec4<f32>) -> Pack { return Pack(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0))); }

// Floats in f32.
alias Pack = vec4<f32>;
fn load4(p: Pack) -> vec4<f32> { return p; }
fn store4(v: vec4<f32>) -> Pack { return v; }

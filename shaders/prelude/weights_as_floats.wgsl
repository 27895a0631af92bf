// Weights in the type of the floats.
alias WeightPack = Pack;
const WEIGHT_HEAD = 0u;
fn weight_scale(head: WeightPack) -> f32 { return 1.0; }
fn weight4(p: WeightPack) -> vec4<f32> { return load4(p); }
fn weight_pack(p: WeightPack) -> Pack { return p; }

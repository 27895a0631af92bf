// Weights in f16 beside floats in f32.
alias WeightPack = vec2<u32>;
const WEIGHT_HEAD = 0u;
fn weight_scale(head: WeightPack) -> f32 { return 1.0; }
fn weight4(p: WeightPack) -> vec4<f32> { return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)); }
fn weight_pack(p: WeightPack) -> Pack { return weight4(p); }

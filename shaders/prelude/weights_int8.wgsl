// Weights in 8 bits, behind a scale for each row.
alias WeightPack = u32;
const WEIGHT_HEAD = 1u;
fn weight_scale(head: WeightPack) -> f32 { return bitcast<f32>(head); }
fn weight4(p: WeightPack) -> vec4<f32> { return vec4<f32>(unpack4xI8(p)); }
fn weight_pack(p: WeightPack) -> Pack { return store4(weight4(p)); }

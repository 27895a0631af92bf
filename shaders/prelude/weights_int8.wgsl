alias WeightPack = u32;
const WEIGHT_HEAD = 1u;
fn weight_scale(head: WeightPack) -> f32 { return bitcast<f32>(head); }
fn weight4(p: WeightPack) -> vec4<f32> { return vec4<f32>(unpack4xI8(p)); }

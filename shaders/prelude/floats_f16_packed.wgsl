// Floats in f16, in pairs, for shaders that do not know the type.
alias Pack = vec2<u32>;
fn load4(p: Pack) -> vec4<f32> { return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)); }
fn store4(v: vec4<f32>) -> Pack {
    let c = clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0));
    return Pack(pack2x16float(c.xy), pack2x16float(c.zw));
}

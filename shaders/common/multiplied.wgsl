// Returns sums plus the dot products of x with the columns a, b, c and d. It uses fma on vec4s of columns, not dot.
fn multiplied(x: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, sums: vec4<f32>) -> vec4<f32> {
    var s = fma(vec4<f32>(x.x), vec4<f32>(a.x, b.x, c.x, d.x), sums);
    s = fma(vec4<f32>(x.y), vec4<f32>(a.y, b.y, c.y, d.y), s);
    s = fma(vec4<f32>(x.z), vec4<f32>(a.z, b.z, c.z, d.z), s);
    return fma(vec4<f32>(x.w), vec4<f32>(a.w, b.w, c.w, d.w), s);
}

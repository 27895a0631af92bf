// Four values of a row of `x`, or of `x` and `x2` side by side, normalised as they are read: kernels/src/source.rs.
//
// The module that imports this declares the operands that are there, and in `Params` `first4`, the vec4s of a row of
// `x`, and `positions`, the rows of an image.
#import activation

// `x` as it is stored, and its four values.
@if(X_F32) alias Input = vec4<f32>;
@if(X_STORED) alias Input = Pack;
@if(X_F32) fn input4(v: Input) -> vec4<f32> { return v; }
@if(X_STORED) fn input4(v: Input) -> vec4<f32> { return load4(v); }

fn load_joined(row: u32, k4: u32, k4_len: u32) -> vec4<f32> {
    @if(HAS_X2) if k4 >= params.first4 { return load4(x2[row * (k4_len - params.first4) + k4 - params.first4]); }
    return input4(x[row * params.first4 + k4]);
}

fn load_source(row: u32, k4: u32, k4_len: u32) -> vec4<f32> {
    var v = load_joined(row, k4, k4_len);
    @if(NORM_ROWS) let s = stats[row];
    @if(NORM_ROWS) v = (v - s.x) * s.y * load4(norm_weight[k4]) + load4(norm_bias[k4]);
    @if(NORM_IMAGE) let at = k4;
    @if(NORM_IMAGES) let at = row / params.positions * 2u * k4_len + k4;
    @if(NORM_CHANNELS) v = activate(NORM_ACTIVATION, v * norm[at] + norm[at + k4_len]);
    return v;
}

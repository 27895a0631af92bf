// Four values of a row of `x`, or of `x` and `x2` side by side, normalised as they are read: kernels/src/prologue.rs.
//
// Whoever reads many of them first fetches what lies in memory, then makes values of it: loads that wait for nothing but
// each other follow each other, and all are under way at once. The module that imports this declares the operands that are
// there, and in `Params` `first4`, the vec4s of a row of `x`, and `positions`, the rows of an image.
#import activation

// `x` as it is stored, and its four values.
@if(X_F32) alias Input = vec4<f32>;
@if(!X_F32) alias Input = Pack;
@if(X_F32) fn input4(v: Input) -> vec4<f32> { return v; }
@if(!X_F32) fn input4(v: Input) -> vec4<f32> { return load4(v); }

// Whether four values of a row lie in `x2`.
fn is_second(k4: u32) -> bool {
    @if(HAS_X2) if k4 >= params.first4 { return true; }
    return false;
}

// Four values as they lie in memory.
fn fetch_source(row: u32, k4: u32, k4_len: u32, second: bool) -> Input {
    @if(HAS_X2)
    if second {
        let v = x2[row * (k4_len - params.first4) + k4 - params.first4];
        @if(X_F32) return load4(v);
        @if(!X_F32) return v;
    }
    @end
    return x[row * params.first4 + k4];
}

// What a norm does to four channels of every row, as it lies in memory: fetched once for many rows.
@if(NORM_ROWS) var<private> norm_scale: Pack;
@if(NORM_ROWS) var<private> norm_offset: Pack;
@if(NORM_IMAGE) var<private> norm_scale: vec4<f32>;
@if(NORM_IMAGE) var<private> norm_offset: vec4<f32>;

fn fetch_norm(k4: u32, k4_len: u32) {
    @if(NORM_ROWS) norm_scale = norm_weight[k4];
    @if(NORM_ROWS) norm_offset = norm_bias[k4];
    @if(NORM_IMAGE) norm_scale = norm[k4];
    @if(NORM_IMAGE) norm_offset = norm[k4 + k4_len];
}

// What a norm does to a row: mean and reciprocal deviation of its own, or where the scales of its image begin.
struct RowNorm {
    @if(NORM_ROWS) mean: f32,
    @if(NORM_ROWS) rstd: f32,
    image: u32,
}

fn row_norm(row: u32, k4_len: u32) -> RowNorm {
    var found = RowNorm();
    @if(NORM_ROWS) let s = stats[row];
    @if(NORM_ROWS) found.mean = s.x;
    @if(NORM_ROWS) found.rstd = s.y;
    @if(NORM_IMAGES) found.image = row / params.positions * 2u * k4_len;
    return found;
}

// The values of what was fetched, at `k4` of a row with that norm.
fn made(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> vec4<f32> {
    var v = input4(fetched);
    @if(NORM_ROWS) v = (v - row.mean) * row.rstd * load4(norm_scale) + load4(norm_offset);
    @if(NORM_IMAGE) v = activate(NORM_ACTIVATION, v * norm_scale + norm_offset);
    @if(NORM_IMAGES) v = activate(NORM_ACTIVATION, v * norm[row.image + k4] + norm[row.image + k4 + k4_len]);
    return v;
}

// The same, as values are stored.
@if(TOUCHED)
fn made_pack(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> Pack { return store4(made(fetched, row, k4, k4_len)); }
@else
fn made_pack(fetched: Input, row: RowNorm, k4: u32, k4_len: u32) -> Pack { return fetched; }
@end

fn load_source(row: u32, k4: u32, k4_len: u32) -> vec4<f32> {
    fetch_norm(k4, k4_len);
    return made(fetch_source(row, k4, k4_len, is_second(k4)), row_norm(row, k4_len), k4, k4_len);
}

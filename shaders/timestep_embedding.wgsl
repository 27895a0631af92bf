// Sinusoidal embedding of timesteps: y = [cos(t * f), sin(t * f)]. The host side is kernels/src/timestep_embedding.rs.
//
// Operands: t [n], frequencies f [half], y [n, dim]. Each invocation computes one vec4 of y. WGSL guarantees only
// eleven bits of sin and cos, and those only near zero, while angles reach far beyond pi: this file brings its own
// sine.
#import grid

struct Params {
    vec4s: u32, // of y
    dim: u32,
    dim4: u32,
    half: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> t: array<vec4<f32>>; // [n]
@group(0) @binding(2) var<storage, read> frequencies: array<vec4<f32>>; // [half]
@group(0) @binding(3) var<storage, read_write> y: array<Pack>; // [n, dim]

const QUARTERS = 0.63661977236758134; // 2 / pi
// pi / 2 as the sum of three numbers. The first two have eight significant bits, so that their multiples up to 2^16
// times are exact in f32, also on a device whose fma is a product and a sum.
const QUARTER_HIGH = 1.5703125;
const QUARTER_MIDDLE = 4.8255920410156250e-4;
const QUARTER_LOW = 1.2675907950567314e-6;
// Largest angle, which no timestep reaches, from the host side. It has fewer than 2^16 quarters. The clamp has a second
// purpose: it keeps compilers from fusing `t * f` into the subtraction of `sine`, which would leave the angle unrounded.
const LARGEST = f32(LARGEST_ANGLE);

// Returns sin(angle + turns * pi / 2) with an error of about one unit in the last place. WGSL's own sin guarantees only
// 2^-11. The angle is reduced to |r| <= pi / 4, where the polynomials of the Cephes library apply.
fn sine(angle: f32, turns: i32) -> f32 {
    let whole = round(angle * QUARTERS);
    // Explicit fma fixes the order of evaluation, whatever the compiler does. The inner differences are exact.
    let r = fma(-whole, QUARTER_LOW, fma(-whole, QUARTER_MIDDLE, fma(-whole, QUARTER_HIGH, angle)));
    let z = r * r;
    let quarter = i32(whole) + turns;
    var value = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4));
    if (quarter & 1) == 1 {
        value = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    }
    return select(value, -value, (quarter & 2) == 2);
}

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = flat_invocation(group, groups, thread);
    if at >= params.vec4s { return; }
    let row = at / params.dim4;
    let step = t[row / 4u][row % 4u];
    var v = vec4<f32>(0.0);
    for (var lane = 0u; lane < 4u; lane++) {
        let col = at % params.dim4 * 4u + lane;
        if col < params.dim {
            let i = col % params.half;
            let angle = clamp(step * frequencies[i / 4u][i % 4u], -LARGEST, LARGEST);
            v[lane] = sine(angle, select(0, 1, col < params.half));
        }
    }
    y[at] = store4(v);
}

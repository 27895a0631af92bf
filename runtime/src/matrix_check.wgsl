// Trial of matrix units, see matrix_check.rs. It loads, multiplies and stores as shaders/common/gemm_matrix.wgsl and attention_matrix.wgsl do.
// Constants: EDGE, ROWS, STEPS, INVOCATIONS, SUBGROUPS (subgroups that store their sums), SIZE (of a subgroup, or zero
// if it is not known), WIDE.
#import matrix_unit
#import sum_all
alias Summed = f32;

// Two matrices lie side by side in a step of the factors, and two in a batch of sums. Rows are padded, in vec4s.
const DEPTH4 = EDGE / 2u;
const STEP_STRIDE = DEPTH4 + 2u;
const SUM_STRIDE = EDGE / 2u + EDGE / 8u;

// ROWS + 1 times SUBGROUPS batches of EDGE rows, followed by the size of subgroups and the total of `sum_all`.
@group(0) @binding(0) var<storage, read_write> found: array<vec4<f32>>;

@if(WIDE)
const CELLS = 1u;
var<workgroup> x: array<vec4<f16>, ROWS * EDGE * STEP_STRIDE>;
var<workgroup> w: array<vec4<f16>, 2u * EDGE * STEP_STRIDE>;
var<workgroup> batch: array<vec4<f32>, SUBGROUPS * EDGE * SUM_STRIDE>;

fn put_x(at: u32, v: vec4<f16>) { x[at] = v; }
fn put_w(at: u32, v: vec4<f16>) { w[at] = v; }
fn sums_at(at: u32) -> vec4<f32> { return batch[at]; }
@else
const CELLS = 4u;
var<workgroup> x: array<f16, 4u * ROWS * EDGE * STEP_STRIDE>;
var<workgroup> w: array<f16, 8u * EDGE * STEP_STRIDE>;
var<workgroup> batch: array<f32, 4u * SUBGROUPS * EDGE * SUM_STRIDE>;

fn put_x(at: u32, v: vec4<f16>) { for (var i = 0u; i < 4u; i++) { x[4u * at + i] = v[i]; } }
fn put_w(at: u32, v: vec4<f16>) { for (var i = 0u; i < 4u; i++) { w[4u * at + i] = v[i]; } }
fn sums_at(at: u32) -> vec4<f32> {
    return vec4<f32>(batch[4u * at], batch[4u * at + 1u], batch[4u * at + 2u], batch[4u * at + 3u]);
}
@end

// Stages a step of both factors, `w` by columns.
fn fill(thread: u32, step: u32) {
    for (var i = thread; i < ROWS * EDGE * DEPTH4; i += INVOCATIONS) {
        let first = 3u * (i / DEPTH4) + 4u * (i % DEPTH4) + step;
        let value = vec4<i32>((vec4<u32>(0u, 1u, 2u, 3u) + first) % 5u) - 2;
        put_x(i / DEPTH4 * STEP_STRIDE + i % DEPTH4, vec4<f16>(value));
    }
    for (var i = thread; i < 2u * EDGE * DEPTH4; i += INVOCATIONS) {
        let first = i / DEPTH4 + 8u * (i % DEPTH4) + step;
        let value = vec4<i32>((vec4<u32>(0u, 2u, 4u, 6u) + first) % 7u) - 3;
        put_w(i / DEPTH4 * STEP_STRIDE + i % DEPTH4, vec4<f16>(value));
    }
}

fn left(row: u32, k: u32) -> Left {
    return coopLoadT<Left>(&x[CELLS * (row * EDGE * STEP_STRIDE + k * (EDGE / 4u))], CELLS * STEP_STRIDE);
}

fn right(column: u32, k: u32) -> Right {
    return coopLoad<Right>(&w[CELLS * (column * EDGE * STEP_STRIDE + k * (EDGE / 4u))], CELLS * STEP_STRIDE);
}

// Matrix of `w` whose rows are columns of the right factor, as attention stages values.
fn by_rows(column: u32) -> Right {
    return coopLoadT<Right>(&w[CELLS * column * EDGE * STEP_STRIDE], CELLS * STEP_STRIDE);
}

// Hands over the two sums of every subgroup in row `row` of matrices.
fn hand_over(first: Sum, second: Sum, row: u32, subgroup: u32, thread: u32) {
    let at = subgroup * EDGE * SUM_STRIDE;
    coopStoreT(first, &batch[CELLS * at], CELLS * SUM_STRIDE);
    coopStoreT(second, &batch[CELLS * (at + EDGE / 4u)], CELLS * SUM_STRIDE);
    workgroupBarrier();
    const SUMS4 = SUBGROUPS * EDGE * (EDGE / 2u);
    for (var i = thread; i < SUMS4; i += INVOCATIONS) {
        found[row * SUMS4 + i] = sums_at(i / (EDGE / 2u) * SUM_STRIDE + i % (EDGE / 2u));
    }
    workgroupBarrier();
}

@compute @workgroup_size(INVOCATIONS)
fn main(
    @builtin(local_invocation_index) thread: u32,
    @if(!SIZE) @builtin(subgroup_size) size: u32,
) {
    @if(SIZE) let size = SIZE;
    let subgroup = min(thread / size, SUBGROUPS - 1u);
    // A factor from a place of the subgroup's own, which is kept while the steps below take its place, as attention
    // keeps queries.
    fill(thread, STEPS);
    workgroupBarrier();
    let kept = left(subgroup % ROWS, 0u);
    workgroupBarrier();
    var total = 0.0;
    var c00 = Sum();
    var c01 = Sum();
    var c10 = Sum();
    var c11 = Sum();
    var c20 = Sum();
    var c21 = Sum();
    var c30 = Sum();
    var c31 = Sum();
    for (var step = 0u; step < STEPS; step++) {
        fill(thread, step);
        // In one step only: kernels have a single barrier between stores and loads, which `sum_all` adds to.
        if step == 1u { total = sum_all(f32(thread), thread); } else { workgroupBarrier(); }
        for (var k = 0u; k < 2u; k++) {
            let a0 = left(0u, k);
            let a1 = left(1u, k);
            let a2 = left(2u, k);
            let a3 = left(3u, k);
            let b0 = right(0u, k);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c30 = coopMultiplyAdd(a3, b0, c30);
            let b1 = right(1u, k);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c31 = coopMultiplyAdd(a3, b1, c31);
        }
        workgroupBarrier();
    }
    hand_over(c00, c01, 0u, subgroup, thread);
    hand_over(c10, c11, 1u, subgroup, thread);
    hand_over(c20, c21, 2u, subgroup, thread);
    hand_over(c30, c31, 3u, subgroup, thread);
    // The last step's `w` is still there.
    let first = coopMultiplyAdd(kept, by_rows(0u), Sum());
    let second = coopMultiplyAdd(kept, by_rows(1u), Sum());
    hand_over(first, second, ROWS, subgroup, thread);
    // Not the invocation that wrote the last partial sums.
    if thread == INVOCATIONS - 1u {
        found[(ROWS + 1u) * SUBGROUPS * EDGE * (EDGE / 2u)] = vec4<f32>(f32(size), total, 0.0, 0.0);
    }
}

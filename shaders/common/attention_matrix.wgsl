// Attention by matrix units: what the module that imports this does without them, see kernels/src/attention/matrix.rs.
//
// Each subgroup has EDGE queries and holds their sums in MATRICES matrices, side by side; two matrices of scores, of
// 2 * EDGE keys, go through workgroup memory to become weights in f16. Matrices cannot be scaled row by row, so softmax
// first looks for the highest score of every query, in a walk over the keys of its own, and no sum is ever brought to
// another one. Pointers are to scalars, which every API takes.
#import matrix_unit

const THREADS = QUERIES / EDGE * SUBGROUP;
// Lanes of a query: a subgroup's for each of its rows.
const LANES = SUBGROUP / EDGE;
const KEYS = 2u * EDGE;
const DEPTH4 = MATRICES * EDGE / 4u;
// Rows with a gap behind them, so that neighbouring ones begin in different banks.
const HEAD_ROW = MATRICES * EDGE + 8u;
const SCORE_ROW = KEYS + 4u;
const WEIGHT_ROW = KEYS + 8u;
const LOWEST = -3e38;

var<workgroup> q_tile: array<f16, QUERIES * HEAD_ROW>; // [QUERIES, DEPTH4 vec4s]
var<workgroup> tile: array<f16, KEYS * HEAD_ROW>; // [KEYS, DEPTH4 vec4s], keys, then their values
var<workgroup> scores: array<f32, QUERIES * SCORE_ROW>; // [QUERIES, KEYS], at the end sums
var<workgroup> weights: array<f16, QUERIES * WEIGHT_ROW>; // [QUERIES, KEYS]
var<workgroup> shares: array<f32, THREADS>; // what the lanes of a query found

/// Loads the queries; zero beyond the last, and beyond the head.
fn load_queries(query0: u32, image: u32, head0: u32, row_len: u32, thread: u32) {
    for (var i = thread; i < QUERIES * DEPTH4; i += THREADS) {
        let d4 = i % DEPTH4;
        let query = query0 + i / DEPTH4;
        var value = Pack();
        if query < params.queries && d4 < HEAD4 { value = q[(image * params.queries + query) * row_len + head0 + d4]; }
        let at = i / DEPTH4 * HEAD_ROW + 4u * d4;
        q_tile[at] = value.x;
        q_tile[at + 1u] = value.y;
        q_tile[at + 2u] = value.z;
        q_tile[at + 3u] = value.w;
    }
}

/// Loads a tile of keys or of their values; zero beyond the last, and beyond the head.
fn load_tile(values: bool, key0: u32, image: u32, head0: u32, row_len: u32, thread: u32) {
    for (var i = thread; i < KEYS * DEPTH4; i += THREADS) {
        let d4 = i % DEPTH4;
        let key = key0 + i / DEPTH4;
        var value = Pack();
        if key < params.keys && d4 < HEAD4 {
            let place = (image * params.keys + key) * row_len + head0 + d4;
            if !values { value = k[place]; }
            @if(SEPARATE) if values { value = v[place]; }
        }
        let at = i / DEPTH4 * HEAD_ROW + 4u * d4;
        tile[at] = value.x;
        tile[at + 1u] = value.y;
        tile[at + 2u] = value.z;
        tile[at + 3u] = value.w;
    }
}

/// Writes the products of a subgroup's queries, from `row`, and of the tile's keys.
fn write_scores(row: u32) {
    var left = Sum();
    var right = Sum();
    for (var d = 0u; d < MATRICES * EDGE; d += EDGE) {
        let rows = coopLoadT<Left>(&q_tile[row * HEAD_ROW + d], HEAD_ROW);
        let keys = coopLoad<Right>(&tile[d], HEAD_ROW);
        left = coopMultiplyAdd(rows, keys, left);
        let more = coopLoad<Right>(&tile[EDGE * HEAD_ROW + d], HEAD_ROW);
        right = coopMultiplyAdd(rows, more, right);
    }
    coopStoreT(left, &scores[row * SCORE_ROW], SCORE_ROW);
    coopStoreT(right, &scores[row * SCORE_ROW + EDGE], SCORE_ROW);
}

/// Adds the products of a subgroup's weights, from `row`, and of the values of matrix `d` of the head.
fn add_values(sums: Sum, row: u32, d: u32) -> Sum {
    let weights0 = coopLoadT<Left>(&weights[row * WEIGHT_ROW], WEIGHT_ROW);
    let values0 = coopLoadT<Right>(&tile[d * EDGE], HEAD_ROW);
    let first = coopMultiplyAdd(weights0, values0, sums);
    let weights1 = coopLoadT<Left>(&weights[row * WEIGHT_ROW + EDGE], WEIGHT_ROW);
    let values1 = coopLoadT<Right>(&tile[EDGE * HEAD_ROW + d * EDGE], HEAD_ROW);
    return coopMultiplyAdd(weights1, values1, first);
}

/// Writes matrix `d` of the sums of a subgroup's queries, from `row`; `at` is where this invocation's query begins in y.
fn write_sums(sums: Sum, row: u32, d: u32, norm: f32, at: u32, inside: bool, thread: u32) {
    coopStoreT(sums, &scores[row * SCORE_ROW], SCORE_ROW);
    workgroupBarrier();
    for (var i = thread % LANES; i < EDGE / 4u; i += LANES) {
        let first = thread / LANES * SCORE_ROW + 4u * i;
        let value = vec4<f32>(scores[first], scores[first + 1u], scores[first + 2u], scores[first + 3u]);
        if inside && d * EDGE / 4u + i < HEAD4 { y[at + d * EDGE / 4u + i] = store4(value * norm); }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    let head0 = group.y * HEAD4;
    let query0 = group.x * QUERIES;
    let query = query0 + thread / LANES;
    let own = thread / LANES * SCORE_ROW;
    let row = thread / SUBGROUP * EDGE;
    // Keys this query sees, and keys any query of the workgroup sees.
    let seen = select(params.keys, min(params.keys, query + 1u), CAUSAL == 1u);
    let seen_by_group = select(params.keys, min(params.keys, query0 + QUERIES), CAUSAL == 1u);
    // f16 holds weights of relu better before they are divided by the number of keys.
    let divisor = select(f32(params.keys), 1.0, SOFTMAX == 1u);
    let scale = params.scale * divisor;
    load_queries(query0, group.z, head0, row_len, thread);

    var highest = LOWEST;
    @if(SOFTMAX)
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        load_tile(false, key0, group.z, head0, row_len, thread);
        workgroupBarrier();
        write_scores(row);
        workgroupBarrier();
        for (var key = thread % LANES; key < KEYS; key += LANES) {
            if key0 + key < seen { highest = max(highest, scores[own + key] * scale); }
        }
    }
    shares[thread] = highest;
    workgroupBarrier();
    for (var lane = 0u; lane < LANES; lane++) { highest = max(highest, shares[thread / LANES * LANES + lane]); }
    @end

    var sum = 0.0;
    var o0 = Sum();
    var o1 = Sum();
    var o2 = Sum();
    var o3 = Sum();
    var o4 = Sum();
    var o5 = Sum();
    var o6 = Sum();
    var o7 = Sum();
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        load_tile(false, key0, group.z, head0, row_len, thread);
        workgroupBarrier();
        write_scores(row);
        workgroupBarrier();
        for (var key = thread % LANES; key < KEYS; key += LANES) {
            var weight = 0.0;
            if key0 + key < seen {
                let score = scores[own + key] * scale;
                @if(SOFTMAX) weight = exp(max(score - highest, -88.0));
                @if(RELU) weight = clamp(score, 0.0, 65504.0);
            }
            let rounded = f16(weight);
            // The weights that are summed are those that are used.
            sum += f32(rounded);
            weights[thread / LANES * WEIGHT_ROW + key] = rounded;
        }
        @if(SEPARATE) load_tile(true, key0, group.z, head0, row_len, thread);
        workgroupBarrier();
        o0 = add_values(o0, row, 0u);
        if MATRICES > 1u { o1 = add_values(o1, row, 1u); }
        if MATRICES > 2u { o2 = add_values(o2, row, 2u); }
        if MATRICES > 3u { o3 = add_values(o3, row, 3u); }
        if MATRICES > 4u { o4 = add_values(o4, row, 4u); }
        if MATRICES > 5u { o5 = add_values(o5, row, 5u); }
        if MATRICES > 6u { o6 = add_values(o6, row, 6u); }
        if MATRICES > 7u { o7 = add_values(o7, row, 7u); }
        workgroupBarrier();
    }

    var norm = 1.0 / divisor;
    @if(SOFTMAX)
    shares[thread] = sum;
    workgroupBarrier();
    var total = 0.0;
    for (var lane = 0u; lane < LANES; lane++) { total += shares[thread / LANES * LANES + lane]; }
    norm = 1.0 / max(total, 1e-30);
    @end
    let inside = query < params.queries;
    let at = (group.z * params.queries + query) * row_len + head0;
    write_sums(o0, row, 0u, norm, at, inside, thread);
    if MATRICES > 1u { write_sums(o1, row, 1u, norm, at, inside, thread); }
    if MATRICES > 2u { write_sums(o2, row, 2u, norm, at, inside, thread); }
    if MATRICES > 3u { write_sums(o3, row, 3u, norm, at, inside, thread); }
    if MATRICES > 4u { write_sums(o4, row, 4u, norm, at, inside, thread); }
    if MATRICES > 5u { write_sums(o5, row, 5u, norm, at, inside, thread); }
    if MATRICES > 6u { write_sums(o6, row, 6u, norm, at, inside, thread); }
    if MATRICES > 7u { write_sums(o7, row, 7u, norm, at, inside, thread); }
}

// Fused attention by cooperative matrices: the entry point of attention.wgsl on devices with matrix units. Factors are
// f16, accumulators f32. The operands are declared in attention.wgsl; the tiles are listed in
// kernels/src/attention/matrix.rs.
//
// A workgroup computes QUERIES queries of one head. Each of its subgroups computes EDGE queries: it holds them as
// MATRICES left factors of EDGE x EDGE (q0, q1, ...; a head has MATRICES * EDGE channels, zero-padded), and their
// results as as many accumulators (o0, o1, ...). For each tile of KEYS = 2 * EDGE keys:
//   1. Scores: two accumulators of EDGE x EDGE per subgroup, stored to workgroup memory.
//   2. Weights: LANES invocations per query apply phi to its scores and store the result as f16.
//   3. Results: the weights are loaded as left factors and multiplied by the values of the tile.
//
// Cooperative matrices cannot be scaled row by row, so the running maximum of FlashAttention is not possible. With
// SOFTMAX a first walk over all keys finds the maximum of every query, and a second one computes weights and results.
// The scores are computed twice; the accumulators never need rescaling.
//
// Global loads are software-pipelined: keys and values of the next tile, if there is one, are loaded into registers
// while the current one is computed with. All loads of a tile are issued together and without branches: indices are
// clamped, and out-of-range elements are replaced by zeros when they are staged. Workgroup memory holds two tiles: the
// keys and their values or, with SHARED, the current tile and the next. This is why two barriers per tile are enough.
#import matrix_unit

const THREADS = QUERIES / EDGE * SUBGROUP;
// Number of invocations that share a query: a subgroup has EDGE queries.
const LANES = SUBGROUP / EDGE;
const KEYS = 2u * EDGE;
const DEPTH4 = MATRICES * EDGE / 4u;
// Number of vec4s of scores of a tile that one lane turns into weights.
const SCORES4 = KEYS / 4u / LANES;
// Row strides in workgroup memory, in vec4s: padding puts neighbouring rows into different banks.
const HEAD_ROW = DEPTH4 + 2u;
const SCORE_ROW = KEYS / 4u + EDGE / 8u;
const WEIGHT_ROW = KEYS / 4u + 2u;
// Initial value of the maximum.
const LOWEST = -3e38;
// Factor of softmax's weights, which the division by their sum cancels. f16 is normal from 6.1e-5 to 65504, and devices
// may take smaller numbers for zero: without the factor, a long tail of small weights would be lost. A power of two
// changes nothing else.
const LARGEST_WEIGHT = 8192.0;
// Numbers of vec4s of the queries and of a tile that one invocation stages.
const QUERY_SLOTS = (QUERIES * DEPTH4 + THREADS - 1u) / THREADS;
const KEY_SLOTS = (KEYS * DEPTH4 + THREADS - 1u) / THREADS;

// Workgroup memory: `tile` holds the queries at first, then two tiles of keys or values, DEPTH4 vec4s per row; `scores`
// holds the scores and, at the end, results; `weights` the weights. As in common/gemm_matrix.wgsl, loads on Vulkan
// (WIDE) take pointers to vec4s and count offsets and strides in vec4s, and loads on Metal take pointers to scalars.
// CELLS is the number of array elements in a vec4.
@if(WIDE)
const CELLS = 1u;
var<workgroup> tile: array<Pack, QUERIES * HEAD_ROW>;
var<workgroup> scores: array<vec4<f32>, QUERIES * SCORE_ROW>;
var<workgroup> weights: array<Pack, QUERIES * WEIGHT_ROW>;

fn put_tile(at: u32, v: Pack) { tile[at] = v; }
fn put_weights(at: u32, v: Pack) { weights[at] = v; }
fn scores_at(at: u32) -> vec4<f32> { return scores[at]; }
@else
const CELLS = 4u;
var<workgroup> tile: array<f16, 4u * QUERIES * HEAD_ROW>;
var<workgroup> scores: array<f32, 4u * QUERIES * SCORE_ROW>;
var<workgroup> weights: array<f16, 4u * QUERIES * WEIGHT_ROW>;

fn put_tile(at: u32, v: Pack) {
    tile[4u * at] = v.x;
    tile[4u * at + 1u] = v.y;
    tile[4u * at + 2u] = v.z;
    tile[4u * at + 3u] = v.w;
}

fn put_weights(at: u32, v: Pack) {
    weights[4u * at] = v.x;
    weights[4u * at + 1u] = v.y;
    weights[4u * at + 2u] = v.z;
    weights[4u * at + 3u] = v.w;
}

fn scores_at(at: u32) -> vec4<f32> {
    return vec4<f32>(scores[4u * at], scores[4u * at + 1u], scores[4u * at + 2u], scores[4u * at + 3u]);
}
@end
var<workgroup> shares: array<f32, THREADS>; // one maximum or sum per lane, to be combined per query

// Prefetched tiles of keys and values, as stored.
var<private> next_keys: array<Pack, KEY_SLOTS>;
@if(!SHARED) var<private> next_values: array<Pack, KEY_SLOTS>;

// Returns the index of vec4 `i` of a block of rows of DEPTH4 vec4s that begins at `row0`, relative to row 0 of the
// head. Rows are clamped to the last of `rows`, columns to the last vec4 of the head.
fn place(i: u32, row0: u32, rows: u32, row_len: u32) -> u32 {
    return min(row0 + i / DEPTH4, rows - 1u) * row_len + min(i % DEPTH4, HEAD4 - 1u);
}

// Stores vec4 `i` of a block of rows to `tile`, where the block begins at row `at`. Elements beyond the last of `rows`
// and beyond the head become zeros.
fn stage(i: u32, row0: u32, rows: u32, at: u32, v: Pack) {
    let inside = (row0 + i / DEPTH4 < rows) & ((HEAD4 == DEPTH4) | (i % DEPTH4 < HEAD4));
    put_tile((at + i / DEPTH4) * HEAD_ROW + i % DEPTH4, pack_if(inside, v));
}

// Stages slot `s` of a tile of keys or values. Not every invocation has a last slot.
fn stage_slot(s: u32, key0: u32, at: u32, v: Pack, thread: u32) {
    let i = thread + s * THREADS;
    if KEY_SLOTS * THREADS == KEYS * DEPTH4 || i < KEYS * DEPTH4 { stage(i, key0, params.keys, at, v); }
}

// Stages the workgroup's queries.
fn stage_queries(first: u32, query0: u32, row_len: u32, thread: u32) {
    var values: array<Pack, QUERY_SLOTS>;
    for (var s = 0u; s < QUERY_SLOTS; s++) {
        values[s] = q[first + place(thread + s * THREADS, query0, params.queries, row_len)];
    }
    for (var s = 0u; s < QUERY_SLOTS; s++) {
        let i = thread + s * THREADS;
        if QUERY_SLOTS * THREADS == QUERIES * DEPTH4 || i < QUERIES * DEPTH4 {
            stage(i, query0, params.queries, 0u, values[s]);
        }
    }
}

// Loads the tile of keys from `key0` into registers.
fn fetch_keys(first: u32, key0: u32, row_len: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        next_keys[s] = k[first + place(thread + s * THREADS, key0, params.keys, row_len)];
    }
}

// Stages the loaded keys from row `at` of `tile`.
fn stage_keys(key0: u32, at: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) { stage_slot(s, key0, at, next_keys[s], thread); }
}

@if(!SHARED)
// Loads the tile of values from `key0` into registers.
fn fetch_values(first: u32, key0: u32, row_len: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        next_values[s] = v[first + place(thread + s * THREADS, key0, params.keys, row_len)];
    }
}

// Stages the loaded values from row `at` of `tile`.
fn stage_values(key0: u32, at: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) { stage_slot(s, key0, at, next_values[s], thread); }
}
@end

// Stores two accumulators side by side to `scores`, from row `row`.
fn store_scores(left: Sum, right: Sum, row: u32) {
    coopStoreT(left, &scores[CELLS * row * SCORE_ROW], CELLS * SCORE_ROW);
    coopStoreT(right, &scores[CELLS * (row * SCORE_ROW + EDGE / 4u)], CELLS * SCORE_ROW);
}

// Loads matrix `d` of the staged queries from row `row`.
fn query_matrix(row: u32, d: u32) -> Left {
    return coopLoadT<Left>(&tile[CELLS * (row * HEAD_ROW + d * (EDGE / 4u))], CELLS * HEAD_ROW);
}

// Multiplies matrix `d` of the queries by matrix `d` of EDGE keys, from row `at` of `tile`, and accumulates.
fn add_scores(sums: Sum, queries: Left, at: u32, d: u32) -> Sum {
    // Keys are stored as rows, and the right factor is k^T: hence the load in the other order.
    let keys = coopLoad<Right>(&tile[CELLS * (at * HEAD_ROW + d * (EDGE / 4u))], CELLS * HEAD_ROW);
    return coopMultiplyAdd(queries, keys, sums);
}

// Computes the scores of a subgroup's queries, from `row`, and of the 2 * EDGE keys from row `at` of `tile`.
fn write_scores(
    q0: Left, q1: Left, q2: Left, q3: Left, q4: Left, q5: Left, q6: Left, q7: Left, row: u32, at: u32,
) {
    var left = add_scores(Sum(), q0, at, 0u);
    var right = add_scores(Sum(), q0, at + EDGE, 0u);
    if MATRICES > 1u {
        left = add_scores(left, q1, at, 1u);
        right = add_scores(right, q1, at + EDGE, 1u);
    }
    if MATRICES > 2u {
        left = add_scores(left, q2, at, 2u);
        right = add_scores(right, q2, at + EDGE, 2u);
    }
    if MATRICES > 3u {
        left = add_scores(left, q3, at, 3u);
        right = add_scores(right, q3, at + EDGE, 3u);
    }
    if MATRICES > 4u {
        left = add_scores(left, q4, at, 4u);
        right = add_scores(right, q4, at + EDGE, 4u);
    }
    if MATRICES > 5u {
        left = add_scores(left, q5, at, 5u);
        right = add_scores(right, q5, at + EDGE, 5u);
    }
    if MATRICES > 6u {
        left = add_scores(left, q6, at, 6u);
        right = add_scores(right, q6, at + EDGE, 6u);
    }
    if MATRICES > 7u {
        left = add_scores(left, q7, at, 7u);
        right = add_scores(right, q7, at + EDGE, 7u);
    }
    store_scores(left, right, row);
}

// Returns this invocation's scores, scaled: every LANES-th vec4 of its query's row.
fn own_scores(scale: f32, thread: u32) -> array<vec4<f32>, SCORES4> {
    var found: array<vec4<f32>, SCORES4>;
    for (var j = 0u; j < SCORES4; j++) {
        found[j] = scores_at(thread / LANES * SCORE_ROW + j * LANES + thread % LANES) * scale;
    }
    return found;
}

// Returns which keys of this invocation's vec4 `j` are among the first `seen`, which its query sees.
fn are_seen(j: u32, key0: u32, seen: u32, thread: u32) -> vec4<bool> {
    return key0 + 4u * (j * LANES + thread % LANES) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(seen);
}

@if(SOFTMAX)
// Returns the maximum of this invocation's scores.
fn highest_score(key0: u32, seen: u32, scale: f32, thread: u32) -> f32 {
    var found = own_scores(scale, thread);
    var highest = vec4<f32>(LOWEST);
    for (var j = 0u; j < SCORES4; j++) {
        highest = max(highest, select(vec4<f32>(LOWEST), found[j], are_seen(j, key0, seen, thread)));
    }
    return max(max(highest.x, highest.y), max(highest.z, highest.w));
}
@end

// Turns this invocation's scores into weights and returns their sums. The sums are those of the weights after rounding
// to f16, which are the ones that the values are multiplied by.
fn write_weights(key0: u32, seen: u32, scale: f32, highest: f32, thread: u32) -> vec4<f32> {
    var found = own_scores(scale, thread);
    var sums = vec4<f32>(0.0);
    for (var j = 0u; j < SCORES4; j++) {
        @if(SOFTMAX) let weight = LARGEST_WEIGHT * exp(max(found[j] - highest, vec4<f32>(-88.0)));
        @if(!SOFTMAX) let weight = clamp(found[j], vec4<f32>(0.0), vec4<f32>(65504.0));
        let rounded = Pack(select(vec4<f32>(0.0), weight, are_seen(j, key0, seen, thread)));
        sums += vec4<f32>(rounded);
        put_weights(thread / LANES * WEIGHT_ROW + j * LANES + thread % LANES, rounded);
    }
    return sums;
}

// Loads the weights of the first or second EDGE keys of the tile from row `row`.
fn weight_matrix(row: u32, half: u32) -> Left {
    return coopLoadT<Left>(&weights[CELLS * (row * WEIGHT_ROW + half * (EDGE / 4u))], CELLS * WEIGHT_ROW);
}

// Multiplies a matrix of weights by matrix `d` of the values from row `at` of `tile`, and accumulates.
fn add_values(sums: Sum, left: Left, at: u32, d: u32) -> Sum {
    let values = coopLoadT<Right>(&tile[CELLS * (at * HEAD_ROW + d * (EDGE / 4u))], CELLS * HEAD_ROW);
    return coopMultiplyAdd(left, values, sums);
}

// Writes two accumulators of results, matrices `d` and `d + 1` of the head, to y through `scores`. `row` is the
// subgroup's first row, `first` the index in y of this invocation's query.
fn write_sums(left: Sum, right: Sum, row: u32, d: u32, norm: f32, first: u32, inside: bool, thread: u32) {
    store_scores(left, right, row);
    workgroupBarrier();
    for (var j = 0u; j < SCORES4; j++) {
        let quad = j * LANES + thread % LANES;
        let value = scores_at(thread / LANES * SCORE_ROW + quad) * norm;
        if inside & (d * (EDGE / 4u) + quad < HEAD4) { y[first + d * (EDGE / 4u) + quad] = store4(value); }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    let query0 = (params.first_query_tile + group.x) * QUERIES;
    let query = query0 + thread / LANES;
    let row = thread / SUBGROUP * EDGE;
    // Index of the head's first vec4 in row 0 of the image, in k and v, and in q and y.
    let of_keys = group.z * params.keys * row_len + group.y * HEAD4;
    let of_queries = group.z * params.queries * row_len + group.y * HEAD4;
    // Number of keys that this query sees, and that any query of the workgroup sees.
    let seen = select(params.keys, min(params.keys, query + 1u), CAUSAL == 1u);
    let seen_by_group = select(params.keys, min(params.keys, query0 + QUERIES), CAUSAL == 1u);
    // Relu's weights are divided by the number of keys at the very end: f16 represents the undivided ones better.
    let divisor = select(f32(params.keys), 1.0, SOFTMAX == 1u);
    let scale = params.scale * divisor;

    fetch_keys(of_keys, 0u, row_len, thread);
    stage_queries(of_queries, query0, row_len, thread);
    workgroupBarrier();
    var q0 = query_matrix(row, 0u);
    var q1 = Left();
    var q2 = Left();
    var q3 = Left();
    var q4 = Left();
    var q5 = Left();
    var q6 = Left();
    var q7 = Left();
    if MATRICES > 1u { q1 = query_matrix(row, 1u); }
    if MATRICES > 2u { q2 = query_matrix(row, 2u); }
    if MATRICES > 3u { q3 = query_matrix(row, 3u); }
    if MATRICES > 4u { q4 = query_matrix(row, 4u); }
    if MATRICES > 5u { q5 = query_matrix(row, 5u); }
    if MATRICES > 6u { q6 = query_matrix(row, 6u); }
    if MATRICES > 7u { q7 = query_matrix(row, 7u); }
    workgroupBarrier();

    var highest = LOWEST;
    @if(SOFTMAX)
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        stage_keys(key0, 0u, thread);
        if key0 + KEYS < seen_by_group { fetch_keys(of_keys, key0 + KEYS, row_len, thread); }
        workgroupBarrier();
        write_scores(q0, q1, q2, q3, q4, q5, q6, q7, row, 0u);
        workgroupBarrier();
        highest = max(highest, highest_score(key0, seen, scale, thread));
    }
    fetch_keys(of_keys, 0u, row_len, thread);
    shares[thread] = highest;
    workgroupBarrier();
    for (var lane = 0u; lane < LANES; lane++) { highest = max(highest, shares[thread / LANES * LANES + lane]); }
    @end

    var sums = vec4<f32>(0.0);
    var o0 = Sum();
    var o1 = Sum();
    var o2 = Sum();
    var o3 = Sum();
    var o4 = Sum();
    var o5 = Sum();
    var o6 = Sum();
    var o7 = Sum();
    var keys_at = 0u;
    stage_keys(0u, keys_at, thread);
    @if(!SHARED) fetch_values(of_keys, 0u, row_len, thread);
    if KEYS < seen_by_group { fetch_keys(of_keys, KEYS, row_len, thread); }
    workgroupBarrier();
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        write_scores(q0, q1, q2, q3, q4, q5, q6, q7, row, keys_at);
        workgroupBarrier();
        sums += write_weights(key0, seen, scale, highest, thread);
        @if(!SHARED) let values_at = KEYS;
        @if(!SHARED) stage_values(key0, values_at, thread);
        @if(SHARED) let values_at = keys_at;
        @if(SHARED) keys_at = KEYS - keys_at;
        // After the last tile this stages old registers or zeros, which nothing reads.
        stage_keys(key0 + KEYS, keys_at, thread);
        @if(!SHARED) if key0 + KEYS < seen_by_group { fetch_values(of_keys, key0 + KEYS, row_len, thread); }
        if key0 + 2u * KEYS < seen_by_group { fetch_keys(of_keys, key0 + 2u * KEYS, row_len, thread); }
        workgroupBarrier();
        for (var half = 0u; half < 2u; half++) {
            let left = weight_matrix(row, half);
            let at = values_at + half * EDGE;
            o0 = add_values(o0, left, at, 0u);
            if MATRICES > 1u { o1 = add_values(o1, left, at, 1u); }
            if MATRICES > 2u { o2 = add_values(o2, left, at, 2u); }
            if MATRICES > 3u { o3 = add_values(o3, left, at, 3u); }
            if MATRICES > 4u { o4 = add_values(o4, left, at, 4u); }
            if MATRICES > 5u { o5 = add_values(o5, left, at, 5u); }
            if MATRICES > 6u { o6 = add_values(o6, left, at, 6u); }
            if MATRICES > 7u { o7 = add_values(o7, left, at, 7u); }
        }
    }

    var norm = 1.0 / divisor;
    @if(SOFTMAX)
    shares[thread] = sums.x + sums.y + sums.z + sums.w;
    workgroupBarrier();
    var total = 0.0;
    for (var lane = 0u; lane < LANES; lane++) { total += shares[thread / LANES * LANES + lane]; }
    norm = 1.0 / max(total, 1e-30);
    @end
    let inside = query < params.queries;
    let first = of_queries + query * row_len;
    write_sums(o0, o1, row, 0u, norm, first, inside, thread);
    if MATRICES > 2u { write_sums(o2, o3, row, 2u, norm, first, inside, thread); }
    if MATRICES > 4u { write_sums(o4, o5, row, 4u, norm, first, inside, thread); }
    if MATRICES > 6u { write_sums(o6, o7, row, 6u, norm, first, inside, thread); }
}

// Fused multi-head attention: y = phi(q k^T / sqrt(head_dim)) v for every head, where phi is softmax over the keys or
// relu divided by the number of keys. The host side is kernels/src/attention.rs.
//
// Operands: q and y [n, queries, heads * head_dim]; k and v [n, keys, heads * head_dim]. With SHARED the keys are the
// values too, and v is absent. With CAUSAL a query sees only the keys up to its own index. Workgroup (x, y, z) computes
// the x-th block of QUERIES queries of head y of image z. With MATRIX, common/attention_matrix.wgsl defines the entry
// point.
//
// Without matrix units, a workgroup has 64 invocations, LANES for each query. It walks over the keys in tiles of KEYS:
//   1. Stage the tile of keys in workgroup memory. Every lane computes its share of the query's scores in registers.
//   2. Softmax: the lanes of a query exchange the maxima of their shares, update the running maximum and rescale what
//      was summed so far, as in FlashAttention.
//   3. Every lane turns its share of scores into weights, [QUERIES, KEYS], in workgroup memory. Meanwhile the values of
//      the same keys are staged in the memory of the keys (with SHARED they are there already).
//   4. Add weight * value to the accumulator of the query. Its vec4s are interleaved over the lanes, SLICE each.
// Scores never reach global memory, and every weight is computed once. Every lane of a query sums the weights for
// itself, because it reads them all anyway. ReLU has no maximum, so it needs no barrier between steps 1 and 3.
//
// Where a tile has fewer keys than a query has lanes, PARTS lanes share a score: each computes the sum over its own
// DEPTH4 vec4s of the head, and the parts are exchanged instead of the maxima. Softmax adds them up in step 2, ReLU
// whenever it reads a weight.
//
// Global loads are software-pipelined: the next tile, if there is one, is loaded into registers while the current one
// is computed with. All loads of a tile are issued together and without branches: out-of-range indices are clamped to
// the last row.

@if(MATRIX) #import attention_matrix

struct Params {
    first_query_tile: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    scale: f32, // 1 / sqrt(head_dim), divided by the number of keys for relu
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Pack>; // [n, queries, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<Pack>; // [n, keys, heads * head_dim]
@if(!SHARED) @group(0) @binding(3) var<storage, read> v: array<Pack>; // [n, keys, heads * head_dim]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [n, queries, heads * head_dim]

@if(!MATRIX)
// Row strides in workgroup memory have one element of padding, so that neighbouring rows begin in different banks.
const ROW = HEAD4 + 1u;
const Q_SIZE = QUERIES * ROW;
const TILE_SIZE = KEYS * ROW;
const WEIGHT_ROW = KEYS + 1u;
const WEIGHTS_SIZE = QUERIES * WEIGHT_ROW;
// Scores of a tile that one lane computes. With PARTS > 1 it is a part of one.
const LANE_SCORES = KEYS * PARTS / LANES;
alias Scores = array<f32, LANE_SCORES>;
// Initial value of the running maximum.
const LOWEST = -3e38;
// Score, or part of one, of a key that the query does not see.
@if(SOFTMAX) const UNSEEN = LOWEST / f32(PARTS);
@if(!SOFTMAX) const UNSEEN = 0.0;
// Number of keys whose weights and values are read together. It divides KEYS.
const BATCH = min(KEYS, 4u);
// Whether the vec4s of a head divide evenly among the lanes.
const EVEN = SLICE * LANES == HEAD4;

var<workgroup> q_tile: array<vec4<f32>, Q_SIZE>; // [QUERIES, HEAD4], multiplied by scale
var<workgroup> tile: array<vec4<f32>, TILE_SIZE>; // [KEYS, HEAD4], first keys, then their values
var<workgroup> weights: array<f32, WEIGHTS_SIZE>; // [QUERIES, KEYS]; not used by relu with PARTS > 1
// [QUERIES, LANES]: maxima of the lanes' scores. With PARTS > 1, [QUERIES, PARTS, KEYS]: parts of scores.
var<workgroup> shares: array<f32, 64>;

// Numbers of vec4s of the queries and of a tile that one invocation stages.
const QUERY_SLOTS = (QUERIES * HEAD4 + 63u) / 64u;
const KEY_SLOTS = (KEYS * HEAD4 + 63u) / 64u;

// Prefetched tile of keys or values, as stored.
var<private> next: array<Pack, KEY_SLOTS>;

// Returns the index of vec4 `i` of a block of rows that begins at `row0`, relative to row 0 of the head. Rows are
// clamped to the last of `rows`.
fn place(i: u32, row0: u32, rows: u32, row_len: u32) -> u32 {
    return min(row0 + i / HEAD4, rows - 1u) * row_len + i % HEAD4;
}

// Stages the workgroup's queries, multiplied by scale. Rows beyond the last query repeat it; their results are not
// stored.
fn stage_queries(first: u32, query0: u32, row_len: u32, thread: u32) {
    var values: array<Pack, QUERY_SLOTS>;
    for (var s = 0u; s < QUERY_SLOTS; s++) {
        values[s] = q[first + place(thread + s * 64u, query0, params.queries, row_len)];
    }
    for (var s = 0u; s < QUERY_SLOTS; s++) {
        let i = thread + s * 64u;
        if QUERY_SLOTS * 64u > QUERIES * HEAD4 && i >= QUERIES * HEAD4 { break; }
        q_tile[i / HEAD4 * ROW + i % HEAD4] = load4(values[s]) * params.scale;
    }
}

// Loads a tile of keys, or of values if `values`, into registers.
fn fetch(values: bool, first: u32, key0: u32, row_len: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        let at = first + place(thread + s * 64u, key0, params.keys, row_len);
        if !values { next[s] = k[at]; }
        @if(!SHARED) if values { next[s] = v[at]; }
    }
}

// Moves the loaded tile to workgroup memory. Rows beyond the last key repeat it; their weights are zero.
fn stage(thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        let i = thread + s * 64u;
        if KEY_SLOTS * 64u > KEYS * HEAD4 && i >= KEYS * HEAD4 { break; }
        tile[i / HEAD4 * ROW + i % HEAD4] = load4(next[s]);
    }
}

// Returns the key of the tile that score `i` of a lane belongs to.
fn key_of(lane: u32, i: u32) -> u32 {
    return (lane + i * LANES) % KEYS;
}

// Returns this lane's share of the scores of its query: every LANES-th score, or with PARTS > 1 a part of one. The
// query sees the first `count` keys of the tile.
fn own_scores(query: u32, lane: u32, count: u32) -> Scores {
    var sums: Scores;
    let first = lane / KEYS % PARTS * DEPTH4;
    for (var d = first; d < min(first + DEPTH4, HEAD4); d++) {
        let value = q_tile[query * ROW + d];
        for (var i = 0u; i < LANE_SCORES; i++) { sums[i] += dot(value, tile[key_of(lane, i) * ROW + d]); }
    }
    for (var i = 0u; i < LANE_SCORES; i++) { sums[i] = select(UNSEEN, sums[i], key_of(lane, i) < count); }
    return sums;
}

// Returns the score of a query and a key of the tile, summed over its parts.
fn joined_score(query: u32, key: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) { sum += shares[query * LANES + part * KEYS + key]; }
    return sum;
}

@if(SOFTMAX)
// Returns what a lane tells the others before the maximum is known: the maximum of its scores, or its part of a score.
fn share_of(own: Scores) -> f32 {
    var scores = own;
    var highest = scores[0];
    for (var i = 1u; i < LANE_SCORES; i++) { highest = max(highest, scores[i]); }
    return highest;
}

// Returns the maximum of `before` and of the query's scores in the tile, from the shares of its lanes.
fn highest_score(query: u32, before: f32) -> f32 {
    var highest = before;
    if PARTS == 1u {
        for (var lane = 0u; lane < LANES; lane++) { highest = max(highest, shares[query * LANES + lane]); }
    } else {
        for (var key = 0u; key < KEYS; key++) { highest = max(highest, joined_score(query, key)); }
    }
    return highest;
}

// Turns a lane's scores into weights, without the division by their sum. With PARTS > 1, the first KEYS lanes turn one
// joined score each. Exponents are clamped at -88, about where exp underflows.
fn write_weights(query: u32, lane: u32, own: Scores, count: u32, highest: f32) {
    var scores = own;
    if PARTS > 1u { scores[0] = joined_score(query, lane % KEYS); }
    for (var i = 0u; i < LANE_SCORES; i++) {
        let key = key_of(lane, i);
        let weight = select(0.0, exp(max(scores[i] - highest, -88.0)), key < count);
        if PARTS == 1u || lane < KEYS { weights[query * WEIGHT_ROW + key] = weight; }
    }
}

// Returns the weight of a key of the tile.
fn weight_of(query: u32, key: u32) -> f32 {
    return weights[query * WEIGHT_ROW + key];
}
@else
// Turns a lane's scores into weights. With PARTS > 1 it only shares its part of a score: `weight_of` joins them.
fn write_weights(query: u32, lane: u32, own: Scores) {
    var scores = own;
    if PARTS > 1u {
        shares[query * LANES + lane] = scores[0];
    } else {
        for (var i = 0u; i < LANE_SCORES; i++) {
            weights[query * WEIGHT_ROW + key_of(lane, i)] = max(scores[i], 0.0);
        }
    }
}

// Returns the weight of a key of the tile.
fn weight_of(query: u32, key: u32) -> f32 {
    if PARTS > 1u { return max(joined_score(query, key), 0.0); }
    return weights[query * WEIGHT_ROW + key];
}
@end

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    // Index of the head's first vec4 in row 0 of the image, in k and v, and in q and y.
    let of_keys = group.z * params.keys * row_len + group.y * HEAD4;
    let of_queries = group.z * params.queries * row_len + group.y * HEAD4;
    let query0 = (params.first_query_tile + group.x) * QUERIES;
    let query = thread / LANES;
    let lane = thread % LANES;
    // Number of keys that this query sees, and that any query of the workgroup sees.
    let seen = select(params.keys, min(params.keys, query0 + query + 1u), CAUSAL == 1u);
    let seen_by_group = select(params.keys, min(params.keys, query0 + QUERIES), CAUSAL == 1u);
    fetch(false, of_keys, 0u, row_len, thread);
    stage_queries(of_queries, query0, row_len, thread);

    var acc: array<vec4<f32>, SLICE>;
    var highest = LOWEST;
    var sum = 0.0;
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        stage(thread);
        // There may be no next tile. The condition is the same for the whole workgroup.
        let more = key0 + KEYS < seen_by_group;
        // Loads begin before the barrier, which covers a part of their latency.
        @if(!SHARED) fetch(true, of_keys, key0, row_len, thread);
        @if(SHARED) if more { fetch(false, of_keys, key0 + KEYS, row_len, thread); }
        workgroupBarrier();
        let count = min(KEYS, max(seen, key0) - key0);
        let own = own_scores(query, lane, count);
        @if(SOFTMAX) shares[thread] = share_of(own);
        @if(!SOFTMAX) write_weights(query, lane, own);
        workgroupBarrier();
        @if(!SHARED) stage(thread);
        @if(SOFTMAX)
        // Rescale the sums to the new maximum. Every query sees a key of the first tile, so the maximum is finite.
        let before = highest;
        highest = highest_score(query, highest);
        write_weights(query, lane, own, count, highest);
        let kept = exp(max(before - highest, -88.0));
        sum *= kept;
        for (var i = 0u; i < SLICE; i++) { acc[i] *= kept; }
        @end
        @if(!SHARED) if more { fetch(false, of_keys, key0 + KEYS, row_len, thread); }
        // Both need a barrier: the staged values, and the weights of softmax.
        if SHARED == 0u || SOFTMAX == 1u { workgroupBarrier(); }
        // Keys that some queries do not see have weights of zero, so that all queries take equally many steps.
        for (var first = 0u; first < min(KEYS, seen_by_group - key0); first += BATCH) {
            for (var b = 0u; b < BATCH; b++) {
                let key = first + b;
                let weight = weight_of(query, key);
                sum += weight;
                for (var i = 0u; i < SLICE; i++) {
                    let d = lane + i * LANES;
                    if EVEN || d < HEAD4 { acc[i] += weight * tile[key * ROW + d]; }
                }
            }
        }
        workgroupBarrier();
    }

    if query0 + query >= params.queries { return; }
    let norm = select(1.0, 1.0 / max(sum, 1e-30), SOFTMAX == 1u);
    let row = of_queries + (query0 + query) * row_len;
    for (var i = 0u; i < SLICE; i++) {
        let d = lane + i * LANES;
        if EVEN || d < HEAD4 { y[row + d] = store4(acc[i] * norm); }
    }
}
@end

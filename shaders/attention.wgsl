// Fused multi-head attention: y = phi(q k^T / sqrt(head_dim)) v for every head, where phi is softmax over the keys or
// relu divided by the number of keys. The host side is kernels/src/attention.rs.
//
// Operands: q and y [n, queries, heads * head_dim]; k and v [n, keys, heads * head_dim]. With SHARED the keys are the
// values too, and v is absent. With CAUSAL a query sees only the keys up to its own index. Workgroup (x, y, z) computes
// the x-th block of QUERIES queries of head y of image z. With MATRIX, common/attention_matrix.wgsl defines the entry
// point.
//
// Without matrix units, a workgroup has 64 invocations, LANES for each query. It walks over the keys in tiles of KEYS:
//   1. Stage the tile of keys in workgroup memory, and compute its scores, [QUERIES, KEYS], in workgroup memory.
//   2. Stage the values of the same keys in the same memory (with SHARED they are there already).
//   3. Softmax: update the running maximum of the query and rescale what was summed so far, as in FlashAttention.
//   4. Add weight * value to the accumulator of the query. Its vec4s are interleaved over the lanes, SLICE each.
// Scores never reach global memory. Every lane of a query finds the maximum and the sum of the weights for itself,
// because the scores are in workgroup memory anyway: this needs no reduction between lanes. Where a tile has fewer keys
// than a query has lanes, PARTS lanes share a score: each computes the sum over its own DEPTH4 vec4s of the head.
//
// Global loads are software-pipelined: the next tile is loaded into registers while the current one is computed with.
// All loads of a tile are issued together and without branches: out-of-range indices are clamped to the last row.

@if(MATRIX) #import attention_matrix

struct Params {
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
const SCORE_ROW = KEYS * PARTS + 1u;
const SCORES_SIZE = QUERIES * SCORE_ROW;
// Scores of a tile that one lane computes.
const LANE_SCORES = KEYS * PARTS / LANES;
// Initial value of the running maximum.
const LOWEST = -3e38;
// Number of keys whose scores and values are read together. Indices beyond the last key are clamped to it.
const BATCH = min(KEYS, 4u);
// Whether the vec4s of a head divide evenly among the lanes.
const EVEN = SLICE * LANES == HEAD4;

var<workgroup> q_tile: array<vec4<f32>, Q_SIZE>; // [QUERIES, HEAD4], multiplied by scale
var<workgroup> tile: array<vec4<f32>, TILE_SIZE>; // [KEYS, HEAD4], first keys, then their values
var<workgroup> scores: array<f32, SCORES_SIZE>; // [QUERIES, PARTS, KEYS]

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

// Moves the loaded tile to workgroup memory. Rows beyond the last key repeat it; no query sees them.
fn stage(thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        let i = thread + s * 64u;
        if KEY_SLOTS * 64u > KEYS * HEAD4 && i >= KEYS * HEAD4 { break; }
        tile[i / HEAD4 * ROW + i % HEAD4] = load4(next[s]);
    }
}

// Computes this lane's share of the scores of its query: every LANES-th score, or with PARTS > 1 a part of one.
fn write_scores(query: u32, lane: u32) {
    var sums: array<f32, LANE_SCORES>;
    let first = lane / KEYS % PARTS * DEPTH4;
    for (var d = first; d < min(first + DEPTH4, HEAD4); d++) {
        let value = q_tile[query * ROW + d];
        for (var i = 0u; i < LANE_SCORES; i++) {
            sums[i] += dot(value, tile[(lane + i * LANES) % KEYS * ROW + d]);
        }
    }
    for (var i = 0u; i < LANE_SCORES; i++) {
        scores[query * SCORE_ROW + lane + i * LANES] = sums[i];
    }
}

// Returns the score of a query and a key of the tile, summed over its parts.
fn score(query: u32, key: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        sum += scores[query * SCORE_ROW + part * KEYS + key];
    }
    return sum;
}

// Returns the maximum of `before` and of the first `count` scores of a query.
fn highest_score(query: u32, count: u32, before: f32) -> f32 {
    var highest = before;
    for (var first = 0u; first < count; first += BATCH) {
        for (var b = 0u; b < BATCH; b++) { highest = max(highest, score(query, min(first + b, count - 1u))); }
    }
    return highest;
}

// Returns phi(score), without the division by the sum of weights. Exponents are clamped at -88, about where exp
// underflows.
fn weight_of(score: f32, highest: f32) -> f32 {
    return select(max(score, 0.0), exp(max(score - highest, -88.0)), SOFTMAX == 1u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    // Index of the head's first vec4 in row 0 of the image, in k and v, and in q and y.
    let of_keys = group.z * params.keys * row_len + group.y * HEAD4;
    let of_queries = group.z * params.queries * row_len + group.y * HEAD4;
    let query0 = group.x * QUERIES;
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
        workgroupBarrier();
        @if(!SHARED) fetch(true, of_keys, key0, row_len, thread);
        @if(SHARED) fetch(false, of_keys, key0 + KEYS, row_len, thread);
        write_scores(query, lane);
        workgroupBarrier();
        @if(!SHARED) stage(thread);
        @if(!SHARED) workgroupBarrier();
        @if(!SHARED) fetch(false, of_keys, key0 + KEYS, row_len, thread);
        let count = min(KEYS, max(seen, key0) - key0);
        if SOFTMAX == 1u {
            // Rescale the sums to the new maximum. Every query sees a key of the first tile, so the maximum is finite.
            let before = highest;
            highest = highest_score(query, count, highest);
            let kept = exp(max(before - highest, -88.0));
            sum *= kept;
            for (var i = 0u; i < SLICE; i++) { acc[i] *= kept; }
        }
        for (var first = 0u; first < count; first += BATCH) {
            for (var b = 0u; b < BATCH; b++) {
                let key = min(first + b, count - 1u);
                let weight = select(0.0, weight_of(score(query, key), highest), first + b < count);
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

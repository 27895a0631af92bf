// y = phi(q k^T / sqrt(head_dim)) v, head by head: see kernels/src/attention.rs.
//
// Without matrix units, a workgroup computes QUERIES queries of one head, LANES invocations each. Keys come in tiles of
// KEYS: the scores of a tile lie in workgroup memory, the sums of a query are spread over its lanes, SLICE vec4 each. Where
// a tile has fewer keys than a query has lanes, PARTS lanes share a score, each the sum over DEPTH4 vec4 of the head.
//
// What is staged next is on its way while a tile is computed with: all its loads are issued at once, from the nearest place
// where they would be outside.

@if(MATRIX) #import attention_matrix

struct Params {
    queries: u32,
    keys: u32,
    heads: u32,
    scale: f32, // times 1 / keys for relu
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Pack>; // [n, queries, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<Pack>; // [n, keys, heads * head_dim]
@if(!SHARED) @group(0) @binding(3) var<storage, read> v: array<Pack>; // [n, keys, heads * head_dim]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [n, queries, heads * head_dim]

@if(!MATRIX)
// Every row has a gap behind it, so that neighbouring rows begin in different banks.
const ROW = HEAD4 + 1u;
const Q_SIZE = QUERIES * ROW;
const TILE_SIZE = KEYS * ROW;
const SCORE_ROW = KEYS * PARTS + 1u;
const SCORES_SIZE = QUERIES * SCORE_ROW;
const LANE_SCORES = KEYS * PARTS / LANES;
const LOWEST = -3e38;
// Keys whose scores and values are read at once, the last again where they would be beyond it.
const BATCH = min(KEYS, 4u);
// Whether every lane has as many vec4s of a head.
const EVEN = SLICE * LANES == HEAD4;

var<workgroup> q_tile: array<vec4<f32>, Q_SIZE>; // [QUERIES, HEAD4], scaled
var<workgroup> tile: array<vec4<f32>, TILE_SIZE>; // [KEYS, HEAD4], keys, then their values
var<workgroup> scores: array<f32, SCORES_SIZE>; // [QUERIES, PARTS, KEYS]

// vec4s of the queries and of a tile that one invocation stages.
const QUERY_SLOTS = (QUERIES * HEAD4 + 63u) / 64u;
const KEY_SLOTS = (KEYS * HEAD4 + 63u) / 64u;

var<private> next: array<Pack, KEY_SLOTS>;

// Where vec4 `i` of some rows of a head lies, counted from the first of its `rows` rows.
fn place(i: u32, row0: u32, rows: u32, row_len: u32) -> u32 {
    return min(row0 + i / HEAD4, rows - 1u) * row_len + i % HEAD4;
}

/// Stages the queries, scaled; beyond the last the last again, which nobody writes.
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

/// Fetches a tile of keys or of their values.
fn fetch(values: bool, first: u32, key0: u32, row_len: u32, thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        let at = first + place(thread + s * 64u, key0, params.keys, row_len);
        if !values { next[s] = k[at]; }
        @if(!SHARED) if values { next[s] = v[at]; }
    }
}

/// Stages the tile that was fetched; beyond the last key the last again, which nobody sees.
fn stage(thread: u32) {
    for (var s = 0u; s < KEY_SLOTS; s++) {
        let i = thread + s * 64u;
        if KEY_SLOTS * 64u > KEYS * HEAD4 && i >= KEYS * HEAD4 { break; }
        tile[i / HEAD4 * ROW + i % HEAD4] = load4(next[s]);
    }
}

/// Writes this lane's share of the scores of its query.
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

fn score(query: u32, key: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        sum += scores[query * SCORE_ROW + part * KEYS + key];
    }
    return sum;
}

/// The highest of the first `count` scores of a query and of what was found before.
fn highest_score(query: u32, count: u32, before: f32) -> f32 {
    var highest = before;
    for (var first = 0u; first < count; first += BATCH) {
        for (var b = 0u; b < BATCH; b++) { highest = max(highest, score(query, min(first + b, count - 1u))); }
    }
    return highest;
}

fn weight_of(score: f32, highest: f32) -> f32 {
    return select(max(score, 0.0), exp(max(score - highest, -88.0)), SOFTMAX == 1u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    // Where the head begins among the keys and the queries of its image.
    let of_keys = group.z * params.keys * row_len + group.y * HEAD4;
    let of_queries = group.z * params.queries * row_len + group.y * HEAD4;
    let query0 = group.x * QUERIES;
    let query = thread / LANES;
    let lane = thread % LANES;
    // Keys this query sees, and keys any query of the workgroup sees.
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
            // What was summed so far is brought to the new highest score. The first tile has a key for every query.
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

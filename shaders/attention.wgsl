// y = phi(q k^T / sqrt(head_dim)) v, head by head: see kernels/src/attention.rs.
//
// Without matrix units, a workgroup computes QUERIES queries of one head, LANES invocations each. Keys come in tiles of KEYS: the scores of
// a tile lie in workgroup memory, the sums of a query are spread over its lanes, SLICE vec4 each. Where a tile has
// fewer keys than a query has lanes, PARTS lanes share a score, each the sum over DEPTH4 vec4 of the head.

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
@if(SEPARATE) @group(0) @binding(3) var<storage, read> v: array<Pack>; // [n, keys, heads * head_dim]
@group(0) @binding(4) var<storage, read_write> y: array<Pack>; // [n, queries, heads * head_dim]

@if(PLAIN)
// Every row has a gap behind it, so that neighbouring rows begin in different banks.
const ROW = HEAD4 + 1u;
const Q_SIZE = QUERIES * ROW;
const TILE_SIZE = KEYS * ROW;
const SCORE_ROW = KEYS * PARTS + 1u;
const SCORES_SIZE = QUERIES * SCORE_ROW;
const LANE_SCORES = KEYS * PARTS / LANES;
const LOWEST = -3e38;

var<workgroup> q_tile: array<vec4<f32>, Q_SIZE>; // [QUERIES, HEAD4], scaled
var<workgroup> tile: array<vec4<f32>, TILE_SIZE>; // [KEYS, HEAD4], keys, then their values
var<workgroup> scores: array<f32, SCORES_SIZE>; // [QUERIES, PARTS, KEYS]

/// Loads the queries; zero beyond the last.
fn load_queries(query0: u32, image: u32, head0: u32, row_len: u32, thread: u32) {
    for (var i = thread; i < QUERIES * HEAD4; i += 64u) {
        let query = query0 + i / HEAD4;
        var value = vec4<f32>();
        if query < params.queries {
            value = load4(q[(image * params.queries + query) * row_len + head0 + i % HEAD4]) * params.scale;
        }
        q_tile[i / HEAD4 * ROW + i % HEAD4] = value;
    }
}

/// Loads a tile of keys or of their values; zero beyond the last.
fn load_tile(values: bool, key0: u32, image: u32, head0: u32, row_len: u32, thread: u32) {
    for (var i = thread; i < KEYS * HEAD4; i += 64u) {
        let key = key0 + i / HEAD4;
        var value = vec4<f32>();
        if key < params.keys {
            let at = (image * params.keys + key) * row_len + head0 + i % HEAD4;
            if !values { value = load4(k[at]); }
            @if(SEPARATE) if values { value = load4(v[at]); }
        }
        tile[i / HEAD4 * ROW + i % HEAD4] = value;
    }
}

/// Writes this lane's share of the scores of its query.
fn write_scores(query: u32, lane: u32) {
    var sums = array<f32, LANE_SCORES>();
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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_len = params.heads * HEAD4;
    let head0 = group.y * HEAD4;
    let query0 = group.x * QUERIES;
    let query = thread / LANES;
    let lane = thread % LANES;
    // Keys this query sees, and keys any query of the workgroup sees.
    let seen = select(params.keys, min(params.keys, query0 + query + 1u), CAUSAL == 1u);
    let seen_by_group = select(params.keys, min(params.keys, query0 + QUERIES), CAUSAL == 1u);
    load_queries(query0, group.z, head0, row_len, thread);

    var acc = array<vec4<f32>, SLICE>();
    var highest = LOWEST;
    var sum = 0.0;
    for (var key0 = 0u; key0 < seen_by_group; key0 += KEYS) {
        load_tile(false, key0, group.z, head0, row_len, thread);
        workgroupBarrier();
        write_scores(query, lane);
        workgroupBarrier();
        if SEPARATE == 1u {
            load_tile(true, key0, group.z, head0, row_len, thread);
            workgroupBarrier();
        }
        let count = min(KEYS, max(seen, key0) - key0);
        if SOFTMAX == 1u {
            // What was summed so far is brought to the new highest score. The first tile has a key for every query.
            let before = highest;
            for (var key = 0u; key < count; key++) { highest = max(highest, score(query, key)); }
            let kept = exp(max(before - highest, -88.0));
            sum *= kept;
            for (var i = 0u; i < SLICE; i++) { acc[i] *= kept; }
        }
        for (var key = 0u; key < count; key++) {
            var weight = score(query, key);
            if SOFTMAX == 1u {
                weight = exp(max(weight - highest, -88.0));
                sum += weight;
            } else {
                weight = max(weight, 0.0);
            }
            for (var i = 0u; i < SLICE; i++) {
                let d = lane + i * LANES;
                if d < HEAD4 { acc[i] += weight * tile[key * ROW + d]; }
            }
        }
        workgroupBarrier();
    }

    if query0 + query >= params.queries { return; }
    let norm = select(1.0, 1.0 / max(sum, 1e-30), SOFTMAX == 1u);
    let row = (group.z * params.queries + query0 + query) * row_len + head0;
    for (var i = 0u; i < SLICE; i++) {
        let d = lane + i * LANES;
        if d < HEAD4 { y[row + d] = store4(acc[i] * norm); }
    }
}
@end

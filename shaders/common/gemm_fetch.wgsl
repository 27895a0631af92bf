// Prefetching of a tiled product: the loads of one invocation for one step, held in registers until the step is staged.
// An invocation loads one vec4 of k of ROW_SLOTS rows and of COL_SLOTS columns, SPAN rows or columns apart.
const ROW_SLOTS = TILE_ROWS * STEP4 / THREADS;
const COL_SLOTS = 4u * TILE_QUADS * STEP4 / THREADS;
const SPAN = THREADS / STEP4;

var<private> next_k4: u32;
var<private> next_x: array<Input, ROW_SLOTS>;
var<private> next_w: array<WeightPack, COL_SLOTS>;

// Loads rows and columns `at`, `at + SPAN`, ... of the tile at vec4 `k4` of k. Beyond the end, `k4` is clamped to `end4
// - 1`.
fn fetch(row0: u32, col0: u32, at: u32, k4: u32, end4: u32) {
    next_k4 = min(k4, end4 - 1u);
    // One branch around all loads, instead of one for each row.
    if fetch_k(next_k4) {
        for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = fetch_x(s, row0 + at + s * SPAN, next_k4, true); }
    } else {
        for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = fetch_x(s, row0 + at + s * SPAN, next_k4, false); }
    }
    for (var s = 0u; s < COL_SLOTS; s++) { next_w[s] = fetch_w(col0, s * SPAN, at, next_k4); }
}

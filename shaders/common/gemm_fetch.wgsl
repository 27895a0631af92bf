// What one invocation of a tiled product brings to workgroup memory at each step, and has on its way before: so many rows
// and columns, each this far from the last.
const ROW_SLOTS = TILE_ROWS * STEP4 / THREADS;
const COL_SLOTS = 4u * TILE_QUADS * STEP4 / THREADS;
const SPAN = THREADS / STEP4;

var<private> next_k4: u32;
var<private> next_x: array<Input, ROW_SLOTS>;
var<private> next_w: array<WeightPack, COL_SLOTS>;

// Rows and columns from `at`, at `k4`; beyond the last before `end4` the last again.
fn fetch(row0: u32, col0: u32, at: u32, k4: u32, end4: u32) {
    next_k4 = min(k4, end4 - 1u);
    // A branch for all rows, not one for each.
    if fetch_k(next_k4) {
        for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = fetch_x(s, row0 + at + s * SPAN, next_k4, true); }
    } else {
        for (var s = 0u; s < ROW_SLOTS; s++) { next_x[s] = fetch_x(s, row0 + at + s * SPAN, next_k4, false); }
    }
    for (var s = 0u; s < COL_SLOTS; s++) { next_w[s] = fetch_w(col0, s * SPAN, at, next_k4); }
}

// How the sums of a tile lie in its invocations: ROWS_EACH rows and QUADS_EACH vec4s of columns each, the first LAYER of
// them together the tile.
const TILE_ROWS = ROWS_EACH * THREADS_Y;
const TILE_QUADS = QUADS_EACH * THREADS_X;
const LAYER = THREADS_X * THREADS_Y;
const SUMS = ROWS_EACH * QUADS_EACH;

// Entry `i * QUADS_EACH + j` is row `i` of an invocation, and vec4 `j` of its columns.
alias Sums = array<vec4<f32>, SUMS>;

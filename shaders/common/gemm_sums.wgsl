// Layout of a tile of sums in the registers of a workgroup: the first LAYER invocations hold ROWS_EACH rows of
// QUADS_EACH vec4s of columns each. Together these are the tile of TILE_ROWS rows and TILE_QUADS vec4s of columns.
const TILE_ROWS = ROWS_EACH * THREADS_Y;
const TILE_QUADS = QUADS_EACH * THREADS_X;
const LAYER = THREADS_X * THREADS_Y;
const SUMS = ROWS_EACH * QUADS_EACH;

// Sums of one invocation: entry `i * QUADS_EACH + j` is row `i` and vec4 `j` of its columns.
alias Sums = array<vec4<f32>, SUMS>;

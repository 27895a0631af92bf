// Workgroup numbers in grids that are folded because an axis may have only 65,535 workgroups.

// Returns the flat number of a workgroup in a grid made by `folded_grid` (kernels/src/kernel.rs). The last row of the
// grid may be incomplete: callers must return if the number is not below the count.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}

// Invocations of a workgroup in a grid made by `grid_of` (kernels/src/kernel.rs).
const GROUP = 64u;

// Returns the flat number of an invocation in such a grid. Callers must return if it is not below the count.
fn flat_invocation(group: vec3<u32>, groups: vec3<u32>, thread: u32) -> u32 {
    return flat_group(group, groups) * GROUP + thread;
}

// Returns the tile of rows of a workgroup in a grid made by `Tile::grid` (kernels/src/tile.rs), whose tiles of rows run
// along y, then z. Callers must return if the number is not below the count.
fn row_tile(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.z * groups.y + group.y;
}

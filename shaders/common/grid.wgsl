// The flat number of a workgroup in a grid folded by `folded_grid`; it may lie beyond the count.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}

// The tile of rows of a workgroup in a grid of `tiled_grid`, y first, then z; it may lie beyond the count.
fn row_tile(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.z * groups.y + group.y;
}

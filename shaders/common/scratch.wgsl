// Workgroup memory that several functions use one after the other: for staged steps of a product, then for reductions.
// Every user ends with a barrier, after which the next may write.
var<workgroup> scratch: array<vec4<f32>, SCRATCH>;

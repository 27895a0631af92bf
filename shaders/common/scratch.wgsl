// Workgroup memory, one array for whoever has its turn: steps of a product, then sums that meet. Whoever is done with it
// leaves by a barrier.
var<workgroup> scratch: array<vec4<f32>, SCRATCH>;

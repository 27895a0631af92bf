// Sum over the 256 invocations of a workgroup. The importing module declares the type of the values, `Summed`: f32 or a
// vector of f32.
var<workgroup> partial: array<Summed, 256>;

// Returns the sum over all invocations of the workgroup, added in a fixed order. All of them must call it. Two short
// levels take three barriers, where a tree of pairs would take ten.
fn sum_all(value: Summed, thread: u32) -> Summed {
    partial[thread] = value;
    workgroupBarrier();
    if thread < 16u {
        var own = value;
        for (var i = 1u; i < 16u; i++) { own += partial[thread + 16u * i]; }
        partial[thread] = own;
    }
    workgroupBarrier();
    var sum = partial[0];
    for (var i = 1u; i < 16u; i++) { sum += partial[i]; }
    workgroupBarrier();
    return sum;
}

//! Times the CPU form of every kernel at the model's shapes.

// criterion's macros define public items without documentation.
#![allow(missing_docs, reason = "criterion's macros write no docs")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mobilediffusion_kernels::{FAMILIES, Storage, WeightType, sample};
use std::time::Duration;

fn kernels(criterion: &mut Criterion) {
    for family in FAMILIES {
        let mut group = criterion.benchmark_group(family.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for case in (family.model_shapes)() {
            let kernel = case.kernel.as_ref();
            let flops = kernel.cost().flops;
            let bytes = mobilediffusion_kernels::kernel::bytes_moved(kernel, Storage::F32);
            let unit = if flops > 0 { Throughput::Elements(flops) } else { Throughput::Bytes(bytes as u64) };
            group.throughput(unit);
            group.bench_function(BenchmarkId::from_parameter(sample::text(kernel)), |bencher| {
                // Operands are made only for the benches that run.
                let packed = sample::packed(&case, WeightType::Floats, sample::inputs(&case, 1));
                let mut outputs = sample::outputs(&case);
                bencher.iter(|| sample::run(&case, &packed, &mut outputs));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);

//! Every kernel on every GPU adapter of this machine, in every storage type, against its reference: its own cases, and
//! problems at random. The comparison itself is tested in `kernels/src/check.rs`.

use mobilediffusion_kernels::{Case, FAMILIES, Family, Storage, check};
use mobilediffusion_runtime::Gpu;
use mobilediffusion_tests::gpu::{self, Test, run_gpu, storages, stored};
use mobilediffusion_tests::{judge, random, storage_tolerance};

/// Problems at random of a kernel on an adapter, in any storage type: compiling shaders is what takes the time.
const RANDOM: u32 = 12;

/// Runs a case twice: the result is right, and the same to the last bit.
fn passes(gpu: &Gpu, storage: Storage, case: &Case, seed: u64) -> Result<(), String> {
    let inputs = stored(case, storage, check::inputs(case, seed));
    let outputs = run_gpu(gpu, storage, case, &inputs)?;
    judge(case, seed, &inputs, &outputs, storage_tolerance(case, storage))?;
    let again = run_gpu(gpu, storage, case, &inputs)?;
    let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(&outputs) == bits(&again) { Ok(()) } else { Err(format!("{:?}: other bits the second time", case.kernel)) }
}

/// The cases of a family in one storage type.
fn cases(family: &'static Family, storage: Storage) -> Test {
    let run = move |gpu: &_| {
        let numbered = (1..).zip((family.cases)());
        let failures: Vec<String> =
            numbered.filter_map(|(seed, case)| passes(gpu, storage, &case, seed).err()).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    };
    (format!("{} in {storage:?}", family.name), Box::new(move |gpu| run(gpu)))
}

/// Problems at random, each in a storage type at random.
fn problems(family: &'static Family) -> Test {
    let run = |gpu: &_| {
        random::problems(family, RANDOM, |case, seed, draw| {
            let storage = draw.of(&storages(gpu));
            passes(gpu, storage, case, seed).map_err(|why| format!("{storage:?}: {why}"))
        })
    };
    (format!("{} at random", family.name), Box::new(move |gpu| Ok(run(gpu)?)))
}

fn main() {
    gpu::main(|gpu| {
        let storages = gpu.map_or_else(|| vec![Storage::F32], storages);
        let of = |family| storages.iter().map(move |storage| cases(family, *storage)).chain([problems(family)]);
        FAMILIES.iter().flat_map(of).collect()
    });
}

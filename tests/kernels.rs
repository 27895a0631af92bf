//! Every kernel on every GPU adapter of this machine, in every storage type, against its reference: its own cases, and
//! problems at random, and the vectors of ONNX. The comparison itself is tested in `kernels/src/check.rs`.

#[path = "kernels/broken.rs"]
mod broken;

use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::kernel::has_weights;
use mobilediffusion_kernels::runner::{self, Target, check_file, variant_tolerance};
use mobilediffusion_kernels::variant::{self, Machine};
use mobilediffusion_kernels::{Case, FAMILIES, Family, FloatType, Storage, Variant, WeightType, check};
use mobilediffusion_runtime::{AdapterKind, Gpu};
use mobilediffusion_tests::gpu::{self, Test, storages, stored};
use mobilediffusion_tests::{judge, random};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Problems at random of a kernel on an adapter, in any storage type: compiling shaders is what takes the time.
const RANDOM: u32 = 12;

/// Runs a case twice by each of some variants: the result is right, and the same to the last bit.
fn passes(gpu: &Gpu, storage: Storage, case: &Case, seed: u64, variants: &[Variant]) -> Result<(), String> {
    let inputs = stored(case, storage, check::inputs(case, seed));
    for variant in variants {
        let at = |why: String| format!("{why} in variant {}", variant.name);
        let run = || runner::run_variant((gpu, storage), case.kernel.as_ref(), variant, &inputs);
        let outputs = run().map_err(|error| at(error.to_string()))?;
        judge(case, seed, &inputs, &outputs, variant_tolerance(case, storage, variant)).map_err(at)?;
        if is_long(case) {
            continue;
        }
        let again = run().map_err(|error| at(error.to_string()))?;
        let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        if bits(&outputs) != bits(&again) {
            return Err(at(format!("{:?}: other bits the second time", case.kernel)));
        }
    }
    Ok(())
}

/// The variants of a numbered case, for compiling takes the time: in f32 all of them where the answer must be exact and
/// two by turns elsewhere, in the other types one; on a software driver, which compiles for a second each, three and one by
/// turns. A long case has the one that the device would take. Those by matrix units have tests of their own.
fn variants(gpu: &Gpu, storage: Storage, case: &Case, number: u64) -> Vec<Variant> {
    let mut all = variant::runnable(case.kernel.as_ref(), gpu.caps(), storage);
    all.retain(|variant| variant.needs.matrix.is_none());
    let software = gpu.adapter().kind == AdapterKind::Software;
    let count = match storage {
        _ if is_long(case) => return vec![variant::choose(case.kernel.as_ref(), &Machine::of(gpu, storage))],
        Storage::F32 if software && case.exact => 3,
        Storage::F32 if software => 1,
        Storage::F32 if case.exact || all.len() < 3 => all.len(),
        Storage::F32 => 2,
        _ => 1,
    };
    // From another one on each time, so that all have had their turn after a few cases.
    (0..count.min(all.len())).map(|i| all[(number as usize + i) % all.len()]).collect()
}

/// Whether a case has more workgroups than an axis of a grid, which is the same in every storage type and every time.
fn is_long(case: &Case) -> bool {
    let variant = variant::choose(case.kernel.as_ref(), &Machine::PORTABLE);
    case.kernel.program(&variant).grid.iter().product::<u32>() > 65_535
}

/// What a device need not look at: long cases in another type than f32, and any on SwiftShader, which needs a minute
/// for the barriers of so many workgroups.
fn is_left_out(gpu: &Gpu, storage: Storage, case: &Case) -> bool {
    is_long(case) && (storage != Storage::F32 || gpu.adapter().name.contains("SwiftShader"))
}

/// The cases of a family in one storage type. Packed, which every adapter has, shaders are watched as they run; in the
/// other types they are trusted, as everywhere: between them every shader is held to the same results in both ways.
fn cases(family: &'static Family, storage: Storage) -> Test {
    let run = move |gpu: &Gpu| {
        let checked = (storage == Storage::F16_PACKED).then(|| gpu::checked(gpu));
        let gpu = checked.as_ref().unwrap_or(gpu);
        let numbered = (1..).zip((family.cases)()).filter(|(_, case)| !is_left_out(gpu, storage, case));
        // How a weight is read does not depend on how floats are: in 16 bits every third case looks after int8 weights.
        // And a third is enough of packed halves on a software driver that has true ones: nobody would take them there.
        let halves = gpu.caps().shader_f16 && gpu.adapter().kind == AdapterKind::Software;
        let packed = storage.floats == FloatType::F16Packed && halves;
        let thinned = packed || storage.weights == WeightType::Int8 && storage.floats != FloatType::F32;
        let numbered = numbered.filter(|(number, _)| !thinned || number % 3 == 0);
        let failures: Vec<String> = numbered
            .filter_map(|(seed, case)| passes(gpu, storage, &case, seed, &variants(gpu, storage, &case, seed)).err())
            .collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    };
    (format!("{} in {storage}", family.name), Box::new(move |gpu| run(&gpu)))
}

/// These storage types and, if the family reads matrices of weights, the same with int8 weights.
fn with_int8(family: &Family, floats: &[Storage]) -> Vec<Storage> {
    let weights = (family.cases)().iter().any(|case| has_weights(case.kernel.as_ref()));
    let int8 = floats.iter().filter(|_| weights).map(|storage| storage.with_weights(WeightType::Int8));
    floats.iter().copied().chain(int8).collect()
}

/// The variants of a kernel that use matrix units, which a device has only for floats in f16.
fn matrix_variants(gpu: &Gpu, case: &Case) -> Vec<Variant> {
    let mut all = variant::runnable(case.kernel.as_ref(), gpu.caps(), Storage::F16);
    all.retain(|variant| variant.needs.matrix.is_some() && !is_long(case));
    all
}

/// The cases of a family by every variant that uses matrix units, with weights of both kinds; on a software driver, which
/// compiles one for seconds, two thirds of them by turns; and problems at random by one, where nothing is rounded on the way.
fn by_matrices(family: &'static Family) -> Test {
    let run = |gpu: &Gpu| {
        let by_turns = gpu.adapter().kind == AdapterKind::Software;
        let storages = with_int8(family, &[Storage::F16]);
        let mut failures = Vec::new();
        let numbered = (1..).zip((family.cases)()).filter(|(number, _)| !by_turns || number % 3 > 0);
        for (turn, (seed, case)) in numbered.enumerate() {
            let (mut storages, mut variants) = (storages.clone(), matrix_variants(gpu, &case));
            if by_turns && !variants.is_empty() {
                // More slowly than variants, so that all meet all.
                storages = vec![storages[turn / variants.len() % storages.len()]];
                variants = vec![variants[turn % variants.len()]];
            }
            let run = |storage| passes(gpu, storage, &case, seed, &variants).map_err(|why| format!("{storage}: {why}"));
            failures.extend(storages.into_iter().filter_map(|storage| run(storage).err()));
        }
        if !failures.is_empty() {
            return Err(failures.join("\n").into());
        }
        let problems = if by_turns { RANDOM / 3 } else { RANDOM };
        let random = random::problems(family, problems, |case, seed, draw| {
            // Where factors are rounded, a row of a column or two does not say what that may cost.
            let mut variants = matrix_variants(gpu, case);
            variants.retain(|variant| !variant.rounds);
            let storage = draw.of(&storages);
            if variants.is_empty() { Ok(()) } else { passes(gpu, storage, case, seed, &[draw.of(&variants)]) }
        });
        Ok(random?)
    };
    (format!("{} by matrix units", family.name), Box::new(move |gpu| run(&gpu)))
}

/// Problems at random, each in a storage type and by a variant at random. Those by matrix units have tests of their own.
fn problems(family: &'static Family) -> Test {
    let run = |gpu: &_| {
        let storages = with_int8(family, &storages(gpu));
        random::problems(family, RANDOM, |case, seed, draw| {
            let storage = draw.of(&storages);
            let mut variants = variant::runnable(case.kernel.as_ref(), gpu.caps(), storage);
            variants.retain(|variant| variant.needs.matrix.is_none());
            passes(gpu, storage, case, seed, &[draw.of(&variants)]).map_err(|why| format!("{storage}: {why}"))
        })
    };
    (format!("{} at random", family.name), Box::new(move |gpu| Ok(run(&gpu)?)))
}

/// Every case file of `tests/data/onnx`.
fn onnx(storage: Storage) -> Test {
    let run = move |gpu: Arc<Gpu>| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
        let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let mut failures = Vec::new();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")) {
            let verdict = check_file(Target::Gpu(&gpu, storage), &CaseFile::read(path)?)?;
            failures.extend(verdict.failure.map(|why| format!("{}: {why}", path.display())));
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    };
    (format!("ONNX's vectors in {}", storage), Box::new(run))
}

fn main() {
    gpu::main(|gpu| {
        let storages = gpu.map_or_else(|| vec![Storage::F32], storages);
        let of = |family| {
            let storages = with_int8(family, &storages);
            storages.into_iter().map(move |storage| cases(family, storage)).chain([problems(family)])
        };
        let has_matrices = |family: &&Family| {
            let all = (family.cases)();
            gpu.is_some_and(|gpu| all.iter().any(|case| !matrix_variants(gpu, case).is_empty()))
        };
        let matrices = FAMILIES.iter().filter(has_matrices).map(by_matrices);
        let onnx = storages.iter().copied().map(onnx);
        FAMILIES.iter().flat_map(of).chain(matrices).chain(onnx).chain([broken::test()]).collect()
    });
}

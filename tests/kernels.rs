//! Compares every kernel with its reference, on every GPU adapter of this machine and in every storage type: on its
//! built-in cases, on random problems and on ONNX's test vectors. The comparison itself is tested in
//! `kernels/src/check.rs`.

#[path = "kernels/broken.rs"]
mod broken;
#[path = "kernels/changed.rs"]
mod changed;
#[path = "kernels/divided.rs"]
mod divided;
#[path = "kernels/small_weights.rs"]
mod small_weights;
#[path = "kernels/stand_in.rs"]
mod stand_in;

use changed::Changed;
use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::kernel::has_weights;
use mobilediffusion_kernels::runner::{self, check_file, tolerance};
use mobilediffusion_kernels::variant::{self, Machine, MatrixUnit};
use mobilediffusion_kernels::{
    Case, Device, FAMILIES, Family, FloatType, GpuDevice, Kernel, Stage, Storage, Variant, WeightType, check,
};
use mobilediffusion_runtime::{AdapterKind, Gpu, MatrixShape, MatrixType};
use mobilediffusion_tests::gpu::{self, Test, storages, stored};
use mobilediffusion_tests::{judge, random};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Number of random problems of a kernel on an adapter, few because compiling shaders takes most of the time.
const RANDOM: u32 = 12;

/// Floating-point operations that a software driver does in any variant without taking seconds.
const FEW_FLOPS: u64 = 10_000_000;

/// Runs a case twice with each of some variants, and checks that the result is right and both runs agree to the last
/// bit.
fn passes(gpu: &Gpu, storage: Storage, case: &Case, seed: u64, variants: &[Variant]) -> Result<(), String> {
    passes_as(case.kernel.as_ref(), gpu, storage, case, seed, variants)
}

/// Runs `kernel` in place of the case's own kernel, and checks the result as [`passes`] does.
fn passes_as(
    kernel: &dyn Kernel,
    gpu: &Gpu,
    storage: Storage,
    case: &Case,
    seed: u64,
    variants: &[Variant],
) -> Result<(), String> {
    let inputs = stored(case, storage, check::inputs(case, seed));
    for variant in variants {
        let at = |why: String| format!("{why} in variant {}", variant.name);
        let run = || runner::run_variant(GpuDevice { gpu, storage }, kernel, variant, &inputs);
        let outputs = run().map_err(|error| at(error.to_string()))?;
        judge(case, seed, &inputs, &outputs, tolerance(case, storage, variant)).map_err(at)?;
        if case.is_long() {
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

/// Selects the variants to run a numbered case with. Compiling takes most of the time, so cases take turns at variants.
///
/// In f32 a case gets all variants if its answer must be exact, else two; in other types one. On a software driver,
/// which compiles each for about a second, two in place of all and one in place of two. A long case gets the variant
/// that the device would choose. Variants for matrix units have tests of their own.
fn variants(gpu: &Gpu, storage: Storage, case: &Case, number: u64) -> Vec<Variant> {
    let mut all = variant::runnable(case.kernel.as_ref(), gpu.caps(), storage);
    all.retain(|variant| variant.needs.matrix.is_none());
    let software = gpu.adapter().kind == AdapterKind::Software;
    let count = match storage {
        _ if case.is_long() => {
            return vec![variant::choose(case.kernel.as_ref(), &Machine::of(GpuDevice { gpu, storage }))];
        }
        Storage::F32 if software && case.exact => 2,
        Storage::F32 if software => 1,
        Storage::F32 if case.exact || all.len() < 3 => all.len(),
        Storage::F32 => 2,
        _ => 1,
    };
    // The first one moves on from case to case, so that every variant is run after a few cases.
    (0..count.min(all.len())).map(|i| all[(number as usize + i) % all.len()]).collect()
}

/// Returns whether a case is skipped on a device: long cases in other types than f32, and all long cases on
/// SwiftShader, which takes a minute for the barriers of so many workgroups.
fn is_left_out(gpu: &Gpu, storage: Storage, case: &Case) -> bool {
    case.is_long() && (storage != Storage::F32 || gpu.adapter().name.contains("SwiftShader"))
}

/// Returns `n` if only every `n`th case runs in a storage type. The environment variable `EVERY_CASE` makes it 1
/// throughout.
///
/// In f32 every case runs. How a weight is read does not depend on how floats are stored, so with 16-bit floats only
/// every third case runs with int8 weights. 16-bit weights are read as 16-bit floats are, so every third case runs with
/// them beside f32. Software drivers compile a variant for a second or two: there every second
/// case runs in types other than f32, and every third in packed f16 if the adapter has f16 proper.
fn turns(gpu: &Gpu, storage: Storage) -> u64 {
    if std::env::var_os("EVERY_CASE").is_some() {
        return 1;
    }
    let software = gpu.adapter().kind == AdapterKind::Software;
    if storage.weights == WeightType::F16 {
        return 3;
    }
    let int8 = storage.weights == WeightType::Int8;
    match storage.floats {
        FloatType::F32 if software && int8 => 2,
        FloatType::F32 => 1,
        _ if int8 => 3,
        FloatType::F16Packed if software && gpu.caps().shader_f16 => 3,
        _ if software => 2,
        _ => 1,
    }
}

/// Makes the test of a family's cases in one storage type.
///
/// In packed f16, which every adapter has, shaders are checked as they run; in the other types they are trusted.
/// Together they show that every shader gives the right results either way.
fn cases(family: &'static Family, storage: Storage) -> Test {
    let run = move |gpu: &Gpu| {
        let checked = (storage == Storage::F16_PACKED).then(|| gpu::checked(gpu));
        let gpu = checked.as_ref().unwrap_or(gpu);
        let numbered = (1..).zip((family.cases)()).filter(|(_, case)| !is_left_out(gpu, storage, case));
        let every = turns(gpu, storage);
        let numbered = numbered.filter(|(number, _)| number % every == 1 % every);
        let failures: Vec<String> = numbered
            .filter_map(|(seed, case)| passes(gpu, storage, &case, seed, &variants(gpu, storage, &case, seed)).err())
            .collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    };
    Test::new(format!("{} in {storage}", family.name), move |gpu| run(&gpu))
}

/// Returns the storage types and, if the family reads weight matrices, each of them with narrower weights.
fn with_narrow_weights(family: &Family, floats: &[Storage]) -> Vec<Storage> {
    let weights = (family.cases)().iter().any(|case| has_weights(case.kernel.as_ref()));
    let narrow = floats.iter().filter(|_| weights);
    let narrow = narrow.flat_map(|storage| [WeightType::F16, WeightType::Int8].map(|w| storage.with_weights(w)));
    // Beside 16-bit floats, 16-bit weights are nothing new.
    let narrow = narrow.filter(|storage| storage.weights != WeightType::Floats);
    floats.iter().copied().chain(narrow).collect()
}

/// Matrix units that a test uses.
#[derive(Clone, Copy)]
enum Units {
    /// The device's own.
    Own,
    /// Units of another device, replaced by the stand-in.
    StandIn(MatrixUnit),
}

/// Matrix units of real GPUs that are tested with the stand-in: NVIDIA's, AMD's, and Apple's.
const STAND_INS: [MatrixUnit; 3] = [
    MatrixUnit { edge: 16, subgroup: 32 },
    MatrixUnit { edge: 16, subgroup: 64 },
    MatrixUnit { edge: 8, subgroup: 32 },
];

impl Units {
    /// Returns the variants of a kernel that use these matrix units. They need floats in f16.
    fn variants(self, gpu: &Gpu, case: &Case) -> Vec<Variant> {
        let mut caps = gpu.caps().clone();
        if let Self::StandIn(unit) = self {
            caps.shader_f16 = true;
            caps.subgroup_size = Some(unit.subgroup);
            // These GPUs have as much. SwiftShader claims 32 KiB, but gives a workgroup what its shader declares.
            caps.max_workgroup_bytes = if unit.edge == 16 { 48 << 10 } else { 32 << 10 };
            caps.matrices = vec![MatrixShape::square(unit.edge, MatrixType::F16, MatrixType::F32)];
        }
        let mut all = variant::runnable(case.kernel.as_ref(), &caps, Storage::F16);
        all.retain(|variant| variant.needs.matrix.is_some() && !case.is_long());
        all
    }

    /// Runs a case with some variants, with the stand-in in place of matrix units that the device does not have.
    fn pass(self, gpu: &Gpu, storage: Storage, case: &Case, seed: u64, variants: &[Variant]) -> Result<(), String> {
        let real = case.kernel.as_ref();
        match self {
            Self::Own => passes_as(real, gpu, storage, case, seed, variants),
            Self::StandIn(_) => {
                let change = |stage: Stage| vec![stand_in::without_units(stage, storage)];
                passes_as(&Changed { real, change: &change }, gpu, storage, case, seed, variants)
            }
        }
    }

    /// Returns the storage type to run in.
    fn storage(self) -> Storage {
        match self {
            Self::Own => Storage::F16,
            // The large tiles keep the stored type in workgroup memory, so halves will do. The others keep scalars,
            // which packed halves are not.
            Self::StandIn(unit) if unit.edge == 16 => Storage::F16_PACKED,
            Self::StandIn(_) => Storage::F32,
        }
    }

    fn test_name(self, family: &Family) -> String {
        match self {
            Self::Own => format!("{} by matrix units", family.name),
            Self::StandIn(MatrixUnit { edge, subgroup }) => {
                format!("{} by a stand-in for {edge}x{edge} matrices of {subgroup} lanes", family.name)
            }
        }
    }
}

/// Makes the test of a family's variants for matrix units, with float and int8 weights.
///
/// Every case runs with every such variant. On a software driver, which compiles each for seconds, two thirds of the
/// cases run, and with the stand-in one third, each with one variant in turn. Random problems follow, each with one
/// variant that does not round intermediate values.
fn by_matrices(family: &'static Family, units: Units) -> Test {
    let run = move |gpu: &Gpu| {
        let by_turns = gpu.adapter().kind == AdapterKind::Software;
        let storages = with_narrow_weights(family, &[units.storage()]);
        let (mut failures, mut met) = (Vec::new(), BTreeMap::new());
        let rest = if matches!(units, Units::Own) { 1 } else { 2 };
        let numbered = (1..).zip((family.cases)()).filter(|(number, _)| !by_turns || number % 3 >= rest);
        for (turn, (seed, case)) in numbered.enumerate() {
            let (mut storages, mut variants) = (storages.clone(), units.variants(gpu, &case));
            if by_turns && !variants.is_empty() {
                // Storage types change more slowly than variants, so that all combinations come up.
                storages = vec![storages[turn / variants.len() % storages.len()]];
                variants = vec![variants[turn % variants.len()]];
            }
            variants.iter().for_each(|variant| *met.entry(variant.name).or_default() += 1);
            let run =
                |storage| units.pass(gpu, storage, &case, seed, &variants).map_err(|why| format!("{storage}: {why}"));
            failures.extend(storages.into_iter().filter_map(|storage| run(storage).err()));
        }
        // Variants that few cases got to, except where one takes a minute to compile: a variant that only the stand-in
        // can run runs at least twice.
        let least = if matches!(units, Units::Own) { 0 } else { 2 };
        let small = |case: &Case| !by_turns || case.kernel.cost().flops < FEW_FLOPS;
        for (seed, case) in (family.cases)().into_iter().enumerate().rev().filter(|(_, case)| small(case)) {
            let mut missed = units.variants(gpu, &case);
            missed.retain(|variant| {
                let times: &mut usize = met.entry(variant.name).or_default();
                *times += 1;
                *times <= least
            });
            failures.extend(units.pass(gpu, storages[0], &case, seed as u64 + 1, &missed).err());
        }
        if !failures.is_empty() {
            return Err(failures.join("\n").into());
        }
        let problems = if by_turns { RANDOM / 3 } else { RANDOM };
        let random = random::problems(family, problems, |case, seed, draw| {
            // Where factors are rounded, sums of one or two terms say too little about how large the error may be.
            let mut variants = units.variants(gpu, case);
            variants.retain(|variant| !variant.rounds);
            let storage = draw.of(&storages);
            if variants.is_empty() { Ok(()) } else { units.pass(gpu, storage, case, seed, &[draw.of(&variants)]) }
        });
        Ok(random?)
    };
    Test::new(units.test_name(family), move |gpu| run(&gpu))
}

/// Returns whether a variant computes a map in blocks.
fn is_block(variant: &Variant) -> bool {
    variant.name.starts_with("winograd")
}

/// Makes the test of the variants of a family that compute a map in blocks. Few maps have blocks, so other tests seldom
/// meet these variants.
///
/// Every case runs in f32 and in one other storage type in turn, random problems in a random one.
fn by_blocks(family: &'static Family) -> Test {
    let variants = |gpu: &Gpu, storage, case: &Case| {
        let mut all = variant::runnable(case.kernel.as_ref(), gpu.caps(), storage);
        all.retain(is_block);
        all
    };
    let run = move |gpu: &Gpu| {
        let storages = with_narrow_weights(family, &storages(gpu));
        let others = storages[1..].iter().cycle();
        let numbered = (1..).zip((family.cases)());
        let with_blocks = numbered.filter(|(_, case)| !variants(gpu, Storage::F32, case).is_empty());
        let mut failures = Vec::new();
        for ((seed, case), other) in with_blocks.zip(others) {
            let run = |storage| {
                let verdict = passes(gpu, storage, &case, seed, &variants(gpu, storage, &case));
                verdict.map_err(|why| format!("{storage}: {why}")).err()
            };
            failures.extend([Storage::F32, *other].into_iter().filter_map(run));
        }
        if !failures.is_empty() {
            return Err(failures.join("\n").into());
        }
        let random = random::problems(family, RANDOM, |case, seed, draw| {
            let storage = draw.of(&storages);
            passes(gpu, storage, case, seed, &variants(gpu, storage, case)).map_err(|why| format!("{storage}: {why}"))
        });
        Ok(random?)
    };
    Test::new(format!("{} by blocks", family.name), move |gpu| run(&gpu))
}

/// Makes the test of random problems, each in a random storage type and with a random variant. Variants for matrix
/// units have tests of their own.
fn problems(family: &'static Family) -> Test {
    let run = |gpu: &Gpu| {
        let storages = with_narrow_weights(family, &storages(gpu));
        random::problems(family, RANDOM, |case, seed, draw| {
            let storage = draw.of(&storages);
            let mut variants = variant::runnable(case.kernel.as_ref(), gpu.caps(), storage);
            variants.retain(|variant| variant.needs.matrix.is_none());
            passes(gpu, storage, case, seed, &[draw.of(&variants)]).map_err(|why| format!("{storage}: {why}"))
        })
    };
    Test::new(format!("{} at random", family.name), move |gpu| Ok(run(&gpu)?))
}

/// Makes the test of every case file in `tests/data/onnx`.
fn onnx(storage: Storage) -> Test {
    let run = move |gpu: Arc<Gpu>| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
        let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let mut failures = Vec::new();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")) {
            let verdict = check_file(&Device::Gpu(Arc::clone(&gpu), storage), &CaseFile::read(path)?)?;
            failures.extend(verdict.failure.map(|why| format!("{}: {why}", path.display())));
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
    };
    Test::new(format!("ONNX's vectors in {storage}"), run)
}

fn main() {
    gpu::main(|gpu| {
        let storages = gpu.map_or_else(|| vec![Storage::F32], storages);
        let of = |family| {
            let storages = with_narrow_weights(family, &storages);
            storages.into_iter().map(move |storage| cases(family, storage)).chain([problems(family)])
        };
        let all_units = [Units::Own].into_iter().chain(STAND_INS.map(Units::StandIn));
        // llvmpipe takes minutes to compile a shader with the stand-in.
        let stands_in = gpu.is_some_and(|gpu| !gpu.adapter().name.contains("llvmpipe"));
        let has_matrices = |(family, units): &(&'static Family, Units)| {
            let Some(gpu) = gpu else { return false };
            let slow = matches!(units, Units::StandIn(_)) && !stands_in;
            !slow && (family.cases)().iter().any(|case| !units.variants(gpu, case).is_empty())
        };
        let pairs = FAMILIES.iter().flat_map(|family| all_units.clone().map(move |units| (family, units)));
        let matrices = pairs.filter(has_matrices).map(|(family, units)| by_matrices(family, units));
        let onnx = storages.iter().copied().map(onnx);
        let blocks = mobilediffusion_kernels::family("conv2d").map(by_blocks);
        let divided = FAMILIES.iter().filter(|family| divided::NAMES.contains(&family.name)).map(divided::test);
        FAMILIES
            .iter()
            .flat_map(of)
            .chain(matrices)
            .chain(onnx)
            .chain(divided)
            .chain(blocks)
            .chain(stands_in.then(small_weights::test))
            .chain([broken::test()])
            .collect()
    });
}

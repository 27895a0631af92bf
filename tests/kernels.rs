//! Every kernel on every GPU adapter of this machine, in every storage type, against its reference: its own cases, and
//! problems at random, and the vectors of ONNX. The comparison itself is tested in `kernels/src/check.rs`.

#[path = "kernels/broken.rs"]
mod broken;
#[path = "kernels/stand_in.rs"]
mod stand_in;

use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::kernel::has_weights;
use mobilediffusion_kernels::runner::{self, Target, check_file, variant_tolerance};
use mobilediffusion_kernels::variant::{self, Machine, MatrixUnit};
use mobilediffusion_kernels::{Case, FAMILIES, Family, FloatType, Kernel, Storage, Variant, WeightType, check};
use mobilediffusion_runtime::{AdapterKind, Gpu, MatrixShape, MatrixType};
use mobilediffusion_tests::gpu::{self, Test, storages, stored};
use mobilediffusion_tests::{judge, random};
use stand_in::StandIn;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Problems at random of a kernel on an adapter, in any storage type: compiling shaders is what takes the time.
const RANDOM: u32 = 12;

/// Runs a case twice by each of some variants: the result is right, and the same to the last bit.
fn passes(gpu: &Gpu, storage: Storage, case: &Case, seed: u64, variants: &[Variant]) -> Result<(), String> {
    passes_as(case.kernel.as_ref(), gpu, storage, case, seed, variants)
}

/// The same where `kernel` is what runs.
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
        let run = || runner::run_variant((gpu, storage), kernel, variant, &inputs);
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

/// How many cases take turns at a storage type; at f32 none, nor anywhere if the environment has EVERY_CASE. How a weight is
/// read does not depend on how floats are: in 16 bits every third case looks after int8 weights. Software drivers compile a
/// variant for a second or two, so there every second case looks after other types than f32, and a third of them after
/// packed halves where there are true ones.
fn turns(gpu: &Gpu, storage: Storage) -> u64 {
    if std::env::var_os("EVERY_CASE").is_some() {
        return 1;
    }
    let software = gpu.adapter().kind == AdapterKind::Software;
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

/// The cases of a family in one storage type. Packed, which every adapter has, shaders are watched as they run; in the
/// other types they are trusted, as everywhere: between them every shader is held to the same results in both ways.
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
    (format!("{} in {storage}", family.name), Box::new(move |gpu| run(&gpu)))
}

/// These storage types and, if the family reads matrices of weights, the same with int8 weights.
fn with_int8(family: &Family, floats: &[Storage]) -> Vec<Storage> {
    let weights = (family.cases)().iter().any(|case| has_weights(case.kernel.as_ref()));
    let int8 = floats.iter().filter(|_| weights).map(|storage| storage.with_weights(WeightType::Int8));
    floats.iter().copied().chain(int8).collect()
}

/// Whose matrix units a test is about.
#[derive(Clone, Copy)]
enum Units {
    /// The device's own.
    Own,
    /// Those of other devices: what uses them runs by the stand-in.
    StandIn(MatrixUnit),
}

/// What real GPUs have that is tested by the stand-in: NVIDIA's, and Apple's.
const STAND_INS: [MatrixUnit; 2] = [MatrixUnit { edge: 16, subgroup: 32 }, MatrixUnit { edge: 8, subgroup: 32 }];

impl Units {
    /// The variants of a kernel that use such matrix units, which a device has only for floats in f16.
    fn variants(self, gpu: &Gpu, case: &Case) -> Vec<Variant> {
        let mut caps = gpu.caps().clone();
        if let Self::StandIn(unit) = self {
            caps.shader_f16 = true;
            caps.subgroup_size = Some(unit.subgroup);
            // As much as such GPUs have. SwiftShader, which says it has 32 KiB, gives a workgroup what its shader declares.
            caps.max_workgroup_bytes = if unit.edge == 16 { 48 << 10 } else { 32 << 10 };
            caps.matrices = vec![MatrixShape::square(unit.edge, MatrixType::F16, MatrixType::F32)];
        }
        let mut all = variant::runnable(case.kernel.as_ref(), &caps, Storage::F16);
        all.retain(|variant| variant.needs.matrix.is_some() && !is_long(case));
        all
    }

    fn pass(self, gpu: &Gpu, storage: Storage, case: &Case, seed: u64, variants: &[Variant]) -> Result<(), String> {
        let real = case.kernel.as_ref();
        match self {
            Self::Own => passes_as(real, gpu, storage, case, seed, variants),
            Self::StandIn(_) => passes_as(&StandIn { real, storage }, gpu, storage, case, seed, variants),
        }
    }

    fn storage(self) -> Storage {
        match self {
            Self::Own => Storage::F16,
            // Tiles that lie in workgroup memory as they are stored do so in halves; the others, of scalars, cannot.
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

/// The cases of a family by every variant that uses matrix units, with weights of both kinds; on a software driver, which
/// compiles one for seconds, two thirds of them by turns, one third by the stand-in; and problems at random by one, where
/// nothing is rounded on the way.
fn by_matrices(family: &'static Family, units: Units) -> Test {
    let run = move |gpu: &Gpu| {
        let by_turns = gpu.adapter().kind == AdapterKind::Software;
        let storages = with_int8(family, &[units.storage()]);
        let (mut failures, mut met) = (Vec::new(), BTreeMap::new());
        let rest = if matches!(units, Units::Own) { 1 } else { 2 };
        let numbered = (1..).zip((family.cases)()).filter(|(number, _)| !by_turns || number % 3 >= rest);
        for (turn, (seed, case)) in numbered.enumerate() {
            let (mut storages, mut variants) = (storages.clone(), units.variants(gpu, &case));
            if by_turns && !variants.is_empty() {
                // More slowly than variants, so that all meet all.
                storages = vec![storages[turn / variants.len() % storages.len()]];
                variants = vec![variants[turn % variants.len()]];
            }
            variants.iter().for_each(|variant| *met.entry(variant.name).or_default() += 1);
            let run =
                |storage| units.pass(gpu, storage, &case, seed, &variants).map_err(|why| format!("{storage}: {why}"));
            failures.extend(storages.into_iter().filter_map(|storage| run(storage).err()));
        }
        // What few turns came to, except where a variant takes a minute to compile: none of those that only the stand-in runs is
        // left out.
        let least = if matches!(units, Units::Own) { 0 } else { 2 };
        for (seed, case) in (family.cases)().into_iter().enumerate().rev() {
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
            // Where factors are rounded, a row of a column or two does not say what that may cost.
            let mut variants = units.variants(gpu, case);
            variants.retain(|variant| !variant.rounds);
            let storage = draw.of(&storages);
            if variants.is_empty() { Ok(()) } else { units.pass(gpu, storage, case, seed, &[draw.of(&variants)]) }
        });
        Ok(random?)
    };
    (units.test_name(family), Box::new(move |gpu| run(&gpu)))
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
        let all_units = [Units::Own].into_iter().chain(STAND_INS.map(Units::StandIn));
        let has_matrices = |(family, units): &(&'static Family, Units)| {
            let Some(gpu) = gpu else { return false };
            // Mesa's compiler for CPUs takes minutes over what the stand-in makes of a shader.
            let slow = matches!(units, Units::StandIn(_)) && gpu.adapter().name.contains("llvmpipe");
            !slow && (family.cases)().iter().any(|case| !units.variants(gpu, case).is_empty())
        };
        let pairs = FAMILIES.iter().flat_map(|family| all_units.clone().map(move |units| (family, units)));
        let matrices = pairs.filter(has_matrices).map(|(family, units)| by_matrices(family, units));
        let onnx = storages.iter().copied().map(onnx);
        FAMILIES.iter().flat_map(of).chain(matrices).chain(onnx).chain([broken::test()]).collect()
    });
}

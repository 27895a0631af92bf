//! Compares the CPU form of every kernel with its reference, on the built-in cases and on random problems.

use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::draw::Draw;
use mobilediffusion_kernels::kernel::has_weights;
use mobilediffusion_kernels::runner::{run_cpu, stored, tolerance};
use mobilediffusion_kernels::{Case, FAMILIES, Storage, Variant, WeightType, check};
use mobilediffusion_tests::{judge, random};
use std::sync::LazyLock;

const DEVICES: [&Device; 3] = [&Device::CPU, &Device::Cpu(WeightType::F16), &Device::Cpu(WeightType::Int8)];

/// Returns whether a case runs on `device` exactly as on the first: a kernel without weights.
fn is_known(device: &Device, case: &Case) -> bool {
    device.storage() != Storage::F32 && !has_weights(case.kernel.as_ref())
}

/// Pool of one thread, to check that results do not depend on the number of threads.
static ALONE: LazyLock<rayon::ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be had"));

/// Checks the result of the CPU form, and that one thread gives the same bits as all of them.
fn passes(device: &Device, case: &Case, seed: u64) -> Result<(), String> {
    let kernel = case.kernel.as_ref();
    let inputs = stored(kernel, device.storage(), check::inputs(case, seed));
    let run = || run_cpu(kernel, device.storage().weights, &inputs).map_err(|error| error.to_string());
    let outputs = run()?;
    let bits = |outputs: &[Vec<f32>]| outputs.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(&outputs) != bits(&ALONE.install(run)?) {
        return Err(format!("{kernel:?} gives other bits the second time"));
    }
    judge(case, seed, &inputs, &outputs, tolerance(case, device.storage(), &Variant::ONLY)).map(|_| ())
}

#[test]
fn every_cpu_form_agrees_with_its_reference() {
    let mut failures = Vec::new();
    for device in DEVICES {
        for family in FAMILIES {
            let numbered = (1..).zip((family.cases)()).filter(|(_, case)| !is_known(device, case));
            failures.extend(numbered.filter_map(|(seed, case)| passes(device, &case, seed).err()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_cpu_form_agrees_with_its_reference_on_random_problems() {
    for device in DEVICES {
        let check = |case: &Case, seed, _: &mut Draw<'_>| match is_known(device, case) {
            true => Ok(()),
            false => passes(device, case, seed),
        };
        let failures: Vec<String> =
            FAMILIES.iter().filter_map(|family| random::problems(family, 200, check).err()).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

#[test]
fn sizes_survive_a_round_trip_through_json() {
    for family in FAMILIES {
        for case in (family.cases)() {
            let json = case.kernel.params_json();
            let parsed = (family.parse)(&json).unwrap_or_else(|e| panic!("{} does not read {json}: {e}", family.name));
            assert_eq!(format!("{parsed:?}"), format!("{:?}", case.kernel), "{json}");
        }
        let unknown = serde_json::json!({ "no_such_size": 1 });
        assert!((family.parse)(&unknown).is_err(), "{} takes an unknown size", family.name);
    }
}

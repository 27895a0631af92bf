//! Every kernel on every GPU adapter of this machine, in every storage type, against its reference.
//!
//! A machine without an adapter reports these tests as ignored (the harness is our own for this one reason), and
//! `tests/run` installs a software driver so that none is.

use mobilediffusion_kernels::{FAMILIES, Storage, check};
use mobilediffusion_runtime::{Gpu, Select, adapters};
use mobilediffusion_tests::gpu::{run_gpu, storages, stored};
use mobilediffusion_tests::{judge, storage_tolerance};

fn family_passes(gpu: &Gpu, storage: Storage, family: &mobilediffusion_kernels::Family) -> Vec<String> {
    let mut failures = Vec::new();
    for (seed, case) in (1..).zip((family.cases)()) {
        let inputs = stored(&case, storage, check::inputs(&case, seed));
        let first = run_gpu(gpu, storage, &case, &inputs);
        let verdict = first.and_then(|outputs| {
            judge(&case, seed, &inputs, &outputs, storage_tolerance(&case, storage))?;
            let again = run_gpu(gpu, storage, &case, &inputs)?;
            let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
            if bits(&outputs) == bits(&again) {
                Ok(())
            } else {
                Err(format!("{:?}: other bits the second time", case.kernel))
            }
        });
        failures.extend(verdict.err());
    }
    failures
}

/// Cargo shows what a test binary prints.
#[expect(clippy::print_stdout, reason = "this test brings its own harness")]
fn report(line: &str) {
    println!("{line}");
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let found = pollster::block_on(adapters());
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let families: Vec<_> = FAMILIES.iter().filter(|f| wanted(f.name)).collect();
    if found.is_empty() {
        ignored = families.len();
        families.iter().for_each(|f| report(&format!("{} ... ignored, there is no GPU adapter", f.name)));
    }
    for adapter in &found {
        report(&format!("adapter [{}] {adapter}", adapter.index));
        let gpu =
            pollster::block_on(Gpu::open(&Select::Named(adapter.index.to_string()))).expect("a listed adapter opens");
        for storage in storages(&gpu) {
            for family in &families {
                let failures = family_passes(&gpu, storage, family);
                let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
                report(&format!("test {} {storage:?} ... {verdict}", family.name));
                failures.iter().for_each(|failure| report(&format!("    {failure}")));
                if failures.is_empty() { passed += 1 } else { failed += 1 }
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    report(&format!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out"
    ));
    std::process::exit(i32::from(failed > 0));
}

//! The CPU form of every kernel against its reference, on every case.

use mobilediffusion_kernels::draw::Draw;
use mobilediffusion_kernels::{Case, FAMILIES, check};
use mobilediffusion_tests::{judge, random, run_cpu, tolerance};

#[test]
fn every_cpu_form_agrees_with_its_reference() {
    let mut failures = Vec::new();
    for family in FAMILIES {
        for (seed, case) in (1..).zip((family.cases)()) {
            let inputs = check::inputs(&case, seed);
            let outputs = run_cpu(&case, &inputs);
            failures.extend(judge(&case, seed, &inputs, &outputs, tolerance(&case)).err());
            let again = run_cpu(&case, &inputs);
            let same = outputs.iter().flatten().map(|v| v.to_bits()).eq(again.iter().flatten().map(|v| v.to_bits()));
            assert!(same, "{:?} gives other bits the second time", case.kernel);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_cpu_form_agrees_with_its_reference_on_random_problems() {
    let check = |case: &Case, seed, _: &mut Draw<'_>| {
        let inputs = check::inputs(case, seed);
        judge(case, seed, &inputs, &run_cpu(case, &inputs), tolerance(case)).map(|_| ())
    };
    let failures: Vec<String> =
        FAMILIES.iter().filter_map(|family| random::problems(family, 200, check).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn sizes_survive_the_way_through_a_case_file() {
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

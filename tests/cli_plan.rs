//! `plan`, `check --plan` and `bench --plan` as a person runs them. Needs the binary, like `tests/cli.rs`.

use std::path::Path;
use std::process::Command;

/// Standard output of a run that succeeds.
fn run(args: &[&str]) -> String {
    let test = std::env::current_exe().expect("a test knows where it lies");
    let folder = test.parent().and_then(Path::parent).expect("tests lie in deps");
    let program = folder.join(format!("mobilediffusion{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "there is no {}: run `cargo build --release` before", program.display());
    let done = Command::new(program).args(args).output().expect("the program starts");
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("results are UTF-8")
}

#[test]
fn a_plan_is_a_table_and_its_sums() {
    let text = run(&["plan", "--model", "mobilediffusion", "--resolution", "256", "--dtype", "f16", "unet"]);
    let rows = text.lines().filter(|line| line.contains("..="));
    let bytes = |line: &str| line.split_whitespace().nth(1).and_then(|bytes| bytes.parse::<usize>().ok());
    let read = rows.map(|row| bytes(row).unwrap_or_else(|| panic!("{row}"))).collect::<Vec<_>>();
    assert!(read.len() > 100 && text.contains("mid_block.attentions.2"), "{text}");
    for part in ["256x256 pixels", "unet, f16: ", " steps, ", "at least", "ratio", "of weights", "folded into steps: "]
    {
        assert!(text.contains(part), "`{part}` is not said: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&run(&[
        "plan",
        "--preset",
        "mobilediffusion",
        "--size",
        "256",
        "--dtype",
        "f16",
        "--json",
        "unet",
    ]))
    .expect("JSON parses");
    let network = &json["networks"][0];
    assert_eq!(network["tensors"].as_array().map(Vec::len), Some(read.len()), "both say the same");
    let half = &network["memory"][1];
    let number = |key: &str| half[key].as_u64().unwrap_or_else(|| panic!("{key} of {half}"));
    assert!(number("activation_bytes") >= number("lower_bound_bytes") && number("weight_bytes") > 0, "{half}");
    let bytes = |number: usize| network["memory"][number]["weight_bytes"].as_u64().expect("a number") as f64;
    let ratio = bytes(2) / bytes(1);
    assert!((0.5..0.51).contains(&ratio), "int8 weights of the UNet take {ratio} of the bytes of f16");
    for tensor in network["tensors"].as_array().expect("a list") {
        assert_eq!(tensor["offset"].as_u64().expect("a number") % 256, 0, "{tensor}");
    }
}

#[test]
fn what_8_bits_do_to_weights_is_listed() {
    let text = run(&["info", "--weights-dtype", "int8"]);
    assert!(
        text.contains("unet")
            && text.contains("mid_block")
            && text.lines().last().is_some_and(|l| l.starts_with("all"))
    );
    let json: serde_json::Value =
        serde_json::from_str(&run(&["info", "--weights-dtype", "int8", "--json"])).expect("JSON parses");
    let unet = &json["networks"][1];
    let of = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    let weights = unet["weights"].as_array().expect("a list");
    let sum: f64 = weights.iter().map(|weight| of(weight, "bytes")).sum();
    assert_eq!(sum, of(unet, "bytes"));
    assert!(of(unet, "relative_l2") > 1e-3 && of(unet, "worst") < 0.004, "{}", unet["name"]);
}

#[test]
fn a_networks_plan_is_checked_step_by_step() {
    let text = run(&["check", "--plan", "unet", "--size", "32", "--device", "cpu"]);
    assert!(text.starts_with("all ") && text.contains(" steps agree"), "{text}");
}

#[test]
fn a_networks_plan_is_timed_step_by_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("plan.json");
    let text = run(&[
        "bench",
        "--plan",
        "--size",
        "32",
        "--device",
        "cpu",
        "--quick",
        "--json",
        file.to_str().expect("UTF-8"),
    ]);
    assert!(text.contains("steps one by one: ") && text.contains("conv2d"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).expect("it was written")).expect("JSON parses");
    let times = |list: &str, key: &str| {
        let list = json["plan"][list].as_array().unwrap_or_else(|| panic!("{list} of {json}"));
        list.iter().map(|row| row[key].as_f64().expect("a number")).collect::<Vec<_>>()
    };
    let steps = times("steps", "median_us");
    assert!(steps.len() > 100 && steps.is_sorted_by(|a, b| a >= b), "the slowest comes first: {steps:?}");
    let (all, by_kernel): (f64, f64) = (steps.iter().sum(), times("kernels", "us").iter().sum());
    assert!((all - by_kernel).abs() <= 1e-6 * all, "{all} and {by_kernel}");
}

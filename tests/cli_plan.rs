//! Runs `plan`, `check --plan`, `golden`, `bench --plan` and `bench` with int8 weights as a user does. The program must
//! have been built.

use mobilediffusion_model::DeviceChoice;
use mobilediffusion_runtime::AdapterSummary;
use mobilediffusion_tests::program::{self, arg, stderr};
use mobilediffusion_tests::{adapters, drawing_devices, folder};
use serde_json::Value;
use std::path::Path;

/// Runs the program, asserts that it succeeds, and returns its standard output.
fn run(args: &[&str]) -> String {
    let done = program::run(args);
    assert!(done.status.success(), "{args:?}: {}", stderr(&done));
    String::from_utf8(done.stdout).expect("results are UTF-8")
}

#[test]
fn a_plan_is_a_table_and_its_sums() {
    let text = run(&["plan", "--model", "mobilediffusion", "--resolution", "256", "--dtype", "f16", "unet"]);
    let rows = text.lines().filter(|line| line.contains("..="));
    let bytes = |line: &str| line.split_whitespace().nth(1).and_then(|bytes| bytes.parse::<usize>().ok());
    let read = rows.map(|row| bytes(row).unwrap_or_else(|| panic!("{row}"))).collect::<Vec<_>>();
    assert!(read.len() > 100 && text.contains("mid_block.attentions.2"), "{text}");
    for part in
        ["256x256 pixels", "unet, f16: ", " steps, ", " steps (at least ", "ratio", "of weights", "folded into steps: "]
    {
        assert!(text.contains(part), "`{part}` is not said: {text}");
    }
    let json = run(&["plan", "--preset", "mobilediffusion", "--size", "256", "--dtype", "f16", "--json", "unet"]);
    let json: Value = serde_json::from_str(&json).expect("JSON parses");
    let network = &json["networks"][0];
    assert_eq!(network["tensors"].as_array().map(Vec::len), Some(read.len()), "both say the same");
    let half = &network["memory"][1];
    let number = |key: &str| half[key].as_u64().unwrap_or_else(|| panic!("{key} of {half}"));
    assert!(number("activation_bytes") >= number("lower_bound_bytes") && number("weight_bytes") > 0, "{half}");
    let bytes = |number: usize| network["memory"][number]["weight_bytes"].as_u64().expect("a number") as f64;
    let ratio = bytes(4) / bytes(2);
    assert!((0.5..0.51).contains(&ratio), "int8 weights of the UNet take {ratio} of the bytes of f16");
    for tensor in network["tensors"].as_array().expect("a list") {
        assert_eq!(tensor["offset"].as_u64().expect("a number") % 256, 0, "{tensor}");
    }
}

#[test]
fn a_plan_with_guidance_is_the_one_that_draws_with_guidance() {
    // A one-step model draws with guidance by DDIM, so that is what a plan shows and what is timed.
    for (guidance, sampler, guided) in [
        (&["--guidance", "3"][..], "DDIM, with guidance", true),
        (&[], "one step, without guidance", false),
        (&["--guidance", "1"], "one step, without guidance", false),
    ] {
        let text = run(&[&["plan", "--list", "--size", "32", "unet"], guidance].concat());
        assert!(text.contains(&format!("mini, 32x32 pixels, {sampler}\n")), "{guidance:?}: {text}");
        let (step, other) = if guided { (2, 1) } else { (1, 2) };
        let [step, other] = [step, other].map(|images| text.contains(&format!("ddim_step [{images}, 16, 8]")));
        assert!(step && !other, "{guidance:?}: {text}");
        let (timed, _) = bench(&[&["--plan", "unet", "--size", "32"], guidance].concat(), "cpu", "floats");
        let step = timed.contains("ddim_step (c=8 ") && timed.contains("ddim_step (c=8 guided ") == guided;
        assert!(step, "{guidance:?}: {timed}");
    }
}

#[test]
fn a_plan_of_several_pictures_takes_more_memory_and_the_same_weights() {
    let memory = |batch: &str| {
        let text = run(&["plan", "--size", "32", "--batch", batch, "--json", "unet", "decoder"]);
        let json: Value = serde_json::from_str(&text).expect("JSON parses");
        let number =
            |network: usize, key: &str| json["networks"][network]["memory"][0][key].as_u64().expect("a number");
        [0, 1].map(|network| (number(network, "activation_bytes"), number(network, "weight_bytes")))
    };
    for (one, four) in memory("1").into_iter().zip(memory("4")) {
        assert!(four.0 > 2 * one.0 && four.1 == one.1, "{one:?} and {four:?}");
    }
    let text = run(&["plan", "--size", "32", "--batch", "4", "decoder"]);
    assert!(text.contains("mini, 32x32 pixels, 4 pictures at once, one step, without guidance\n"), "{text}");
}

#[test]
fn variants_are_listed_for_a_device() {
    let listed = |more: &[&str]| run(&[&["plan", "--list", "--size", "32", "text"], more].concat());
    // Number, kernel, variant and name of every step.
    let steps = |text: &str| {
        let (steps, _) = text.split_once(", tensors in").expect("tensors follow");
        let of = |row: &str| row.split_whitespace().take(4).map(str::to_owned).collect::<Vec<_>>();
        steps.lines().skip(1).map(of).filter(|row| row.len() == 4).collect::<Vec<_>>()
    };
    let portable = steps(&listed(&[]));
    for device in names_of_drawing_devices().iter().filter(|name| *name != "cpu") {
        let own = steps(&listed(&["--device", device]));
        assert!(own.len() == portable.len() && own.len() > 10, "{device}: as many steps");
        let same = |(own, portable): (&Vec<String>, &Vec<String>)| own[1] == portable[1] && own[3] == portable[3];
        assert!(own.iter().zip(&portable).all(same), "{device}: the same kernels");
        // `bench --plan` runs the variants that `plan --list` shows.
        let folder = folder();
        let file = folder.path().join("plan.json");
        run(&["bench", "--plan", "text", "--size", "32", "--device", device, "--quick", "--json", arg(&file)]);
        let ran = std::fs::read_to_string(&file).expect("it was written");
        let ran: Value = serde_json::from_str(&ran).expect("JSON parses");
        let mut ran = ran["plan"]["steps"].as_array().expect("a list").clone();
        ran.sort_by_key(|step| step["step"].as_u64());
        let variants = ran.iter().map(|step| step["variant"].as_str().unwrap_or_else(|| panic!("{step}")));
        assert!(variants.eq(own.iter().map(|row| row[2].as_str())), "{device}: {own:?} and {ran:?}");
    }
}

#[test]
fn rounding_errors_of_int8_weights_are_listed() {
    let text = run(&["info", "--weights-dtype", "int8"]);
    assert!(
        text.contains("unet")
            && text.contains("mid_block")
            && text.lines().last().is_some_and(|l| l.starts_with("all"))
    );
    let json: Value = serde_json::from_str(&run(&["info", "--weights-dtype", "int8", "--json"])).expect("JSON parses");
    let unet = &json["networks"][1];
    let of = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    let weights = unet["weights"].as_array().expect("a list");
    let sum: f64 = weights.iter().map(|weight| of(weight, "bytes")).sum();
    assert_eq!(sum, of(unet, "bytes"));
    assert!(of(unet, "relative_l2") > 1e-3 && of(unet, "worst") < 0.004, "{}", unet["name"]);
}

#[test]
fn a_kernel_alone_is_checked_by_every_variant() {
    // The CPU has no variants, which `tests/cli.rs` tests.
    for device in names_of_drawing_devices().into_iter().filter(|name| name != "cpu") {
        let cache = folder();
        let args = ["check", "--kernel", "add", "--kernel", "slice", "--every-variant", "--device", &device];
        let done = program::program().args(args).env("XDG_CACHE_HOME", cache.path()).output().expect("it starts");
        assert!(done.status.success(), "{}", stderr(&done));
        let text = String::from_utf8(done.stdout).expect("results are UTF-8");
        let kernels = text.lines().skip(1).map(|row| row.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        let kernels = kernels.collect::<Vec<_>>();
        assert!(kernels.iter().all(|row| row == "pass add" || row == "pass slice") && kernels.len() > 4, "{text}");
        let keeps = |adapter: &AdapterSummary| adapter.index.to_string() == device && adapter.caps.pipeline_cache;
        if cfg!(target_os = "linux") && adapters().iter().any(keeps) {
            let kept = std::fs::read_dir(cache.path().join("mobilediffusion")).expect("there is a cache folder");
            assert_eq!(kept.count(), 2, "{device}: what was compiled, with and without checks of shaders");
        }
    }
}

#[test]
fn cases_beyond_the_time_are_counted() {
    let done = program::run(&["check", "--device", "cpu", "--kernel", "add", "--within", "0"]);
    let said = stderr(&done);
    assert!(said.contains(" cases were left out to end within the time"), "{said}");
    assert!(!done.status.success() && said.ends_with("\nerror: no case was checked\n"), "{said}");
}

#[test]
fn a_networks_plan_is_checked_step_by_step() {
    for (network, weights) in [("unet", "floats"), ("decoder", "int8")] {
        let text = run(&["check", "--plan", network, "--size", "32", "--device", "cpu", "--weights-dtype", weights]);
        assert!(text.starts_with("all ") && text.contains(" steps agree"), "{text}");
    }
}

#[test]
fn a_networks_plan_is_timed_step_by_step() {
    let (text, json) = bench(&["--plan", "--size", "32"], "cpu", "floats");
    assert!(text.contains("steps one by one: ") && text.contains("conv2d"), "{text}");
    let times = |list: &str, key: &str| {
        let list = json["plan"][list].as_array().unwrap_or_else(|| panic!("{list} of {json}"));
        list.iter().map(|row| row[key].as_f64().expect("a number")).collect::<Vec<_>>()
    };
    let steps = times("steps", "median_us");
    assert!(steps.len() > 100 && steps.is_sorted_by(|a, b| a >= b), "the slowest comes first: {steps:?}");
    let (all, by_kernel): (f64, f64) = (steps.iter().sum(), times("kernels", "us").iter().sum());
    assert!((all - by_kernel).abs() <= 1e-6 * all, "{all} and {by_kernel}");
}

/// Runs `bench --quick`, and returns its standard output and its JSON. Plans and pictures are timed as seldom as possible.
fn bench(args: &[&str], device: &str, weights: &str) -> (String, Value) {
    let folder = folder();
    let file = folder.path().join("bench.json");
    let more = ["--quick", "--device", device, "--weights-dtype", weights, "--json", arg(&file)];
    let once: &[&str] = if args[0].starts_with("--") { &["--within", "1"] } else { &[] };
    let said = run(&[&["bench"], args, &more, once].concat());
    let numbers = std::fs::read_to_string(&file).expect("the numbers were written");
    let numbers: Value = serde_json::from_str(&numbers).expect("they are JSON");
    let stored = (&numbers["dtype"], &numbers["weights_dtype"]);
    assert_eq!(stored, (&"f32".into(), &weights.into()), "how tensors were stored is written with the numbers");
    assert_eq!(numbers["quick"], true, "and how thoroughly they were measured");
    (said, numbers)
}

/// Returns the devices as `--device` names them: `cpu`, and the index of each GPU.
fn names_of_drawing_devices() -> Vec<String> {
    let name = |device| if let DeviceChoice::Named(index) = device { index } else { "cpu".to_owned() };
    drawing_devices().into_iter().map(name).collect()
}

#[test]
fn kernels_with_weights_move_fewer_bytes_and_the_others_the_same() {
    for device in names_of_drawing_devices() {
        let [floats, int8] = ["floats", "int8"].map(|weights| bench(&["add", "linear"], &device, weights));
        assert!(floats.0.contains("storage: f32\n"), "{}", floats.0);
        assert!(int8.0.contains("storage: f32 with int8 weights\n"), "{}", int8.0);
        let rows = [floats, int8].map(|(_, numbers)| numbers["shapes"].as_array().expect("a list of shapes").clone());
        let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
        let bytes = |row: &Value| 1e-6 * number(row, "median_us") * number(row, "bytes_per_second");
        let mut counted = [0, 0];
        for (floats, int8) in rows[0].iter().zip(&rows[1]) {
            assert_eq!(floats["shape"], int8["shape"]);
            assert!(floats["params"]["rows"].is_u64(), "the sizes are numbers: {floats}");
            let weights = floats["kernel"] == "linear";
            let (moved, all) = (bytes(int8), bytes(floats));
            assert!(if weights { moved < all - 1.0 } else { (moved - all).abs() < 1.0 }, "{moved} of {all}: {int8}");
            counted[usize::from(weights)] += 1;
        }
        assert!(counted.iter().all(|count| *count > 0), "add and linear: {counted:?} shapes");
    }
}

#[test]
fn plans_and_pictures_are_made_with_int8_weights() {
    let info = run(&["info", "--weights-dtype", "int8", "--json"]);
    let info: Value = serde_json::from_str(&info).expect("JSON parses");
    let networks = info["networks"].as_array().expect("a list of networks").iter();
    let drawn = networks.filter(|network| !network["name"].as_str().is_some_and(|name| name.starts_with("vae")));
    let expected: u64 = drawn.map(|network| network["bytes"].as_u64().expect("a number")).sum();
    for device in names_of_drawing_devices() {
        let (said, numbers) = bench(&["--plan", "decoder", "--size", "32"], &device, "int8");
        assert!(said.contains("storage: f32 with int8 weights\n") && said.contains("plan: decoder"), "{said}");
        assert!(numbers["plan"]["whole_us"].as_f64().is_some_and(|us| us > 0.0), "{numbers}");
        let (said, numbers) = bench(&["--picture", "--size", "32"], &device, "int8");
        assert!(said.contains("32x32 pixels, 1 step, guidance 1 (sampler: one step)\n"), "{said}");
        let bytes = numbers["picture"]["weight_bytes"].as_u64().expect("a number");
        // The CPU keeps convolutions by Winograd's algorithm in f32, and their transformed weights are larger.
        assert!(if device == "cpu" { bytes > expected } else { bytes == expected }, "{expected}: {numbers}");
        let (said, floats) = bench(&["--picture", "--size", "32", "--guidance", "2"], &device, "floats");
        assert!(said.contains(" steps, guidance 2 (sampler: DDIM)\n"), "{said}");
        assert!(floats["picture"]["weight_bytes"].as_u64().is_some_and(|floats| bytes < floats), "{bytes}: {floats}");
    }
}

#[test]
fn golden_prints_the_error_of_every_block() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden/vae");
    let folder = arg(&folder);
    let lines = run(&["golden", folder, "decode.safetensors", "--device", "cpu"]);
    let [heading, rows @ .., worst] = &lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    assert!(rows.len() > 3 && heading.ends_with(" relative L2"), "{lines}");
    let mut most = ("", 0.0);
    for line in rows {
        // `reference/parity.py` and `benches/peers/networks.py` read these lines.
        let [name, error] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let error: f64 = error.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(name.starts_with("output") && (0.0..1e-4).contains(&error), "{line}");
        most = if error > most.1 { (name, error) } else { most };
    }
    assert!(worst.starts_with(&format!("worst: {} ", most.0)), "{lines}");
    assert_eq!(run(&["golden", folder, "decode", "--device", "cpu"]), lines, "a case without its ending");
    for (more, expected) in [
        (&["absent"][..], "absent: there is no such case in the folder, but decode, encode"),
        (&[], "golden.safetensors: there is no such case in the folder, but decode, encode"),
        (&["--dtype", "f16"], "f32 on the CPU device"),
    ] {
        let message = stderr(&program::run(&[&["golden", folder, "--device", "cpu"], more].concat()));
        assert!(message.contains("error: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn golden_fails_where_a_block_differs() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden/vae");
    let folder = folder();
    let changed = |name: &str, from: &Path, value: f32| {
        let mut bytes = std::fs::read(from).expect("it reads");
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&value.to_le_bytes());
        std::fs::write(folder.path().join(name), bytes).expect("it is written");
    };
    for name in ["config.json", "model.safetensors", "decode.safetensors"] {
        std::fs::copy(from.join(name), folder.path().join(name)).expect("it is copied");
    }
    changed("far.safetensors", &from.join("decode.safetensors"), 1000.0);
    changed("nan.safetensors", &from.join("decode.safetensors"), f32::NAN);
    let golden = |case: &str, tolerance: &[&str]| {
        program::run(&[&["golden", arg(folder.path()), case, "--device", "cpu"], tolerance].concat())
    };
    let cases =
        [("far", &[][..]), ("nan", &[]), ("nan", &["--tolerance", "inf"]), ("decode", &["--tolerance", "1e-12"])];
    for (case, tolerance) in cases {
        let done = golden(case, tolerance);
        let said = stderr(&done);
        assert_eq!(done.status.code(), Some(1), "{case}: {said}");
        assert!(said.contains("error: output") && said.contains("expected a relative L2 error of at most"), "{said}");
        let rows = String::from_utf8_lossy(&done.stdout);
        assert!(rows.lines().last().is_some_and(|line| line.starts_with("worst: ")), "{rows}");
    }
    assert!(golden("far", &["--tolerance", "1e6"]).status.success(), "a larger tolerance");
}

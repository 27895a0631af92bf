//! Case files: ONNX's test vectors on references and CPU forms, round trips, broken files, and the example of the
//! page that describes the format.

use mobilediffusion_kernels::Device;
use mobilediffusion_kernels::casefile::CaseFile;
use mobilediffusion_kernels::kernel::split;
use mobilediffusion_kernels::runner;
use mobilediffusion_kernels::{FAMILIES, WeightType, check};
use mobilediffusion_tests::folder;
use mobilediffusion_tests::program::run;
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Kernels that ONNX's vectors cover, with the least number of files for each.
const COVERED: &[(&str, usize)] = &[
    ("activation", 5),
    ("add", 2),
    ("attention", 30),
    ("concat", 7),
    ("conv2d", 22),
    ("depthwise_conv2d", 2),
    ("embedding", 5),
    ("group_norm", 12),
    ("group_norm_stats", 9),
    ("layer_norm", 19),
    ("linear", 13),
    ("upsample_nearest", 1),
];

fn onnx_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
    let entries = fs::read_dir(folder).expect("the vectors lie in tests/data/onnx");
    let paths = entries.map(|entry| entry.expect("a folder's entry reads").path());
    let mut files: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

#[test]
#[expect(clippy::print_stdout, reason = "the count is the point of the test's output")]
fn onnx_agrees_with_references_and_cpu_forms() {
    let (mut counts, mut failures) = (BTreeMap::new(), Vec::new());
    for path in onnx_files() {
        let file = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let kernel = file.case.kernel.as_ref();
        let truth: Vec<Vec<f32>> = check::expected(&file.case, &file.inputs)
            .into_iter()
            .map(|values| values.into_iter().map(|v| v as f32).collect())
            .collect();
        let tolerance = file.tolerance.unwrap_or_else(|| kernel.tolerance());
        assert!(
            tolerance.relative <= 1e-5 || path.to_string_lossy().contains("fp16"),
            "{}: too lenient",
            path.display()
        );
        let reference = runner::judge(kernel, &truth, &file.expected_f64(), tolerance);
        let cpu = runner::check_file(&Device::CPU, &file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (form, verdict) in [("reference", reference), ("CPU form", cpu)] {
            failures.extend(verdict.failure.map(|why| format!("{}: {form}: {why}", path.display())));
        }
        *counts.entry(kernel.name()).or_insert(0) += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for (kernel, least) in COVERED {
        let found = counts.get(kernel).copied().unwrap_or_default();
        assert!(found >= *least, "{found} files for {kernel}, expected at least {least}");
    }
    let files: usize = counts.values().sum();
    println!("{files} vectors of ONNX cover {} of {} kernels", counts.len(), FAMILIES.len());
}

#[test]
fn every_case_survives_a_round_trip_through_a_file() {
    let folder = folder();
    let path = folder.path().join("case.safetensors");
    for family in FAMILIES {
        for (seed, case) in (1..).zip((family.cases)()) {
            let inputs = check::inputs(&case, seed);
            let expected =
                runner::run_cpu(case.kernel.as_ref(), WeightType::Floats, &inputs).expect("the CPU form runs");
            let tolerance = case.exact.then_some(mobilediffusion_kernels::Tolerance::EXACT);
            let file = CaseFile { case, inputs, expected, tolerance };
            file.write(&path).unwrap_or_else(|error| panic!("{error}"));
            let again = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
            let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(format!("{:?}", again.case.kernel), format!("{:?}", file.case.kernel), "another problem");
            assert_eq!(bits(&again.inputs), bits(&file.inputs), "{:?}: other operands", file.case.kernel);
            assert_eq!(bits(&again.expected), bits(&file.expected), "{:?}: another answer", file.case.kernel);
            assert_eq!(again.tolerance, file.tolerance, "another tolerance");
        }
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Returns tensors and metadata of a small valid file: `add` of two rows of three.
fn right() -> (Tensors, HashMap<String, String>) {
    let tensor = |value: f32| (Dtype::F32, vec![2, 3], value.to_le_bytes().repeat(6));
    let tensors = [("a", 1.0), ("b", 2.0), ("expected", 3.0)].map(|(name, v)| (name.to_owned(), tensor(v)));
    let metadata = [("kernel", "add"), ("params", r#"{"rows": 2, "c": 3}"#)];
    (tensors.into(), metadata.map(|(key, text)| (key.to_owned(), text.to_owned())).into())
}

fn bytes(tensors: &Tensors, metadata: HashMap<String, String>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("the length fits the shape"))
    });
    serialize(views, Some(metadata)).expect("it serializes")
}

#[test]
fn wrong_metadata_is_named() {
    let with = |key: &str, text: Option<&str>| {
        let (tensors, mut metadata) = right();
        match text {
            Some(text) => metadata.insert(key.to_owned(), text.to_owned()),
            None => metadata.remove(key),
        };
        let error = CaseFile::parse(&bytes(&tensors, metadata)).expect_err("the metadata is wrong").to_string();
        assert!(!error.contains('\n'), "more than a line: {error}");
        error
    };
    for (key, text, words) in [
        ("kernel", None, vec!["`kernel` is missing", "add", "upsample_nearest"]),
        ("kernel", Some("ad\nd"), vec![r"`ad\nd`", "one of activation, add,"]),
        ("params", None, vec!["`params` is missing"]),
        ("params", Some("rows=2"), vec!["`rows=2`", "JSON"]),
        ("params", Some("[2, 3]"), vec!["JSON object"]),
        ("params", Some(r#"{"rows": 2}"#), vec!["`add`", "missing field `c`"]),
        ("params", Some(r#"{"rows": 2, "c": 3, "d": 4}"#), vec!["unknown field `d`"]),
        ("params", Some(r#"{"rows": -2, "c": 3}"#), vec!["-2"]),
        ("params", Some(r#"{"rows": 0, "c": 3}"#), vec!["`a`", "[0, 3]"]),
        ("params", Some(r#"{"rows": 18446744073709551615, "c": 3}"#), vec!["`rows`", "at most"]),
        ("params", Some(r#"{"rows": 2097152, "c": 2097152}"#), vec!["elements"]),
        ("params", Some(r#"{"rows": 2, "c": 3, "rows": 2}"#), vec!["the key `rows` is there twice"]),
        ("tolerance", Some(r#"{"absolute": 1, "absolute": 2}"#), vec!["`tolerance`"]),
        ("tolerance", Some("-1"), vec!["`tolerance`", "`-1`"]),
        ("tolerance", Some(r#"{"absolut": 1}"#), vec!["`tolerance`"]),
        ("tolerance", Some("much"), vec!["`much`"]),
    ] {
        let error = with(key, text);
        words.iter().for_each(|word| assert!(error.contains(word), "no {word} in: {error}"));
    }
}

#[test]
fn sizes_no_form_takes_are_refused() {
    let conv = r#""n":1,"h":1,"w":1,"ci":1,"co":1,"pad_start":0,"pad_end":0,"upsample":1"#;
    for (kernel, params, words) in [
        ("conv2d", format!(r#"{{{conv},"kernel":3,"stride":1}}"#), "fit the padded"),
        ("conv2d", format!(r#"{{{conv},"kernel":1,"stride":0}}"#), "`stride`"),
        (
            "group_norm",
            r#"{"rows":1,"c":3,"source":{"norm":{"rows":{"eps":1e-5}}}}"#.into(),
            "`norm` must be `channels`",
        ),
        ("group_norm_stats", r#"{"n":1,"positions":1,"c":3,"groups":0,"eps":0.1}"#.into(), "multiple of `groups`"),
        ("embedding", r#"{"n":1,"l":3,"vocab":1,"positions":2,"c":1}"#.into(), "at most `positions`"),
        ("timestep_embedding", r#"{"n":1,"dim":3}"#.into(), "even"),
        (
            "attention",
            r#"{"n":1,"queries":1,"keys":1,"heads":1,"head_dim":6,"phi":"relu","causal":false,"shared":false}"#.into(),
            "`head_dim`",
        ),
        ("layer_norm", r#"{"rows":1,"c":4,"eps":-1}"#.into(), "`eps` is -1, expected a finite f32 of at least 1e-12"),
        ("layer_norm", r#"{"rows":1,"c":4,"eps":1e300}"#.into(), "`eps` is 1e+300, expected a finite f32 of"),
        ("layer_norm", r#"{"rows":1,"c":4,"eps":1e-40}"#.into(), "`eps` is 1e-40, expected a finite f32 of"),
        ("group_norm_stats", r#"{"n":1,"positions":1,"c":4,"groups":1,"eps":0}"#.into(), "`eps` is 0, expected"),
        ("group_norm_scale", r#"{"n":1,"c":4,"groups":1,"eps":-0.5,"positions":1}"#.into(), "`eps` is -0.5, expected"),
        ("group_norm", r#"{"rows":1,"c":4,"source":{"norm":{"rows":{"eps":-2}}}}"#.into(), "`eps` is -2, expected"),
        (
            "group_norm",
            r#"{"rows":1,"c":4,"source":[0,"none",false]}"#.into(),
            "`source` is a list, expected an object",
        ),
        (
            "group_norm",
            r#"{"rows":1,"c":4,"source":{"norm":{"channels":{"activation":"silu"}}}}"#.into(),
            r#"`source.norm`: missing field `images`, expected "none", {"rows": {"eps": E}} or {"channels": "#,
        ),
        (
            "group_norm",
            r#"{"rows":1,"c":4,"source":{"norm":{"channels":{"images":1,"act":"silu"}}}}"#.into(),
            "`source.norm`: unknown field `act`",
        ),
        (
            "group_norm",
            r#"{"rows":1,"c":4,"source":{"norm":"group"}}"#.into(),
            "`source.norm`: unknown variant `group`",
        ),
    ] {
        let metadata = HashMap::from([("kernel".into(), kernel.into()), ("params".into(), params)]);
        let error = CaseFile::parse(&bytes(&right().0, metadata)).expect_err("the sizes are wrong").to_string();
        assert!(error.contains(words) && error.contains(kernel), "no {words} in: {error}");
    }
}

#[test]
fn names_and_values_of_any_length_are_cut() {
    let (long, short) = ("x".repeat(1 << 20), 600);
    let refused = |tensors: &Tensors, metadata: &HashMap<String, String>| {
        CaseFile::parse(&bytes(tensors, metadata.clone())).expect_err("it is wrong").to_string()
    };
    let (mut tensors, metadata) = right();
    for params in [format!(r#"{{"rows": "{long}", "c": 3}}"#), format!(r#"{{"{long}": 2, "c": 3}}"#)] {
        let mut metadata = metadata.clone();
        metadata.insert("params".to_owned(), params);
        let error = refused(&tensors, &metadata);
        assert!(error.len() < short && error.contains("xxx ... xxx"), "{} bytes: {error:.1000}", error.len());
    }
    tensors.insert(long.clone(), tensors["a"].clone());
    let error = refused(&tensors, &metadata);
    assert!(error.len() < short && error.contains("has no place"), "{} bytes: {error:.1000}", error.len());
    tensors.remove("b");
    let error = refused(&tensors, &metadata);
    assert!(error.len() < short && error.contains("`b` is missing"), "{} bytes: {error:.1000}", error.len());
}

#[test]
#[cfg(unix)]
fn devices_and_tensors_that_are_there_twice_are_refused() {
    let error = CaseFile::read(Path::new("/dev/zero")).expect_err("it has no end").to_string();
    assert_eq!(error, "/dev/zero: expected a file, found a folder, pipe or device");
    let (tensors, metadata) = right();
    let whole = bytes(&tensors, metadata);
    let (length, rest) = whole.split_first_chunk().expect("a file begins with a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = std::str::from_utf8(header).expect("headers are UTF-8").trim_end();
    let again = r#","a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    let header = format!("{}{again}", header.strip_suffix('}').expect("it is an object"));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    let error = CaseFile::parse(&file).expect_err("it is there twice").to_string();
    assert!(error.contains("the key `a` is there twice"), "{error}");
}

#[test]
fn wrong_tensors_are_named() {
    let with = |change: &dyn Fn(&mut Tensors)| {
        let (mut tensors, metadata) = right();
        change(&mut tensors);
        CaseFile::parse(&bytes(&tensors, metadata)).expect_err("the tensors are wrong").to_string()
    };
    let put = |name: &str, dtype, shape: Vec<usize>, len| {
        let (name, tensor) = (name.to_owned(), (dtype, shape, vec![0; len]));
        with(&move |tensors| drop(tensors.insert(name.clone(), tensor.clone())))
    };
    for (error, words) in [
        (with(&|t| drop(t.remove("b"))), vec!["`b` is missing", "[2, 3]", "`a`, `expected`"]),
        (with(&|t| drop(t.remove("expected"))), vec!["`expected` is missing"]),
        (put("bias", Dtype::F32, vec![1], 4), vec!["`bias` has no place", "`a`, `b`, `expected`"]),
        (put("b", Dtype::F32, vec![3, 2], 24), vec!["`b` is [3, 2]", "expected [2, 3]"]),
        (put("b", Dtype::F64, vec![2, 3], 48), vec!["F64", "F32 or F16 or BF16"]),
        (put("expected", Dtype::U32, vec![2, 3], 24), vec!["`expected`", "U32"]),
    ] {
        words.iter().for_each(|word| assert!(error.contains(word), "no {word} in: {error}"));
    }
}

#[test]
fn halves_and_integers_are_read() {
    let sizes = r#"{"n":1,"l":2,"vocab":2,"positions":2,"c":1}"#;
    let file = |dtype, ids: Vec<u8>| {
        let half = |values: [u8; 2]| (Dtype::BF16, vec![2, 1], vec![0, values[0], 0, values[1]]);
        let tensors = BTreeMap::from([
            ("ids".to_owned(), (dtype, vec![1, 2], ids)),
            ("token".to_owned(), half([0x40, 0x3f])),
            ("position".to_owned(), half([0x00, 0x00])),
            ("expected".to_owned(), (Dtype::F16, vec![1, 2, 1], vec![0x00, 0x38, 0x00, 0x40])),
        ]);
        let metadata = [("kernel", "embedding"), ("params", sizes)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        CaseFile::parse(&bytes(&tensors, metadata.into()))
    };
    let wide: Vec<u8> = [1_i64, 0].into_iter().flat_map(i64::to_le_bytes).collect();
    let narrow: Vec<u8> = [1_i32, 0].into_iter().flat_map(i32::to_le_bytes).collect();
    for (dtype, ids) in [(Dtype::I64, wide), (Dtype::I32, narrow.clone()), (Dtype::U32, narrow)] {
        let file = file(dtype, ids).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.inputs[1], [2.0, 0.5], "bfloat16");
        let verdict = runner::check_file(&Device::CPU, &file).expect("the CPU form runs");
        assert_eq!(verdict.failure, None, "{dtype}");
    }
    let negative: Vec<u8> = [0_i64, -1].into_iter().flat_map(i64::to_le_bytes).collect();
    let error = file(Dtype::I64, negative).expect_err("-1 is no id").to_string();
    assert!(error.contains("`ids` holds -1 at 1"), "{error}");
}

#[test]
fn truncated_files_are_refused_by_name() {
    let (tensors, metadata) = right();
    let whole = bytes(&tensors, metadata);
    assert!(CaseFile::parse(&whole).is_ok(), "the file is right");
    let folder = folder();
    let path = folder.path().join("cut.safetensors");
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).expect("the file is written");
        let error = CaseFile::read(&path).expect_err("a part is no file").to_string();
        assert!(error.contains("cut.safetensors: not a whole safetensors file"), "{error}");
    }
    let error = CaseFile::read(folder.path()).expect_err("a folder is no file").to_string();
    assert!(error.starts_with(&folder.path().display().to_string()), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = CaseFile::parse(&bytes);
    }

    #[test]
    fn no_damage_panics(place in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (tensors, metadata) = right();
        let mut bytes = bytes(&tensors, metadata);
        let at = place.index(bytes.len());
        bytes[at] = value;
        let _ = CaseFile::parse(&bytes);
    }

    #[test]
    fn no_sizes_panic(family in 0..FAMILIES.len(), case in any::<prop::sample::Index>(),
                      place in any::<prop::sample::Index>(), value in prop_oneof![0..9_u64, any::<u64>()]) {
        let cases = (FAMILIES[family].cases)();
        let kernel = &cases[case.index(cases.len())].kernel;
        let mut params = kernel.params_json();
        let sizes = params.as_object_mut().expect("sizes are an object");
        let key = sizes.keys().nth(place.index(sizes.len())).expect("the index fits").clone();
        sizes.insert(key, value.into());
        let metadata = [("kernel", kernel.name().to_owned()), ("params", params.to_string())];
        let _ = CaseFile::parse(&bytes(&right().0, metadata.map(|(k, v)| (k.to_owned(), v)).into()));
    }
}

#[test]
fn the_program_judges_every_file_it_is_given() {
    let folder = folder();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("the file is written");
    let (mut tensors, metadata) = right();
    let good = bytes(&tensors, metadata.clone());
    tensors.insert("expected".to_owned(), (Dtype::F32, vec![2, 3], 3.5_f32.to_le_bytes().repeat(6)));
    put("a.safetensors", &good);
    put("b.safetensors", &good[..good.len() - 1]);
    put("c.safetensors", &bytes(&tensors, metadata));
    put("d.safetensors", &good);
    let check = |path: &Path| {
        let done = run(&["check", "--device", "cpu", path.to_str().expect("the path is UTF-8")]);
        (done.status.code(), String::from_utf8(done.stdout).expect("rows are UTF-8"))
    };
    let (code, rows) = check(folder.path());
    let words: Vec<&str> = rows.lines().skip(1).filter_map(|row| row.split(' ').next()).collect();
    assert_eq!((code, words), (Some(1), vec!["pass", "ERROR", "FAIL", "pass"]), "{rows}");
    let (code, rows) = check(&folder.path().join("a.safetensors"));
    assert_eq!((code, rows.lines().count()), (Some(0), 2), "{rows}");
}

/// The example on the page wrote `tests/data/pytorch_example.safetensors`.
#[test]
fn the_example_of_the_page_is_a_case_in_ten_lines() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cases.md"));
    let page = page.expect("docs/cases.md reads");
    let example = page.split_once("```python\n").and_then(|(_, rest)| rest.split_once("```"));
    let (example, _) = example.expect("the page has an example");
    assert_eq!(example.lines().count(), 10, "ten lines");
    let params = example.split_once("params = ").and_then(|(_, rest)| rest.split_once('}'));
    let params = params.map(|(params, _)| format!("{params}}}").replace("True", "true")).expect("it has params");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pytorch_example.safetensors");
    let file = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let family = mobilediffusion_kernels::family("conv2d").expect("there is one");
    let written: serde_json::Value = serde_json::from_str(&params).expect("the params are JSON");
    let kernel = (family.parse)(&written).expect("the sizes are those of a kernel");
    assert_eq!(format!("{kernel:?}"), format!("{:?}", file.case.kernel), "the page has another problem than the file");
    for (name, operand) in split(kernel.as_ref()).0.iter().map(|o| (o.name, o)) {
        assert_eq!(example.contains(&format!("\"{name}\": ")), operand.present, "`{name}` of the example");
    }
    let verdict = runner::check_file(&Device::CPU, &file).expect("the CPU form runs");
    assert_eq!(verdict.failure, None, "PyTorch's answer is another");
}

use super::*;
use half::{bf16, f16};
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

/// Number of values that one thread converts at a time.
const CHUNK: usize = 1 << 16;

/// Type, shape and raw bytes of a tensor.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn f32s(shape: &[usize], values: &[f32]) -> Raw {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn write(dir: &Path, file: &str, tensors: &[(&str, Raw)]) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a test's tensor is consistent"))
    });
    serialize_to_file(views, None, &dir.join(file)).expect("the temporary directory is writable");
}

fn checkpoint(tensors: &[(&str, Raw)]) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "model.safetensors", tensors);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn problems(
    result: Result<impl std::fmt::Debug, impl Into<Box<dyn Error + Send + Sync>> + std::fmt::Debug>,
) -> Vec<WeightProblem> {
    let error = result.expect_err("the weights have problems").into();
    match *error.downcast().expect("the error is the model's") {
        ModelError::Weights { problems, .. } => problems,
        other => panic!("expected problems with the weights, found {other:?}"),
    }
}

#[test]
fn three_types_widen_to_the_same_values() {
    let values = [0.0_f32, -1.5, 0.25, 3.0, -0.0078125, 96.0];
    let f16s = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let bf16s = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let tensors =
        [("a", f32s(&[2, 3], &values)), ("b", (Dtype::F16, vec![3, 2], f16s)), ("c", (Dtype::BF16, vec![6], bf16s))];
    let (_dir, checkpoint) = checkpoint(&tensors);
    for (name, shape) in [("a", &[2, 3][..]), ("b", &[3, 2]), ("c", &[6])] {
        assert_eq!(checkpoint.load(name, shape).unwrap(), values, "{name}");
        assert_eq!(checkpoint.load_part(name, shape, 1..4).unwrap(), values[1..4], "{name}");
    }
    assert!(checkpoint.names().eq(["a", "b", "c"]), "{checkpoint:?}");
    assert_eq!((checkpoint.tensors["b"].shape.as_slice(), checkpoint.tensors["c"].dtype), (&[3, 2][..], Dtype::BF16));
}

#[test]
fn a_checkpoint_is_in_f16_if_all_its_matrices_are() {
    let half =
        |name, shape: &[usize]| (name, (Dtype::F16, shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()]));
    let vector = ("bias", f32s(&[2], &[1.0, 2.0]));
    // Older versions of transformers wrote a buffer of whole numbers, which is not read.
    let buffer = ("embeddings.position_ids", (Dtype::I64, vec![1, 2], vec![0; 16]));
    let rest = [half("w", &[2, 3]), vector, buffer];
    for (more, expected) in [
        (half("conv", &[1, 2, 3, 3]), true),
        (("fc", f32s(&[1, 2], &[1.0, 2.0])), false),
        (("fc", (Dtype::BF16, vec![1, 2], vec![0; 4])), false),
    ] {
        let (_dir, checkpoint) = checkpoint(&[&rest[..], std::slice::from_ref(&more)].concat());
        assert_eq!(checkpoint.is_f16(), expected, "{more:?}");
    }
}

#[test]
fn long_and_odd_tensors_are_read_whole() {
    let len = 3 * CHUNK + 5;
    let bytes = (0..len).flat_map(|i| f16::from_f32((i % 2048) as f32).to_le_bytes()).collect();
    let tensors = [("byte", (Dtype::U8, vec![1], vec![7])), ("long", (Dtype::F16, vec![len], bytes))];
    let (_dir, checkpoint) = checkpoint(&tensors);
    let values = checkpoint.load("long", &[len]).unwrap();
    assert!(values.iter().enumerate().all(|(i, &v)| v == (i % 2048) as f32), "every value in its place");
    let part = checkpoint.load_part("long", &[len], 12_345..len - 1).unwrap();
    assert!(part == values[12_345..len - 1], "a part is what it is in the whole");
}

#[test]
fn all_problems_are_reported_together() {
    let tensors = [
        ("good", f32s(&[2], &[1.0, 2.0])),
        ("wide", f32s(&[2], &[1.0, 2.0])),
        ("whole", (Dtype::I64, vec![1], vec![0; 8])),
        ("spare", f32s(&[1], &[1.0])),
        ("x.position_ids", (Dtype::I64, vec![1], vec![0; 8])),
    ];
    let (_dir, checkpoint) = checkpoint(&tensors);
    let expected: Vec<(String, Vec<usize>)> =
        [("good", vec![2]), ("wide", vec![1, 2]), ("whole", vec![1]), ("absent", vec![4])]
            .map(|(name, shape)| (name.to_owned(), shape))
            .into();
    let found = problems(checkpoint.verify(&expected));
    assert_eq!(
        found,
        [
            WeightProblem::Shape { name: "wide".into(), expected: vec![1, 2], found: vec![2] },
            WeightProblem::DType { name: "whole".into(), found: "I64".into() },
            WeightProblem::Missing { name: "absent".into(), shape: vec![4] },
            WeightProblem::Extra { name: "spare".into() },
        ]
    );
}

#[test]
fn loading_refuses_what_is_not_as_asked() {
    let tensors = [("whole", (Dtype::I64, vec![1], vec![0; 8])), ("good", f32s(&[2], &[1.0, 2.0]))];
    let (_dir, checkpoint) = checkpoint(&tensors);
    let dtype = WeightProblem::DType { name: "whole".into(), found: "I64".into() };
    assert_eq!(problems(checkpoint.load("whole", &[1])), [dtype]);
    let shape = WeightProblem::Shape { name: "good".into(), expected: vec![1, 2], found: vec![2] };
    assert_eq!(problems(checkpoint.load("good", &[1, 2])), [shape]);
    let missing = WeightProblem::Missing { name: "absent".into(), shape: vec![2] };
    assert_eq!(problems(checkpoint.load("absent", &[2])), [missing]);
    assert_eq!(checkpoint.load("good", &[2]).unwrap(), [1.0, 2.0]);
}

#[test]
fn the_check_names_every_tensor_with_a_nan_or_an_infinity() {
    // More bytes than are read at a time.
    const LONG: usize = 5 << 20;
    let long = |at: usize, value: f16| {
        let mut values = vec![f16::MAX; LONG];
        values[at] = value;
        (Dtype::F16, vec![LONG], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    let small = bf16::MIN_POSITIVE_SUBNORMAL.to_le_bytes().to_vec();
    let tensors = [
        ("a", f32s(&[3], &[1.0, f32::NAN, 2.0])),
        ("b", f32s(&[3], &[f32::MAX, f32::MIN_POSITIVE, -0.0])),
        ("c", long(LONG - 1, f16::NEG_INFINITY)),
        ("d", long(LONG / 2, f16::MIN)),
        ("e", (Dtype::BF16, vec![1], bf16::NAN.to_le_bytes().to_vec())),
        ("f", (Dtype::BF16, vec![1], small)),
        ("g", (Dtype::F32, vec![0], vec![])),
    ];
    let (_dir, checkpoint) = checkpoint(&tensors);
    let spoilt = ["a", "c", "e"].map(|name| WeightProblem::NotFinite { name: name.into() });
    assert_eq!(problems(checkpoint.check(&mut |_, _| Flow::Continue)), spoilt);

    let good: Vec<_> = tensors.into_iter().filter(|(name, _)| !["a", "c", "e"].contains(name)).collect();
    let buffer = ("position_ids", (Dtype::I64, vec![1], vec![0xff; 8]));
    let (_dir, checkpoint) = self::checkpoint(&[good, vec![buffer]].concat());
    let mut heard = Vec::new();
    let checked = checkpoint.check(&mut |done, total| {
        heard.push((done, total));
        Flow::Continue
    });
    checked.expect("the rest is finite, and buffers are not looked at");
    assert_eq!(heard, [0, 1, 2, 3, 4].map(|done| (done, 4)));
}

#[test]
fn names_of_diffusers_are_found_old_ones_too() {
    let dir = tempfile::tempdir().unwrap();
    let attention = |projection: &str| format!("decoder.mid_block.attentions.0.{projection}.weight");
    let (old, new) = (attention("proj_attn"), attention("to_out.0"));
    write(dir.path(), "diffusion_pytorch_model.safetensors", &[(old.as_str(), f32s(&[1], &[1.0]))]);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().load(&new, &[1]).unwrap(), [1.0]);
    let half = dir.path().join("half");
    std::fs::create_dir(&half).unwrap();
    write(&half, "diffusion_pytorch_model.fp16.safetensors", &[(old.as_str(), f32s(&[1], &[3.0]))]);
    assert_eq!(Checkpoint::open(&half).unwrap().load(&new, &[1]).unwrap(), [3.0]);

    write(dir.path(), "1.safetensors", &[(old.as_str(), f32s(&[1], &[2.0]))]);
    let index = dir.path().join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(index, format!(r#"{{"weight_map":{{"{old}":"1.safetensors"}}}}"#)).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().load(&new, &[1]).unwrap(), [2.0]);
}

#[test]
fn a_prefix_is_added_only_where_it_is_missing() {
    for tail in ["embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias", "final_layer_norm.weight"] {
        let whole = format!("text_model.{tail}");
        for stored in [tail, &whole] {
            let (_dir, checkpoint) = checkpoint(&[(stored, f32s(&[1], &[1.0]))]);
            assert!(checkpoint.names().eq([whole.as_str()]), "{stored}");
            assert_eq!(checkpoint.load(&whole, &[1]).unwrap(), [1.0]);
        }
    }
    let (_dir, vae) = checkpoint(&[("encoder.conv_in.weight", f32s(&[1], &[1.0]))]);
    assert!(vae.names().eq(["encoder.conv_in.weight"]), "a VAE has an encoder too");
}

#[test]
fn truncated_and_garbage_files_are_errors_that_name_the_file() {
    let (dir, _) = checkpoint(&[("w", f32s(&[64], &[0.5; 64]))]);
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut files: Vec<Vec<u8>> = (0..whole.len()).step_by(7).map(|len| whole[..len].to_vec()).collect();
    files.push([whole.as_slice(), b"more"].concat());
    files.push(vec![0xff; 100]);
    files.push(b"PK\x03\x04 a pickle of torch, not a safetensors file".to_vec());
    let header: &[u8] = br#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#;
    files.push([&(header.len() as u64).to_le_bytes(), header, &[0; 16]].concat());
    for file in files {
        // A new file each time: the old one may still be mapped.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err();
        assert!(matches!(error, ModelError::Safetensors { .. }), "{} bytes: {error}", file.len());
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn files_that_are_cut_off_or_stand_for_others_are_explained() {
    let (dir, _) = checkpoint(&[("w", f32s(&[64], &[0.5; 64]))]);
    let whole = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let cut = |len| format!("its header is that of a file of {} bytes, it has {len}", whole.len());
    for (bytes, expected) in [
        (&whole[..whole.len() - 1], cut(whole.len() - 1)),
        (&[&whole[..], b"more"].concat(), cut(whole.len() + 4)),
        (&[0; 5000], "it begins with zeros: it was not downloaded".to_owned()),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer".to_owned()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_file_that_was_not_written_to_its_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (value, whole) in [(0.0, false), (1.0, true)] {
        let mut values = vec![0.0; 1 << 19];
        values[(1 << 18) + 9] = value;
        write(dir.path(), "model.safetensors", &[("w", f32s(&[1 << 19], &values))]);
        let opened = Checkpoint::open(dir.path());
        assert_eq!(opened.is_ok(), whole, "{opened:?}");
        assert!(whole || opened.unwrap_err().to_string().contains("its last MiB is zero"), "the reason is named");
    }
}

#[test]
fn a_tensor_that_is_there_twice_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let long = "w".repeat(1 << 20);
    let entry = |dtype: &str| format!(r#""w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}"#);
    for (entries, named) in
        [(format!("{0},{0}", entry("F32")), "the key `w` is there twice"), (entry(&long), "`w`: unknown variant `www")]
    {
        let header = format!("{{{entries}}}");
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let error = Checkpoint::open(dir.path()).expect_err("it is not valid").to_string();
        assert!(error.contains("model.safetensors: ") && error.contains(named), "{error:.1000}");
        assert!(error.len() < 1000, "{} bytes", error.len());
    }
    let error = WeightProblem::Extra { name: long }.to_string();
    assert!(error.len() < 200 && error.ends_with("www... is not part of the network"), "{error:.1000}");
}

#[test]
fn two_names_of_a_tensor_are_both_named() {
    let names = ["text_model.final_layer_norm.bias", "final_layer_norm.bias"];
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "model.safetensors", &names.map(|name| (name, f32s(&[1], &[1.0]))));
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: ") && error.ends_with("are names of the same tensor"), "{error}");
    assert!(names.iter().all(|name| error.contains(&format!(" {name} "))), "{error}");
}

#[test]
fn an_absent_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Io { path, .. } if path.ends_with("model.safetensors")), "{error}");
    assert!(error.to_string().contains("diffusion_pytorch_model.fp16.safetensors"), "the other names: {error}");
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let index = |json: &str| std::fs::write(dir.path().join("model.safetensors.index.json"), json).unwrap();
    write(dir.path(), "1.safetensors", &[("a", f32s(&[1], &[1.0]))]);
    write(dir.path(), "2.safetensors", &[("b", f32s(&[1], &[2.0])), ("c", f32s(&[1], &[3.0]))]);
    write(dir.path(), "3.safetensors", &[("a", f32s(&[1], &[4.0]))]);

    index(r#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let values: Vec<f32> = ["a", "b", "c"].iter().flat_map(|name| checkpoint.load(name, &[1]).unwrap()).collect();
    assert_eq!(values, [1.0, 2.0, 3.0]);

    for (json, complaint) in [
        (
            r#"{"weight_map":{"a":"1.safetensors","z":"2.safetensors"}}"#,
            "z: expected in 2.safetensors, found in no shard",
        ),
        (
            r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#,
            "b: expected in 1.safetensors, found in 2.safetensors",
        ),
        (r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#, "a is also in another shard"),
        (r#"{"weight_map":{"a":"../1.safetensors"}}"#, "plain file name"),
        (r#"{"weight_map":{"a":""}}"#, "plain file name"),
        (r#"{"weight_map":{"a":"9.safetensors"}}"#, "9.safetensors"),
        (r#"{"weight_map":{"a":1}}"#, "weight_map.a"),
        ("{", "index.json"),
    ] {
        index(json);
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(complaint), "{json}: {error}");
    }
}

#[test]
fn synthetic_weights_have_gain_one_and_depend_on_seed_and_name() {
    let moments = |values: &[f32]| {
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        (mean, values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64)
    };
    let source = Synthetic { seed: 7 };
    for name in ["mid_block.resnets.0.pwconv1.weight", "norm1.weight", "norm1.bias"] {
        let whole = source.load(name, &[640, 300]).unwrap();
        assert_eq!(source.load_part(name, &[640, 300], 70_000..140_000).unwrap(), whole[70_000..140_000], "{name}");
    }
    let weight = source.load("mid_block.resnets.0.pwconv1.weight", &[640, 64, 3, 3]).unwrap();
    let (mean, variance) = moments(&weight);
    assert!(mean.abs() < 3e-4 && (variance * 576.0 - 1.0).abs() < 1e-2, "mean {mean}, variance {variance}");

    for name in ["norm1.weight", "conv_norm_out.weight", "x.final_layer_norm.weight"] {
        let (mean, variance) = moments(&source.load(name, &[4096]).unwrap());
        assert!((mean - 1.0).abs() < 0.01 && (variance - 0.01).abs() < 2e-3, "{name}: {mean}, {variance}");
    }
    let (mean, variance) = moments(&source.load("norm1.bias", &[4096]).unwrap());
    assert!(mean.abs() < 2e-3 && (variance - 4e-4).abs() < 1e-4, "bias: {mean}, {variance}");

    assert_eq!(synthetic("w", &[100, 10], 7), synthetic("w", &[100, 10], 7));
    assert_ne!(synthetic("w", &[100, 10], 7), synthetic("w", &[100, 10], 8));
    assert_ne!(synthetic("w", &[100, 10], 7), synthetic("v", &[100, 10], 7));
}

#[test]
fn synthetic_tensors_are_not_correlated() {
    let [a, b] = ["a.weight", "b.weight"].map(|name| synthetic(name, &[300_000, 1], 1));
    let n = a.len() as f64;
    // Against each other, and against a neighbour in the same tensor.
    for (x, y) in [(&a[..], &b[..]), (&a[..a.len() - 1], &a[1..])] {
        let product: f64 = x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
        assert!((product / n).abs() < 0.01, "{}", product / n);
    }
}

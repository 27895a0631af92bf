use super::*;
use crate::json::read;
use serde_json::{Value, json};

const PRESET: &str = include_str!("../../presets/mobilediffusion.json");

/// The parts of a preset, in the order of [`FILES`].
const PARTS: [&str; 6] = ["model", "unet", "decoder", "vae", "text_encoder", "scheduler"];

/// The preset with one value replaced, parsed and validated. `pointer` is a JSON pointer.
fn changed(pointer: &str, value: Value) -> Result<(), ModelError> {
    let mut preset: Value = serde_json::from_str(PRESET).unwrap();
    *preset.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is a key of the preset")) = value;
    parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?.validate()
}

#[test]
fn the_preset_is_the_full_size_model() {
    let config = ModelConfig::preset("mobilediffusion").unwrap();
    assert_eq!(config.unet.block_out_channels, [320, 640, 1024]);
    assert_eq!(config.unet.attention_phi, Phi::Relu);
    assert_eq!(config.defaults.sampler, Sampler::OneStep);
    assert_eq!((config.defaults.image_size, config.defaults.steps, config.defaults.guidance), (512, 1, 1.0));
    let error = ModelConfig::preset("huge").unwrap_err().to_string();
    assert!(error.contains("expected mobilediffusion or tiny") && error.ends_with("found huge"), "{error}");
}

#[test]
fn every_preset_has_its_name() {
    for name in ModelConfig::PRESETS {
        assert_eq!(ModelConfig::preset(name).unwrap().defaults.name, *name);
    }
}

#[test]
fn the_tiny_preset_is_that_of_its_directory() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/tiny");
    assert_eq!(ModelConfig::load(&dir).unwrap(), ModelConfig::preset("tiny").unwrap());
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (pointer, value) in [
        ("/unet/_class_name", json!("UNet2DConditionModel")),
        ("/unet/sample_size", json!(0)),
        ("/unet/sample_size", json!(62)),
        ("/unet/in_channels", json!(0)),
        ("/unet/out_channels", json!(16)),
        ("/unet/block_out_channels", json!([320, 640])),
        ("/unet/block_out_channels", json!([0, 640, 1024])),
        ("/unet/layers_down", json!([1, 0])),
        ("/unet/layers_mid", json!(0)),
        ("/unet/layers_up", json!([2, 1])),
        ("/unet/transformer_depth_down", json!([0])),
        ("/unet/transformer_depth_down/0", json!(1)),
        ("/unet/transformer_depth_mid", json!([3, 3, 3, 3])),
        ("/unet/transformer_depth_up/1", json!(1)),
        ("/unet/cross_attention_dim", json!(1024)),
        ("/unet/attention_head_dim", json!(0)),
        ("/unet/attention_head_dim", json!(6)),
        ("/unet/attention_head_dim", json!(48)),
        ("/unet/attention_head_dim", json!(1024)),
        ("/unet/attention_phi_scale", json!("1")),
        ("/unet/ff_mult", json!(0)),
        ("/unet/ff_activation", json!("geglu")),
        ("/unet/sep_kind", json!("mobilenet")),
        ("/unet/sep_kernel", json!(7)),
        ("/unet/sep_expansion", json!(1_000_000)),
        ("/unet/sep_width_of", json!("in")),
        ("/unet/time_embed_dim", json!(0)),
        ("/unet/time_proj_dim", json!(321)),
        ("/unet/flip_sin_to_cos", json!(false)),
        ("/unet/freq_shift", json!(1)),
        ("/unet/norm_num_groups", json!(0)),
        ("/unet/norm_num_groups", json!(7)),
        ("/unet/norm_eps", json!(0.0)),
        ("/unet/transformer_norm_eps", json!(-1e-6)),
        ("/unet/layer_norm_eps", json!(1e300)),
        ("/unet/prediction_type", json!("sample")),
        ("/decoder/_class_name", json!("AutoencoderKL")),
        ("/decoder/latent_channels", json!(0)),
        ("/decoder/latent_channels", json!(4)),
        ("/decoder/out_channels", json!(4)),
        ("/decoder/block_out_channels", json!([64, 128, 256])),
        ("/decoder/layers_per_up_block", json!([3, 3, 3, 0])),
        ("/decoder/norm_num_groups", json!(128)),
        ("/decoder/norm_eps", json!(0)),
        ("/decoder/scaling_factor", json!(0.0)),
        ("/decoder/scaling_factor", json!(-0.18)),
        ("/vae/_class_name", json!("AutoencoderTiny")),
        ("/vae/in_channels", json!(4)),
        ("/vae/out_channels", json!(1)),
        ("/vae/latent_channels", json!(4)),
        ("/vae/block_out_channels", json!([128, 256, 512])),
        ("/vae/block_out_channels/3", json!(576)),
        ("/vae/layers_per_block", json!(0)),
        ("/vae/norm_num_groups", json!(48)),
        ("/vae/scaling_factor", json!(0)),
        ("/vae/scaling_factor", json!(0.18215)),
        ("/text_encoder/vocab_size", json!(600)),
        ("/text_encoder/hidden_size", json!(770)),
        ("/text_encoder/num_hidden_layers", json!(0)),
        ("/text_encoder/max_position_embeddings", json!(1)),
        ("/text_encoder/hidden_act", json!("relu")),
        ("/scheduler/num_train_timesteps", json!(1)),
        ("/scheduler/beta_schedule", json!("linear")),
        ("/scheduler/beta_start", json!(0.0)),
        ("/scheduler/beta_end", json!(1.0)),
        ("/model/image_size", json!(500)),
        ("/model/image_size", json!(0)),
        ("/model/steps", json!(0)),
        ("/model/steps", json!(5)),
        ("/model/guidance", json!(3.0)),
    ] {
        let error = changed(pointer, value.clone()).unwrap_err();
        let (part, key) = pointer[1..].split_once('/').unwrap();
        let ModelError::Config { path, key: named, found, .. } = &error else { panic!("{pointer}: {error}") };
        assert!(named.starts_with(key.split('/').next().unwrap()), "{pointer} = {value}: {error}");
        assert!(path.to_string_lossy().starts_with(part) && !found.is_empty(), "{pointer} = {value}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn a_line_says_what_where_expected_and_found() {
    let error = changed("/unet/sep_kind", json!("mobilenet")).unwrap_err().to_string();
    let path = Path::new("unet/config.json").display();
    assert_eq!(error, format!("{path}: sep_kind: expected \"convnext\", found \"mobilenet\""));
    let error = changed("/unet/norm_num_groups", json!(128)).unwrap_err().to_string();
    assert_eq!(error, format!("{path}: norm_num_groups: expected a divisor of the normed width 320, found 128"));
    let error = changed("/unet/layers_down", json!("one")).unwrap_err().to_string();
    assert!(error.starts_with("preset: at unet.layers_down: invalid type: string"), "{error}");
    let error = changed("/unet/attention_phi", json!("gelu")).unwrap_err().to_string();
    assert!(error.starts_with("preset: at unet.attention_phi: unknown variant"), "{error}");
    let error = changed("/unet/layers_mid", json!(-1)).unwrap_err().to_string();
    assert!(error.starts_with("preset: at unet.layers_mid: invalid value"), "{error}");
}

#[test]
fn supported_switches_are_accepted() {
    changed("/unet/share_kv_self_attention", json!(false)).unwrap();
    changed("/unet/attention_phi", json!("softmax")).unwrap();
    changed("/unet/self_attention/up0", json!(true)).unwrap();
    changed("/model/steps", json!(4)).unwrap();
    changed("/text_encoder/hidden_act", json!("gelu")).unwrap();
}

#[test]
fn what_diffusers_writes_beside_is_accepted_and_what_would_change_the_vae_is_refused() {
    let with = |key: &str, value: Value| {
        let mut preset: Value = serde_json::from_str(PRESET).unwrap();
        preset["vae"][key] = value;
        parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?.validate()
    };
    for (key, value) in [
        ("_diffusers_version", json!("0.42.0")),
        ("act_fn", json!("silu")),
        ("down_block_types", json!(vec!["DownEncoderBlock2D"; 4])),
        ("force_upcast", json!(true)),
        ("latents_mean", json!(null)),
        ("sample_size", json!(512)),
        ("shift_factor", json!(null)),
        ("use_quant_conv", json!(true)),
    ] {
        with(key, value.clone()).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }
    for (key, value) in [
        ("act_fn", json!("gelu")),
        ("down_block_types", json!(vec!["DownEncoderBlock2D"; 3])),
        ("up_block_types", json!(vec!["AttnUpDecoderBlock2D"; 4])),
        ("latents_mean", json!([0.0])),
        ("latents_std", json!([1.0])),
        ("mid_block_add_attention", json!(false)),
        ("shift_factor", json!(0.1)),
        ("use_quant_conv", json!(false)),
        ("use_post_quant_conv", json!(false)),
    ] {
        let error = with(key, value.clone()).expect_err(key);
        assert!(matches!(&error, ModelError::Config { key: named, .. } if named == key), "{key} = {value}: {error}");
    }
}

#[test]
fn a_model_needs_one_of_the_two_decoders() {
    let without = |parts: &[&str]| {
        let mut preset: Value = serde_json::from_str(PRESET).unwrap();
        parts.iter().for_each(|part| drop(preset.as_object_mut().unwrap().remove(*part)));
        parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?.validate()
    };
    without(&["vae"]).unwrap();
    without(&["decoder"]).unwrap();
    let error = without(&["decoder", "vae"]).unwrap_err().to_string();
    assert!(error.ends_with("expected a decoder here, or a VAE beside it, found neither"), "{error}");
}

#[test]
fn unknown_keys_are_refused_but_for_the_text_encoder() {
    for (part, refused) in PARTS.map(|part| (part, part != "text_encoder")) {
        let mut preset: Value = serde_json::from_str(PRESET).unwrap();
        preset[part]["bos_token_id"] = json!(0);
        let result = parse::<ModelConfig>(Path::new("preset"), &preset.to_string());
        assert_eq!(result.is_err(), refused, "{part}");
        if let Err(error) = result {
            assert!(error.to_string().contains("bos_token_id"), "{error}");
        }
    }
}

#[test]
fn a_directory_loads_and_errors_name_its_files() {
    let preset: Value = serde_json::from_str(PRESET).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Io { path, .. } if path.ends_with("model.json")), "{error}");

    for (file, part) in FILES.iter().zip(PARTS) {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, preset[part].to_string()).unwrap();
    }
    assert_eq!(ModelConfig::load(dir.path()).unwrap(), ModelConfig::preset("mobilediffusion").unwrap());

    let unet = dir.path().join("unet/config.json");
    std::fs::write(&unet, preset["unet"].to_string().replace("convnext", "plain")).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Config { path, .. } if *path == unet), "{error}");

    let light = dir.path().join("decoder/config.json");
    std::fs::remove_file(&light).unwrap();
    std::fs::write(&unet, preset["unet"].to_string()).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().decoder, None, "the full VAE decodes");
    std::fs::remove_file(dir.path().join("vae/config.json")).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Io { path, .. } if *path == light), "{error}");
    std::fs::write(&light, preset["decoder"].to_string()).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().vae, None, "there need not be a full VAE");

    std::fs::write(&unet, "{").unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Json { path, .. } if *path == unet), "{error}");
}

#[test]
fn the_golden_configurations_are_valid() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden");
    for part in ["unet", "unet_softmax"] {
        let path = golden.join(part).join("config.json");
        read::<UnetConfig>(&path).and_then(|config| config.validate(&path)).unwrap();
    }
    let path = golden.join("decoder/config.json");
    read::<DecoderConfig>(&path).and_then(|config| config.validate(&path)).unwrap();
    let path = golden.join("text_encoder/config.json");
    read::<TextEncoderConfig>(&path).and_then(|config| config.validate(&path)).unwrap();
}

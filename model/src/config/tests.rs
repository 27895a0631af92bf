use super::*;
use mobilediffusion_kernels::Phi;

const PRESET: &str = include_str!("../../presets/mobilediffusion.json");

/// Parts of a preset with the files that hold them in a model's directory.
const PARTS: [(&str, &str); 6] = [
    ("model", file::MODEL),
    ("unet", file::UNET),
    ("decoder", file::DECODER),
    ("vae", file::VAE),
    ("text_encoder", file::TEXT_ENCODER),
    ("scheduler", file::SCHEDULER),
];

/// Parses and validates the preset with one value replaced. `pointer` is a JSON pointer.
fn changed(pointer: &str, value: Value) -> Result<(), ModelError> {
    let mut preset: Value = serde_json::from_str(PRESET).unwrap();
    *preset.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is a key of the preset")) = value;
    parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?.validate()
}

#[test]
fn the_preset_is_the_full_size_model() {
    let config = ModelConfig::preset("mobilediffusion").unwrap();
    let UnetConfig::MobileDiffusion(unet) = &config.unet else { panic!("{:?}", config.unet) };
    assert_eq!(unet.block_out_channels, [320, 640, 1024]);
    assert_eq!(unet.attention_phi, Phi::Relu);
    assert_eq!(config.defaults.sampler, Sampler::OneStep);
    assert_eq!((config.defaults.image_size, config.defaults.steps, config.defaults.guidance), (512, 1, 1.0));
    let error = ModelConfig::preset("huge").unwrap_err().to_string();
    assert!(error.contains("expected mobilediffusion or alt-1 or") && error.ends_with("found huge"), "{error}");
}

#[test]
fn every_preset_has_its_name() {
    for name in ModelConfig::PRESETS {
        assert_eq!(ModelConfig::preset(name).unwrap().defaults.name, *name);
    }
}

#[test]
fn the_mini_preset_is_that_of_its_directory() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/mini");
    assert_eq!(ModelConfig::load(&dir).unwrap(), ModelConfig::preset("mini").unwrap());
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (pointer, value) in [
        ("/unet/_class_name", json!("UNet")),
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
        ("/unet/sep_kernel", json!(7)),
        ("/unet/sep_expansion", json!(1_000_000)),
        ("/unet/time_embed_dim", json!(0)),
        ("/unet/time_proj_dim", json!(321)),
        ("/unet/flip_sin_to_cos", json!(false)),
        ("/unet/freq_shift", json!(1)),
        ("/unet/norm_num_groups", json!(0)),
        ("/unet/norm_num_groups", json!(7)),
        ("/unet/norm_eps", json!(1e-40)),
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
        ("/text_encoder/layer_norm_eps", json!(1e-40)),
        ("/scheduler/num_train_timesteps", json!(1)),
        ("/scheduler/beta_schedule", json!("linear")),
        ("/scheduler/num_train_timesteps", json!(5)),
        ("/scheduler/beta_start", json!(0.0)),
        ("/scheduler/beta_start", json!(1e-17)),
        ("/scheduler/beta_end", json!(1.0)),
        ("/scheduler/beta_end", json!(0.5)),
        ("/model/image_size", json!(500)),
        ("/model/image_size", json!(0)),
        ("/model/steps", json!(0)),
        ("/model/steps", json!(5)),
        ("/model/guidance", json!(3.0)),
        ("/model/ddim/steps", json!(4)),
        ("/model/ddim/steps", json!(1000)),
        ("/model/ddim/guidance", json!(-1.0)),
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
    let error = changed("/unet/sep_kernel", json!(7)).unwrap_err().to_string();
    let path = Path::new("unet/config.json").display();
    assert_eq!(error, format!("{path}: sep_kernel: expected 3, found 7"));
    let error = changed("/unet/norm_num_groups", json!(128)).unwrap_err().to_string();
    assert_eq!(error, format!("{path}: norm_num_groups: expected a divisor of the normed width 320, found 128"));
    let error = changed("/unet/layers_down", json!("one")).unwrap_err().to_string();
    assert!(error.ends_with("unet: layers_down: expected a list, found \"one\""), "{error}");
    let error = changed("/unet/attention_phi", json!("gelu")).unwrap_err().to_string();
    assert!(error.ends_with("unet: attention_phi: expected relu or softmax, found \"gelu\""), "{error}");
    let error = changed("/unet/layers_mid", json!(-1)).unwrap_err().to_string();
    assert!(error.ends_with("unet: layers_mid: expected a whole number of 0 or more, found -1"), "{error}");
}

#[test]
fn supported_switches_are_accepted() {
    changed("/unet/share_kv_self_attention", json!(false)).unwrap();
    changed("/unet/attention_phi", json!("softmax")).unwrap();
    changed("/unet/self_attention/up0", json!(true)).unwrap();
    changed("/unet/self_attention/mid", json!([true, false, true, true, true])).unwrap();
    changed("/unet/ff_activation", json!("geglu")).unwrap();
    changed("/unet/sep_kind", json!("glu")).unwrap();
    changed("/unet/sep_width_of", json!("in")).unwrap();
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
    assert!(
        error.ends_with("expected a light decoder here, or a full VAE in the folder vae, found neither"),
        "{error}"
    );
}

#[test]
fn defaults_of_ddim_may_be_missing_and_are_for_one_step_models() {
    let mut preset: Value = serde_json::from_str(PRESET).unwrap();
    let read = |preset: &Value| {
        let config = parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?;
        config.validate().map(|()| config)
    };
    preset["model"]["ddim"]["eta"] = json!(0.5);
    assert!(read(&preset).unwrap_err().to_string().contains("eta"), "an unknown key");
    preset["model"].as_object_mut().unwrap().remove("ddim");
    assert_eq!(read(&preset).unwrap().defaults.ddim, None);
    let mut preset = SD15.clone();
    preset["model"]["ddim"] = json!({"steps": 20, "guidance": 3.0});
    let error = read(&preset).unwrap_err().to_string();
    assert!(error.ends_with("ddim: expected no value, since the sampler is ddim, found one"), "{error}");
    preset["model"]["steps"] = json!(1000);
    assert!(read(&preset).unwrap_err().to_string().contains("steps: expected 1 to 999"), "as many as in training");
}

/// Parses and validates Stable Diffusion's preset with one key of its UNet set.
fn sd15_with(key: &str, value: Value) -> Result<(), ModelError> {
    let mut preset = SD15.clone();
    preset["unet"][key] = value;
    parse::<ModelConfig>(Path::new("preset"), &preset.to_string())?.validate()
}

#[test]
fn a_stable_diffusion_unet_is_read_in_diffusers_keys() {
    for (key, value) in [
        ("_diffusers_version", json!("0.42.0")),
        ("use_linear_projection", json!(false)),
        ("dropout", json!(0.0)),
        ("num_attention_heads", json!(null)),
        ("layers_per_block", json!(1)),
        ("attention_head_dim", json!(5)),
    ] {
        sd15_with(key, value.clone()).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }
    for (key, value) in [
        ("in_channels", json!(8)),
        ("out_channels", json!(8)),
        ("block_out_channels", json!([320, 640, 1280])),
        ("block_out_channels", json!([320])),
        ("down_block_types", json!(["DownBlock2D"])),
        ("down_block_types", json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"])),
        ("attention_head_dim", json!(0)),
        ("attention_head_dim", json!(7)),
        ("attention_head_dim", json!(64)),
        ("norm_num_groups", json!(48)),
        ("norm_eps", json!(0)),
        ("cross_attention_dim", json!(1024)),
        ("sample_size", json!(60)),
        ("act_fn", json!("gelu")),
        ("center_input_sample", json!(true)),
        ("downsample_padding", json!(0)),
        ("mid_block_scale_factor", json!(2)),
        ("flip_sin_to_cos", json!(false)),
        ("freq_shift", json!(1)),
    ] {
        let error = sd15_with(key, value.clone()).expect_err(key);
        let ModelError::Config { key: named, path, .. } = &error else { panic!("{key} = {value}: {error}") };
        let latent = path.starts_with("vae") && named == "latent_channels";
        assert!(named.contains(key) || latent || named == "down_block_types", "{key} = {value}: {error}");
    }
    for (key, value) in [("use_linear_projection", json!(true)), ("num_class_embeds", json!(10)), ("depth", json!(1))] {
        let error = sd15_with(key, value).unwrap_err().to_string();
        assert!(error.starts_with("preset: unet: ") && error.contains(key), "{error}");
    }
    assert_eq!(ModelConfig::preset("sd15").unwrap().unet.latent_multiple(), 8);
}

#[test]
fn switches_of_the_separable_blocks_are_refused_where_they_make_no_sense() {
    for (pointer, value) in [
        ("/unet/ff_activation", json!("relu")),
        ("/unet/sep_kind", json!("mobilenet")),
        ("/unet/sep_width_of", json!("both")),
        ("/unet/self_attention/mid", json!("all")),
    ] {
        assert!(matches!(changed(pointer, value.clone()), Err(ModelError::Json { .. })), "{pointer} = {value}");
    }
    let error = changed("/unet/self_attention/mid", json!([true])).unwrap_err().to_string();
    assert!(error.ends_with("self_attention.mid: expected a boolean, or 5 of them, found 1"), "{error}");
    let mut preset: Value = serde_json::from_str(PRESET).unwrap();
    for (samplers, fits) in
        [(json!([]), true), (json!(["down1"]), true), (json!(["down0"]), false), (json!(["down1", "down1"]), false)]
    {
        preset["unet"]["sep_samplers"] = samplers.clone();
        let result =
            parse::<ModelConfig>(Path::new("preset"), &preset.to_string()).and_then(|config| config.validate());
        assert_eq!(result.is_ok(), fits, "{samplers}");
    }
}

#[test]
fn configurations_are_written_as_they_are_read() {
    for name in ModelConfig::PRESETS {
        let config = ModelConfig::preset(name).unwrap();
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(parse::<ModelConfig>(Path::new(name), &written).unwrap(), config, "{written}");
    }
}

#[test]
fn unknown_keys_are_refused_but_for_the_text_encoder() {
    for (part, refused) in PARTS.map(|(part, _)| (part, part != "text_encoder")) {
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
    let unread = |file: &Path| {
        let error = ModelConfig::load(dir.path()).unwrap_err();
        assert!(matches!(&error, ModelError::Io { path, .. } if path == file), "{error}");
    };
    unread(&dir.path().join(file::MODEL));
    for (part, file) in PARTS {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, preset[part].to_string()).unwrap();
    }
    assert_eq!(ModelConfig::load(dir.path()).unwrap(), ModelConfig::preset("mobilediffusion").unwrap());

    let unet = dir.path().join("unet/config.json");
    std::fs::write(&unet, preset["unet"].to_string().replace("1/num_keys", "1")).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Config { path, .. } if *path == unet), "{error}");

    let [light, full] = [file::DECODER, file::VAE].map(|file| dir.path().join(file));
    std::fs::remove_dir_all(light.parent().unwrap()).unwrap();
    std::fs::write(&unet, preset["unet"].to_string()).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().decoder, None, "the full VAE decodes");
    std::fs::remove_dir_all(full.parent().unwrap()).unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Config { path, .. } if *path == light), "{error}");
    std::fs::create_dir(light.parent().unwrap()).unwrap();
    std::fs::write(&light, preset["decoder"].to_string()).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().vae, None, "there need not be a full VAE");
    std::fs::create_dir_all(&full).unwrap();
    unread(&full);
    std::fs::remove_dir_all(full.parent().unwrap()).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", full.parent().unwrap()).unwrap();
        unread(&full);
        std::fs::remove_file(full.parent().unwrap()).unwrap();
    }

    let base = dir.path().join("unet_base/config.json");
    std::fs::create_dir(base.parent().unwrap()).unwrap();
    unread(&base);
    std::fs::write(&base, preset["unet"].to_string().replace("\"relu\"", "\"softmax\"")).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    assert_ne!(config.unet_base.as_ref(), Some(&config.unet), "its settings are its own");
    for (key, wrong) in [("in_channels", json!(4)), ("prediction_type", json!("sample")), ("sep_kernel", json!(7))] {
        let mut other = preset["unet"].clone();
        other[key] = wrong.clone();
        if key == "in_channels" {
            other["out_channels"] = wrong;
        }
        std::fs::write(&base, other.to_string()).unwrap();
        let error = ModelConfig::load(dir.path()).unwrap_err();
        let named = matches!(&error, ModelError::Config { path, key: found, .. } if *path == base && found == key);
        assert!(named, "{error}");
    }
    std::fs::write(&base, preset["unet"].to_string()).unwrap();

    std::fs::write(&unet, "{").unwrap();
    let error = ModelConfig::load(dir.path()).unwrap_err();
    assert!(matches!(&error, ModelError::Json { path, .. } if *path == unet), "{error}");
}

//! Compares the networks with the PyTorch twin, block by block, on golden files of small configurations.
//!
//! `reference/golden.py` writes the files. The relative L2 error of every block may be at most 1e-4 on the CPU device
//! and on every GPU adapter of this machine, and at most 1e-2 where a GPU stores floats in f16.

use mobilediffusion_graph::Device;
use mobilediffusion_kernels::Storage;
use mobilediffusion_model::golden::{compare, tolerance};
use mobilediffusion_model::{DeviceChoice, ModelError};
use mobilediffusion_runtime::{AdapterKind, Gpu, Select};
use mobilediffusion_tests::gpu::storages;
use mobilediffusion_tests::program::copy_all;
use mobilediffusion_tests::{adapters, drawing_devices};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Returns the CPU, and every adapter in every storage type. Software drivers compile for minutes, so they share the
/// types: the one that also draws pictures takes f32 and f16, another one packed f16.
fn devices_in_every_storage() -> Vec<(String, Device)> {
    let mut all = vec![("CPU".to_owned(), Device::CPU)];
    let draws = drawing_devices();
    for adapter in adapters() {
        let gpu =
            pollster::block_on(Gpu::open(&Select::Named(adapter.index.to_string()))).expect("a listed adapter opens");
        let (mut storages, gpu) = (storages(&gpu), Arc::new(gpu));
        if adapter.kind == AdapterKind::Software {
            let draws = draws.contains(&DeviceChoice::Named(adapter.index.to_string()));
            storages.retain(|storage| (*storage != Storage::F16_PACKED) == draws || draws && !gpu.caps().shader_f16);
        }
        all.extend(storages.into_iter().map(|s| (format!("{adapter} {s:?}"), Device::Gpu(Arc::clone(&gpu), s))));
    }
    all
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden").join(name)
}

/// Compares the network of folder `name` with a case, on the weights of folder `weights`.
fn check_with(name: &str, case: &str, weights: &str) {
    check_on(&devices_in_every_storage(), name, case, weights);
}

fn check_on(devices: &[(String, Device)], name: &str, case: &str, weights: &str) {
    for (device_name, device) in devices {
        let bound = tolerance(device);
        let all = compare(&folder(name), &format!("{case}.safetensors"), &folder(weights), device.clone())
            .unwrap_or_else(|error| panic!("{device_name}: {name}/{case}: {error}"));
        for distance in &all {
            let (output, error) = (&distance.output, distance.relative_l2);
            let what = format!("{device_name}: {name}/{case}: {output}: relative L2 {error:.2e}, at most {bound:.0e}");
            assert!(error <= bound, "{what}");
        }
        assert!(all.len() >= 4, "{device_name}: {name}/{case}: only {} outputs were compared", all.len());
        let differs = all.iter().any(|distance| distance.relative_l2 > 0.0);
        assert!(differs, "{device_name}: {name}/{case}: not one bit differs, which two programs never manage");
    }
}

fn check(name: &str, case: &str) {
    check_with(name, case, name);
}

#[test]
fn unet_with_relu_attention_equals_the_twin() {
    check("unet", "golden");
}

#[test]
fn unet_with_softmax_attention_equals_the_twin() {
    check_with("unet_softmax", "golden", "unet");
}

#[test]
fn unet_of_an_empty_latent_at_timestep_0_equals_the_twin() {
    check("unet", "zero");
    check("unet_flat", "golden");
}

#[test]
fn alternatives_of_the_unet_equal_the_twin() {
    // They run the kernels of the UNet in another order. Software drivers, which compile for minutes, compare f32 only.
    let mut devices = devices_in_every_storage();
    devices.retain(|(_, device)| match device {
        Device::Gpu(gpu, storage) => gpu.adapter().kind != AdapterKind::Software || *storage == Storage::F32,
        Device::Cpu(_) => true,
    });
    for name in ["alt-1", "alt-2", "alt-4", "alt-7"] {
        check_on(&devices, name, "golden", name);
    }
}

#[test]
fn unet_of_stable_diffusion_equals_the_twin() {
    check("sd15_unet", "golden");
}

#[test]
fn full_vae_equals_the_twin() {
    for name in ["vae", "sd15_vae"] {
        check(name, "encode");
        check(name, "decode");
    }
}

#[test]
fn decoder_equals_the_twin() {
    check("decoder", "golden");
}

#[test]
fn text_encoder_equals_the_twin() {
    check("text_encoder", "golden");
}

#[test]
fn weights_of_another_network_are_refused_before_a_device_sees_them() {
    for (name, weights, complaint) in [
        ("unet", "sd15_unet", "expected shape"),
        ("alt-2", "alt-1", "is missing"),
        ("unet", "decoder", "problems with the weights"),
    ] {
        let error = compare(&folder(name), "golden.safetensors", &folder(weights), Device::CPU).unwrap_err();
        assert!(matches!(error, ModelError::Weights { .. }), "{name} with {weights}: {error}");
        assert!(error.to_string().contains(complaint), "{name} with {weights}: {error}");
    }
    let error = compare(&folder("unet"), "absent.safetensors", &folder("unet"), Device::CPU).unwrap_err();
    assert!(matches!(error, ModelError::Io { .. }), "{error}");
}

/// Copies the golden files of a network to a folder, with a part of one text file replaced.
fn changed(name: &str, to: &Path, (from, into): (&str, &str)) {
    copy_all(&folder(name), to);
    let config = to.join("config.json");
    let text = fs::read_to_string(&config).expect("it reads");
    assert!(text.contains(from), "{from} is not in {name}");
    fs::write(&config, text.replacen(from, into, 1)).expect("it is written");
}

#[test]
fn configurations_of_every_kind_are_validated() {
    for (name, key) in [
        ("unet", "norm_num_groups"),
        ("decoder", "norm_num_groups"),
        ("vae", "norm_num_groups"),
        ("text_encoder", "num_attention_heads"),
    ] {
        let case = if name == "vae" { "decode" } else { "golden" };
        let dir = mobilediffusion_tests::folder();
        changed(name, dir.path(), (&format!("\"{key}\": "), &format!("\"{key}\": 1234567")));
        let error = compare(dir.path(), case, dir.path(), Device::CPU).expect_err(name).to_string();
        assert!(error.contains(&format!("config.json: {key}: expected 1 to")), "{error}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_case_of_any_length_is_not_read_whole() {
    let dir = mobilediffusion_tests::folder();
    let case = fs::File::create(dir.path().join("case.safetensors")).expect("it is made");
    case.set_len(1 << 40).expect("the file has holes");
    let error = compare(dir.path(), "case", dir.path(), Device::CPU).expect_err("it is empty").to_string();
    assert!(error.contains("case.safetensors: ") && error.contains("it begins with zeros"), "{error}");
}

#[test]
fn cases_of_other_types_or_shapes_are_refused_by_name() {
    let dir = mobilediffusion_tests::folder();
    for (name, tensor, dtype, shape, complaint) in [
        ("text_encoder", "input.ids", Dtype::F32, vec![2, 77], "input.ids: expected I32 or U32, found F32"),
        ("decoder", "input.latent", Dtype::I32, vec![1, 4, 8, 8], "input.latent: expected F32, found I32"),
        ("decoder", "output", Dtype::F32, vec![1], "output: expected shape"),
        ("decoder", "output.decoder.conv_in", Dtype::F32, vec![24, 2], "output.decoder.conv_in: expected shape"),
    ] {
        let bytes = fs::read(folder(name).join("golden.safetensors")).expect("it reads");
        let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
        assert!(file.tensor(tensor).is_ok(), "{name} has no {tensor}");
        let data = vec![0; 4 * shape.iter().product::<usize>()];
        let other = TensorView::new(dtype, shape, &data).expect("its size is right");
        let tensors = file.tensors().into_iter().map(|(own, view)| (own == tensor, own, view));
        let tensors = tensors.map(|(changes, own, view)| (own, if changes { other.clone() } else { view }));
        let case = dir.path().join("case.safetensors");
        serialize_to_file(tensors, None, &case).expect("the folder is writable");
        fs::copy(folder(name).join("config.json"), dir.path().join("config.json")).expect("it is copied");
        let error = compare(dir.path(), "case", &folder(name), Device::CPU).expect_err(complaint).to_string();
        assert!(error.contains("case.safetensors: ") && error.contains(complaint), "{complaint}: {error}");
    }
}

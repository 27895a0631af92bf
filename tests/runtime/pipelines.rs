//! Compiling pipelines: once each, from many threads, and from a file.

use super::{BINDINGS, COUNT, Promise, assert_works, fresh, words};
use mobilediffusion_runtime::{Bound, Gpu, Role, RuntimeError, Select};
use mobilediffusion_tests::gpu::checked;
use mobilediffusion_tests::{adapters, folder};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) const TESTS: &[Promise] = &[
    ("a_pipeline_is_made_once", a_pipeline_is_made_once),
    ("a_wrong_shader_is_an_error_with_its_lines", a_wrong_shader_is_an_error_with_its_lines),
    ("shaders_are_watched_where_they_should_be", shaders_are_watched_where_they_should_be),
    ("drivers_trust_shaders_too", drivers_trust_shaders_too),
    ("threads_compile_side_by_side", threads_compile_side_by_side),
    ("pipelines_are_kept_in_a_file", pipelines_are_kept_in_a_file),
    ("a_file_is_written_again_only_if_its_data_changed", a_file_is_written_again_only_if_its_data_changed),
    ("a_file_that_is_not_right_is_as_good_as_none", a_file_that_is_not_right_is_as_good_as_none),
];

fn a_pipeline_is_made_once(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    assert_works(&gpu);
    assert_works(&gpu);
    assert_eq!(gpu.counters().pipelines, 1, "the second run compiles nothing");
}

fn a_wrong_shader_is_an_error_with_its_lines(gpu: &Arc<Gpu>) {
    let wrong = COUNT.replace("= value;", "= no_such_name;");
    let error = gpu.pipeline("count", &wrong, &BINDINGS).expect_err("the name is unknown").to_string();
    assert!(error.contains("`count`") && error.contains("y[id.x] = no_such_name"), "{error}");
    assert_works(gpu);
}

/// Shader that divides by `times` and reads elements beyond the end of arrays.
const BEYOND: &str = "
struct Params { len: u32, times: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1)
fn main() {
    var known = array<u32, 2>(11u, 22u);
    y[0] = known[x[0]] / params.times;
    y[1] = x[1000u * x[0]];
}
";

/// On a checked device an index beyond an array is clamped and a division by zero returns the dividend, as wgpu
/// promises.
fn shaders_are_watched_where_they_should_be(gpu: &Arc<Gpu>) {
    let gpu = checked(gpu);
    let again = pollster::block_on(gpu.recreate()).expect("the adapter opens again");
    for gpu in [gpu, again] {
        let buffer = |label, role| gpu.buffer(label, 8, role).expect("there is room");
        let (params, x, y) = (buffer("params", Role::Uniform), buffer("x", Role::Storage), buffer("y", Role::Storage));
        gpu.upload(&params, &[0; 8]).expect("it fits");
        gpu.upload(&x, bytemuck::cast_slice(&[2_u32, 2])).expect("it fits");
        let pipeline = gpu.pipeline("beyond", BEYOND, &BINDINGS).expect("the shader is valid");
        let bound = [&params, &x, &y].map(Bound::whole);
        let dispatch = gpu.dispatch("beyond", &pipeline, &bound, [1, 1, 1]).expect("it is bound");
        gpu.submit([&dispatch]).expect("it runs");
        let read = gpu.download(&y, &buffer("staging", Role::Staging)).expect("it arrives");
        assert_eq!(words(&read)[0], 22, "the last element, by nothing");
        assert!([0, 2].contains(&words(&read)[1]), "an element of its own binding, or nothing: {:?}", words(&read));
        assert!(gpu.is_robust(), "the driver watches too");
    }
}

/// On Vulkan the driver checks nothing on a device that trusts shaders, nor on one opened again in its place.
fn drivers_trust_shaders_too(gpu: &Arc<Gpu>) {
    let again = pollster::block_on(gpu.recreate()).expect("the adapter opens again");
    for gpu in [&**gpu, &again] {
        assert!(gpu.adapter().backend != "vulkan" || !gpu.is_robust(), "{} takes the special way", gpu.adapter());
        assert_works(gpu);
    }
}

/// Returns the shader with `number` in its text, to be compiled as a pipeline of its own.
fn variant(number: u32) -> String {
    COUNT.replace("times; i++", &format!("times + {number}u - {number}u; i++"))
}

fn threads_compile_side_by_side(gpu: &Arc<Gpu>) {
    let gpu = fresh(gpu);
    let wrong = COUNT.replace("= value;", "= no_such_name;");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (gpu, wrong) = (&gpu, &wrong);
            scope.spawn(move || {
                for number in 0..4 {
                    // Every thread has another order, so that several ask for the same pipeline at a time.
                    let text = variant((number + thread) % 4);
                    gpu.pipeline("right", &text, &BINDINGS).expect("no thread sees another's error");
                    let error = gpu.pipeline("wrong", wrong, &BINDINGS).expect_err("the name is unknown");
                    assert!(matches!(error, RuntimeError::Validation { ref what, .. } if what == "wrong"), "{error}");
                }
            });
        }
    });
    assert_eq!(gpu.counters().pipelines, 4, "each is compiled once, whoever asks");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("a folder's entry reads").path()).collect()
}

fn pipelines_are_kept_in_a_file(gpu: &Arc<Gpu>) {
    let place = folder();
    let folder = place.path().join("not there yet");
    let first = fresh(gpu).with_pipeline_cache(&folder);
    first.save_pipelines().expect("there is nothing to save");
    assert_eq!(files(&folder).len(), 0, "nothing was compiled");
    assert_works(&first);
    first.save_pipelines().expect("it is saved");
    let kept = files(&folder);
    if !gpu.caps().pipeline_cache {
        return assert!(kept.is_empty(), "the driver keeps no pipelines");
    }
    assert_eq!(kept.len(), 1, "one file, and nothing half written beside it");
    // A second device reads the file, and so does a device that is created in its place.
    let second = fresh(gpu).with_pipeline_cache(&folder);
    assert_works(&second);
    second.destroy();
    let third = pollster::block_on(second.recreate()).expect("the adapter opens again");
    fs::remove_file(&kept[0]).expect("it is there");
    assert_works(&third);
    third.save_pipelines().expect("it is saved");
    assert_eq!(files(&folder), kept, "the same file again");
    third.save_pipelines().expect("there is nothing new");
    // The cache folder is a file, so nothing can be saved.
    let nowhere = fresh(gpu).with_pipeline_cache(&kept[0]);
    assert_works(&nowhere);
    for attempt in ["the first", "the second"] {
        let error = nowhere.save_pipelines().expect_err("a file holds no files");
        assert!(matches!(error, RuntimeError::Unwritten { .. }), "{attempt} time: {error}");
    }
}

/// Some drivers give out other data for the same pipelines every time. These have to be written.
fn a_file_is_written_again_only_if_its_data_changed(gpu: &Arc<Gpu>) {
    let place = folder();
    let works = || {
        let gpu = fresh(gpu).with_pipeline_cache(place.path());
        assert_works(&gpu);
        gpu.save_pipelines().expect("it is saved");
    };
    works();
    let Some(file) = files(place.path()).pop() else { return };
    let (data, long_ago) = (fs::read(&file).expect("it reads"), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30));
    let opened = fs::File::options().write(true).open(&file);
    opened.and_then(|file| file.set_modified(long_ago)).expect("it is ours");
    works();
    let modified = fs::metadata(&file).and_then(|file| file.modified()).expect("the system knows");
    let is_same = fs::read(&file).expect("it reads") == data;
    assert_eq!(modified == long_ago, is_same, "{}: modified {modified:?}", gpu.adapter());
}

fn a_file_that_is_not_right_is_as_good_as_none(gpu: &Arc<Gpu>) {
    let place = folder();
    let folder = place.path();
    let works = || {
        let gpu = fresh(gpu).with_pipeline_cache(folder);
        assert_works(&gpu);
        gpu.save_pipelines().expect("it is saved");
    };
    works();
    let Some(file) = files(folder).pop() else {
        return assert!(!gpu.caps().pipeline_cache, "the driver gives out pipelines, but none were saved");
    };
    let right = fs::read(&file).expect("it reads");
    for wrong in [&right[..right.len() / 2], &[&right[..], &[0]].concat(), b"", b"not a file of pipelines at all"] {
        fs::write(&file, wrong).expect("it writes");
        works();
        assert_eq!(fs::read(&file).expect("it reads").len(), right.len(), "a valid file takes its place");
    }
    // Another adapter's file, under this one's name.
    for other in adapters().into_iter().filter(|other| other.name != gpu.adapter().name) {
        let elsewhere = mobilediffusion_tests::folder();
        let other = pollster::block_on(Gpu::open(&Select::Same(other))).expect("a listed adapter opens");
        let other = other.with_pipeline_cache(elsewhere.path());
        assert_works(&other);
        other.save_pipelines().expect("it is saved");
        if let Some(foreign) = files(elsewhere.path()).pop() {
            assert_ne!(foreign.file_name(), file.file_name(), "adapters do not share a name");
            fs::copy(foreign, &file).expect("it is copied");
            works();
        }
    }
}

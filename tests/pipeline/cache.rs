//! The folder that compiled kernels are kept in.

use crate::{draw, on, small, source};
use mobilediffusion_model::{Cache, Device, DeviceChoice, Options, Pipeline};
use mobilediffusion_tests::{drawing_devices, folder};
use std::path::Path;

/// Draws with a cache, and returns whether the device can keep what it compiled.
fn draw_with(cache: Cache, device: DeviceChoice) -> bool {
    let options = Options { cache, ..on(device.clone()) };
    let mut pipeline = Pipeline::load(source(), options).expect("it loads");
    assert_eq!(draw(&mut pipeline, &small("sun")).len(), 1, "{device:?}");
    matches!(pipeline.model().device(), Device::Gpu(gpu, _) if gpu.caps().pipeline_cache)
}

fn files_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn compiled_kernels_are_kept_in_the_applications_folder() {
    for device in drawing_devices() {
        let place = folder();
        let folder = place.path().join("not there yet");
        let keeps = draw_with(Cache::Folder(folder.clone()), device.clone());
        assert_eq!(files_in(&folder), usize::from(keeps), "{device:?}");
    }
}

#[test]
fn pictures_are_drawn_where_nothing_can_be_kept() {
    for device in drawing_devices() {
        let place = folder();
        let file = place.path().join("a file");
        std::fs::write(&file, "and no folder").expect("it is written");
        draw_with(Cache::Folder(file.clone()), device);
        assert_eq!(std::fs::read(&file).expect("it reads"), b"and no folder", "it is not the cache's");
    }
}

/// Environment variable that names the device of a child process and its cache: `user` or `nowhere`.
#[cfg(target_os = "linux")]
const CHILD: &str = "WHAT_IS_KEPT_OF";

/// Only a new process reads where the user's cache folder is.
#[cfg(target_os = "linux")]
#[test]
fn the_users_folder_is_used_only_where_it_is_asked_for() {
    if let Ok(child) = std::env::var(CHILD) {
        let (device, cache) = child.split_once(' ').expect("both are named");
        let cache = if cache == "user" { Cache::User } else { Cache::Nowhere };
        let kept = draw_with(cache, DeviceChoice::Named(device.to_owned()));
        assert!(kept, "the device keeps nothing");
        return;
    }
    for device in drawing_devices() {
        let DeviceChoice::Named(device) = device else { continue };
        for (cache, kept) in [("nowhere", 0), ("user", 1)] {
            let home = folder();
            let mut child = std::process::Command::new(std::env::current_exe().expect("a test has a path"));
            child.args(["--exact", "cache::the_users_folder_is_used_only_where_it_is_asked_for"]);
            let done = child.env(CHILD, format!("{device} {cache}")).env("XDG_CACHE_HOME", home.path()).output();
            let said = String::from_utf8_lossy(&done.expect("it starts").stdout).into_owned();
            if !said.contains("the device keeps nothing") {
                assert!(said.contains("1 passed"), "{device}, {cache}: {said}");
                assert_eq!(files_in(home.path()), kept, "{device}, {cache}");
            }
        }
    }
}

//! The folder that compiled kernels are kept in.

use crate::{draw, on, small, source};
use mobilediffusion_model::{Cache, Device, Options, Pipeline};
use mobilediffusion_tests::{drawing_devices, folder};

#[test]
fn compiled_kernels_are_kept_in_the_applications_folder() {
    for device in drawing_devices() {
        let place = folder();
        let folder = place.path().join("not there yet");
        let options = Options { cache: Cache::Folder(folder.clone()), ..on(device.clone()) };
        let mut pipeline = Pipeline::load(source(), options).expect("it loads");
        draw(&mut pipeline, &small("sun"));
        let keeps = matches!(pipeline.model().device(), Device::Gpu(gpu, _) if gpu.caps().pipeline_cache);
        let kept = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        assert_eq!(kept, usize::from(keeps), "{device:?}");
    }
}

//! Weights that no network can use.

use crate::{draw, on, small};
use mobilediffusion_model::{Flow, ModelError, Phase, Pipeline, WeightProblem};
use mobilediffusion_tests::checkpoints::spoiled;
use mobilediffusion_tests::{drawing_devices, folder};

#[test]
fn weights_that_are_not_numbers_are_named_before_any_is_on_the_device() {
    let folder = folder();
    // The decoder is the last network to be loaded.
    let name = "decoder.conv_out.weight";
    for device in drawing_devices() {
        let source = spoiled(folder.path(), ("decoder", name), f32::NAN);
        let mut pipeline = Pipeline::load(source, on(device.clone())).expect("names, shapes and types are right");
        let refused = pipeline.prepare(&small("sun"), &mut |progress| {
            assert_eq!(progress.phase, Phase::Check, "{device:?}");
            Flow::Continue
        });
        let Err(ModelError::Weights { path, problems }) = refused else { panic!("{device:?}: {refused:?}") };
        assert_eq!(
            (path, problems),
            (folder.path().join("decoder"), vec![WeightProblem::NotFinite { name: name.into() }])
        );
        assert_eq!(pipeline.counters().weight_bytes, 0, "{device:?}");
        // Weights are checked again until they are right.
        let again = pipeline.generate(&small("sun"), &mut |_| Flow::Continue);
        assert!(matches!(again, Err(ModelError::Weights { .. })), "{device:?}: {again:?}");
        let source = spoiled(folder.path(), ("decoder", "decoder.conv_out.bias"), 0.0);
        let mut whole = Pipeline::load(source, on(device)).expect("it loads");
        assert_eq!(draw(&mut whole, &small("sun")).len(), 1);
    }
}

//! Copies of the bundled checkpoint with other values or types.

use crate::program::copy_all;
use mobilediffusion_model::Source;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the folder of the bundled checkpoint.
pub fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/checkpoints/mini")
}

/// Copies a file of weights. `change` returns the type and the bytes of each tensor that is to have others.
///
/// # Panics
/// If a file cannot be read or written, or bytes do not fit the shape of their tensor.
pub fn rewrite(from: &Path, to: &Path, change: impl Fn(&str, &TensorView<'_>) -> Option<(Dtype, Vec<u8>)>) {
    let bytes = fs::read(from).expect("the weights read");
    let file = SafeTensors::deserialize(&bytes).expect("the weights are a safetensors file");
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let (dtype, bytes) = change(&name, &view).unwrap_or_else(|| (view.dtype(), view.data().to_vec()));
        (name, dtype, view.shape().to_vec(), bytes)
    };
    let tensors: Vec<_> = file.tensors().into_iter().map(tensor).collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("the bytes fit the shape"))
    });
    serialize_to_file(views, None, to).expect("the folder is writable");
}

/// Copies the bundled checkpoint to `folder`, with all elements of one tensor of a network set to `value`.
///
/// # Panics
/// If there is no such tensor, or a file cannot be read or written.
pub fn spoiled(folder: &Path, (network, name): (&str, &str), value: f32) -> Source {
    copy_all(&bundled(), folder);
    let file = Path::new(network).join("model.safetensors");
    rewrite(&bundled().join(&file), &folder.join(&file), |tensor, view| {
        let len = view.shape().iter().product();
        (tensor == name).then(|| (Dtype::F32, [value.to_le_bytes()].repeat(len).concat()))
    });
    Source::directory(folder).expect("the configuration reads")
}

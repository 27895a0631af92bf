//! What the benches of kernels and of the model share.
//!
//! `cargo bench -p mobilediffusion-benches` measures; `cargo test --benches` runs everything once, and leaves out what
//! takes long. Figures are kept in `records/`, what they are measured against in `peers/`.

use mobilediffusion_graph::{Device, Graph, GraphError, Recording, Session, WeightLoader, Weights};
use mobilediffusion_model::weights::synthetic;
use std::error::Error;

/// Whether everything is to run only once: as a test, where cargo does not pass `--bench`.
pub fn only_once() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}

/// Weights made up from a seed.
#[derive(Clone, Copy, Debug)]
pub struct MadeUp(pub u64);

impl WeightLoader for MadeUp {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(synthetic(name, shape, self.0))
    }
}

/// A graph made ready on the CPU, with made-up weights.
///
/// # Errors
/// If a weight is refused.
pub fn session(graph: Graph) -> Result<Session, GraphError> {
    let mut weights = Weights::new(Device::CPU, Box::new(MadeUp(1)));
    Session::new(Recording::new(graph), &mut weights, &mut |_, _| true)
}

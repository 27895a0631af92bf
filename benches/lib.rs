//! Helpers shared by the benches of kernels and of the model.
//!
//! `cargo bench -p mobilediffusion-benches` measures. `cargo test --benches` runs everything once and leaves out large
//! shapes. Results are kept in `records/`; `peers/` holds programs to compare with.

use mobilediffusion_graph::{Device, Graph, GraphError, Recording, Session, WeightLoader, Weights};
use mobilediffusion_model::weights::synthetic;
use std::error::Error;

/// Returns whether everything runs only once, as a test: then cargo does not pass `--bench`.
pub fn only_once() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}

/// Loader of synthetic weights.
#[derive(Clone, Copy, Debug)]
pub struct MadeUp(pub u64);

impl WeightLoader for MadeUp {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(synthetic(name, shape, self.0))
    }
}

/// Prepares a graph on the CPU with synthetic weights.
///
/// # Errors
/// If a weight is refused.
pub fn session(graph: Graph) -> Result<Session, GraphError> {
    let mut weights = Weights::new(Device::CPU, Box::new(MadeUp(1)));
    Session::new(Recording::new(graph), &mut weights, &mut |_, _| true)
}

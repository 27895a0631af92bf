//! Helpers shared by the benches of kernels and of the model.
//!
//! `cargo bench -p mobilediffusion-benches` measures. `cargo test --benches` runs everything once and leaves out large
//! shapes. `run` writes the records that are kept, in `records/`;
//! `peers/` holds programs to compare with.

use mobilediffusion_graph::{Device, Graph, GraphError, Recording, Session, Weights};
use mobilediffusion_model::weights::Synthetic;

/// Returns whether everything runs only once, as a test: then cargo does not pass `--bench`.
pub fn only_once() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}

/// Prepares a graph on the CPU with synthetic weights.
///
/// # Errors
/// If a weight is refused.
pub fn session(graph: Graph) -> Result<Session, GraphError> {
    let weights = Weights::new(Device::CPU, Box::new(Synthetic { seed: 1 }));
    Session::new(Recording::new(graph), &weights, &mut |_, _| true)
}

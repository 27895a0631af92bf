//! Helpers of the benches: `cargo bench -p mobilediffusion-benches`. Criterion keeps its results in `target/criterion`
//! and compares with those of the run before. Records are written by `run`; `peers/` holds programs to compare with.

use mobilediffusion_graph::{Device, Graph, GraphError, Recording, Session, Weights};
use mobilediffusion_model::weights::Synthetic;

/// Prepares a graph on the CPU with synthetic weights.
///
/// # Errors
/// If a weight is refused.
pub fn session(graph: Graph) -> Result<Session, GraphError> {
    let weights = Weights::new(Device::CPU, Box::new(Synthetic { seed: 1 }));
    Session::new(Recording::new(graph), &weights)
}

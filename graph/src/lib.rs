//! Typed graph builder, static memory planner and executor for the networks of MobileDiffusion.
//!
//! A network passes through four stages:
//!
//! 1. **Graph.** [`Graph`] is a builder. Typed methods such as [`Graph::linear`] and [`Graph::conv2d`] append kernels
//!    that read and write named tensors; [`Graph::step`] appends a kernel of an application's own. Shapes and element
//!    types are checked as each layer is added.
//! 2. **Recording.** [`Recording`] turns a graph into plain data: steps in execution order, the lifetime of each
//!    tensor, and the inputs that each step depends on. Steps are fused into their neighbours here; see [`Fusion`].
//! 3. **Plan.** The [`plan`] module assigns memory to tensors by pure functions: offsets in one arena for the CPU, in a
//!    few arenas for a GPU.
//! 4. **Session.** [`Session`] allocates the planned memory on a [`Device`], loads [`Weights`] through a
//!    [`WeightLoader`], binds every step, and replays the recording as often as it is asked to.
//!
//! # Example
//!
//! A linear layer on the CPU, with all weights set to one:
//!
//! ```
//! use mobilediffusion_graph::{Device, Graph, GraphError, Linear, Recording, Session, WeightLoader, Weights};
//! use mobilediffusion_kernels::DType;
//! use std::error::Error;
//! use std::ops::Range;
//!
//! struct Ones;
//!
//! impl WeightLoader for Ones {
//!     fn load_part(
//!         &self,
//!         _name: &str,
//!         _shape: &[usize],
//!         part: Range<usize>,
//!     ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
//!         Ok(vec![1.0; part.len()])
//!     }
//! }
//!
//! fn main() -> Result<(), GraphError> {
//!     let mut graph = Graph::new();
//!     let x = graph.input("x", [2, 4], DType::Elem);
//!     let y = graph.linear(&x, "proj", Linear { cols: 3, ..Linear::default() })?;
//!     graph.output("y", &y);
//!
//!     let weights = Weights::new(Device::CPU, Box::new(Ones));
//!     let mut session = Session::new(Recording::new(graph), &weights)?;
//!     session.write("x", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])?;
//!     session.run()?;
//!     assert_eq!(session.read("y")?, [10.0, 10.0, 10.0, 26.0, 26.0, 26.0]);
//!     Ok(())
//! }
//! ```
//!
//! # Guarantees
//!
//! * A layer whose operands do not fit, or whose kernel does not support the problem, is an error of the builder. The
//!   error names the layer by its path in the model.
//! * Planning is deterministic: the same graph always gets the same fusions and the same offsets.
//! * Two tensors that are alive at the same step never share a byte, except where a kernel writes over an operand in
//!   place, and where one is a [`Part`] of the other.
//! * A run allocates no buffer and compiles no pipeline: [`Session::new`] does both.
//! * A run executes only the steps that depend on an input written since the last complete run.
//! * CPU and GPU replay the same recording; [`compare`] finds the first step whose results differ between two devices.

mod compare;
mod cpu;
mod error;
mod fuse;
mod gpu;
mod gpu_plan;
mod graph;
mod layers;
mod masks;
mod need;
mod node;
mod ops;
pub mod plan;
mod progress;
mod record;
mod reference;
mod rounding;
mod run;
mod step;
mod traffic;
mod weights;

pub use compare::{Against, Divergence, compare};
pub use error::GraphError;
pub use fuse::{Fused, Fusion};
pub use gpu::compile_ahead;
pub use gpu_plan::GpuPlan;
pub use graph::{Graph, Origin, Part, Tensor, TensorInfo, WeightRows};
pub use layers::{Attend, Conv, Embedding, Glu, GroupNorm, Linear, SamplerStep};
pub use mobilediffusion_kernels::Device;
pub use need::Need;
pub use node::Node;
pub use progress::{Flow, OnProgress};
pub use record::{PlanSummary, Recording};
pub use rounding::{Rounding, rounding};
pub use run::Session;
pub use traffic::Traffic;
pub use weights::{WeightLoader, Weights};

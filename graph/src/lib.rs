//! A model described once, checked once, planned once and then replayed.
//!
//! [`Graph`] is a list of kernels over named tensors, built by typed methods that check shapes. [`Recording`] is the
//! same as plain data with lifetimes; [`plan`] places tensors in buffers by pure functions; [`Session`] holds memory,
//! weights and bound steps on a device and replays them, on a GPU or on the CPU.

mod compare;
mod cpu;
mod error;
mod fuse;
mod gpu;
mod gpu_plan;
mod graph;
mod layers;
mod ops;
mod plain;
pub mod plan;
mod record;
mod rounding;
mod run;
mod traffic;
mod weights;

pub use compare::{Against, Divergence, compare};
pub use error::GraphError;
pub use fuse::{Fused, Fusion};
pub use gpu_plan::GpuPlan;
pub use graph::{Graph, Node, Origin, Tensor, TensorInfo, WeightRows};
pub use layers::{Attend, Conv, Glu, Linear};
pub use record::{PlanSummary, Recording};
pub use rounding::{Rounding, rounding};
pub use run::Session;
pub use traffic::Traffic;
pub use weights::{Device, WeightLoader, Weights};

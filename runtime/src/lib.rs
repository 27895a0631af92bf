//! The layer above wgpu: adapters, buffers, WGSL modules, pipelines and passes.
//!
//! It knows bytes and shader text, and neither tensors nor models. Whatever fails on a device comes back as a
//! [`RuntimeError`]: nothing here panics on a lost device, prints, or reads the environment.

mod buffer;
mod device;
mod error;
mod pass;
mod pipeline;
pub mod shader;
mod timer;

pub use buffer::{Buffer, Role};
pub use device::{AdapterKind, AdapterSummary, Caps, Counters, Gpu, Select, adapters};
pub use error::RuntimeError;
pub use pass::{Bound, Dispatch};
pub use pipeline::{Binding, Pipeline};
pub use timer::Timer;

//! The layer above wgpu: adapters, buffers, WGSL modules, pipelines and passes.
//!
//! It knows bytes and shader text, and neither tensors nor models. Whatever fails on a device comes back as a
//! [`RuntimeError`]: nothing here panics on a lost device or prints, and the environment is asked for one thing only,
//! the user's cache folder.

mod adapter;
mod buffer;
mod device;
mod error;
mod matrix_check;
mod pass;
mod pipeline;
mod pipeline_file;
pub mod shader;
mod tally;
mod timer;
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod vulkan;
/// Where wgpu has no Vulkan.
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod vulkan {
    pub(crate) fn open(_: &wgpu::Adapter, _: &wgpu::DeviceDescriptor<'_>) -> Option<(wgpu::Device, wgpu::Queue)> {
        None
    }
}

pub use adapter::{AdapterKind, AdapterSummary, Caps, MatrixShape, MatrixType, Select, adapters};
pub use buffer::{Buffer, Download, POISON, Role};
pub use device::{Counters, Gpu};
pub use error::RuntimeError;
pub use pass::{Bound, Dispatch, Submission};
pub use pipeline::{Binding, Pipeline};
pub use pipeline_file::write_whole;
pub use timer::Timer;

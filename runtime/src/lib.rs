//! A small compute layer over [wgpu](https://docs.rs/wgpu): it selects an adapter, opens a device, manages buffers,
//! compiles WGSL and replays lists of dispatches.
//!
//! This crate deals in bytes and shader text. Tensors, kernels and models belong to the crates built on top of it.
//!
//! # Main types
//!
//! * [`adapters`] lists the GPUs and software drivers of the machine as [`AdapterSummary`] values; [`Select`] chooses
//!   one.
//! * [`Gpu`] is an open device. All other operations are methods of it.
//! * [`Buffer`] is device memory with a label and a [`Role`]; [`Bound`] is a byte range of a buffer.
//! * [`Pipeline`] is a compiled WGSL module, and [`Dispatch`] is a pipeline with its operands bound and its grid fixed.
//!   Dispatches are made once and can be submitted any number of times.
//! * [`Timer`] measures dispatches with timestamp queries, or with a wall clock where the device has none.
//! * [`shader`] composes WGSL modules from constants, shared files and a body.
//!
//! # Example
//!
//! ```no_run
//! use mobilediffusion_runtime::{Binding, Bound, Gpu, Role, RuntimeError, Select};
//!
//! const DOUBLE: &str = "
//! @group(0) @binding(0) var<storage, read> x: array<u32>;
//! @group(0) @binding(1) var<storage, read_write> y: array<u32>;
//! @compute @workgroup_size(4)
//! fn main(@builtin(global_invocation_id) id: vec3<u32>) {
//!     y[id.x] = 2u * x[id.x];
//! }
//! ";
//!
//! fn main() -> Result<(), RuntimeError> {
//!     let gpu = pollster::block_on(Gpu::open(&Select::Best))?;
//!     let x = gpu.buffer("x", 16, Role::Storage)?;
//!     let y = gpu.buffer("y", 16, Role::Storage)?;
//!     let staging = gpu.buffer("staging", 16, Role::Staging)?;
//!     let pipeline = gpu.pipeline("double", DOUBLE, &[Binding::Read, Binding::Write])?;
//!     let dispatch = gpu.dispatch("double", &pipeline, &[Bound::whole(&x), Bound::whole(&y)], [1, 1, 1])?;
//!
//!     gpu.upload(&x, &[1_u32, 2, 3, 4].map(u32::to_le_bytes).concat())?;
//!     gpu.submit([&dispatch])?;
//!     let bytes = gpu.download(&y, &staging)?;
//!     assert_eq!(bytes, [2_u32, 4, 6, 8].map(u32::to_le_bytes).concat());
//!     Ok(())
//! }
//! ```
//!
//! # Guarantees
//!
//! * **Failures on a device are values.** Validation errors, exhausted memory and a lost device are returned as a
//!   [`RuntimeError`] that names the object concerned. Where wgpu reports a loss by a panic, the panic is caught and
//!   reported as [`RuntimeError::Lost`]; this needs `panic = "unwind"`. [`Gpu::recreate`] replaces a lost device.
//! * **Skipped work is detected.** If a driver drops a submitted pass without an error, the next read-back returns
//!   [`RuntimeError::Lost`]. Passes of a [`Timer`] are not included.
//! * **Replays are cheap.** Submitting a dispatch creates no buffer and compiles nothing; [`Gpu::counters`] shows it.
//! * **No hidden inputs or outputs.** Nothing is printed. The environment is consulted for one thing only, the user's
//!   cache folder, and only by [`Gpu::with_user_cache`].
//!
//! # Shaders are trusted
//!
//! A device from [`Gpu::open`] runs shaders without bounds checks. Shaders that break the contract stated at
//! [`Gpu::pipeline`] can cause undefined behaviour, so never pass WGSL from an untrusted source to such a device.
//! [`Gpu::open_checked`] opens a device with checks.

mod adapter;
mod buffer;
mod caps;
mod device;
mod error;
mod files;
mod incidents;
mod matrix_check;
mod pass;
mod pipeline;
mod pipeline_file;
pub mod shader;
mod tally;
mod timer;
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod vulkan;
/// Stand-in for platforms on which wgpu has no Vulkan backend.
#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod vulkan {
    pub(crate) fn open(_: &wgpu::Adapter, _: &wgpu::DeviceDescriptor<'_>) -> Option<(wgpu::Device, wgpu::Queue)> {
        None
    }

    pub(crate) fn free_memory(_: &wgpu::Device) -> Option<u64> {
        None
    }

    pub(crate) fn units(_: &wgpu::Adapter) -> Option<u32> {
        None
    }
}

pub use adapter::{AdapterKind, AdapterSummary, Select, adapters};
pub use buffer::{Buffer, Download, POISON, Role};
pub use caps::{Caps, MatrixShape, MatrixType};
pub use device::{Counters, Gpu};
pub use error::RuntimeError;
pub use files::{check_folder, open_file, read_file, write_whole};
pub use matrix_check::RefusedMatrix;
pub use pass::{Bound, Dispatch, Submission};
pub use pipeline::{Binding, Pipeline};
pub use timer::Timer;

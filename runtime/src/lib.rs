//! The layer above wgpu.

pub mod shader;

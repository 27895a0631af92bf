//! Every kernel of the model. One kernel is one pair of files, `src/<name>.rs` and `shaders/<name>.wgsl`, and one
//! line in [`FAMILIES`]; whatever walks kernels walks that list.

pub mod check;
pub mod cpu;
pub mod kernel;
pub mod reference;
pub mod storage;
pub mod wgsl;

mod embedding;
mod conv2d;
mod linear;
mod timestep_embedding;

pub use conv2d::Conv2d;
pub use kernel::{
    Access, Activation, Case, Cost, DType, Family, Fill, Kernel, Layout, Operand, Param, Program, Tolerance,
};
pub use linear::Linear;

pub use storage::Storage;

/// The list of kernels. To add one: write its pair of files, its `mod` and `pub use`, and its line here.
pub const FAMILIES: &[Family] = &[conv2d::FAMILY, linear::FAMILY];

/// The family of this name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

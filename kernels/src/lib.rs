//! The compute kernels of the model, for GPUs (WGSL) and for the CPU.
//!
//! # What a kernel is
//!
//! A *kernel* solves one kind of problem: a matrix product, a convolution, attention, a norm, a sampler step. It is one
//! pair of files, `src/<name>.rs` and `shaders/<name>.wgsl`, and one line in [`FAMILIES`], the list that tests,
//! benches, case files and the table of the README walk. A value such as [`Linear`] or [`Conv2d`] holds the sizes and
//! switches of one problem and no tensors.
//!
//! # The contract
//!
//! Every kernel implements [`Kernel`]:
//!
//! * [`operands`](Kernel::operands): the tensors in binding order, with shape, element type and layout,
//! * [`program`](Kernel::program) and [`stages`](Kernel::stages): WGSL, constants, parameters and the grid of each
//!   dispatch,
//! * [`cpu`](Kernel::cpu): the fast form for the CPU device, in f32,
//! * [`reference`](Kernel::reference): plain loops in f64, written from the definition, which both forms are compared
//!   with,
//! * [`cost`](Kernel::cost) and [`tolerance`](Kernel::tolerance): the work, and the error that is allowed,
//! * offers to neighbouring steps that the graph's fusion pass uses, see [`fold`].
//!
//! Feature maps are `[n, h, w, c]`, tokens `[n, l, c]`, matrices `[rows, cols]`. On a device the last axis is padded
//! with zeros to a multiple of four, so that every access is one vec4; every kernel keeps the padding zero.
//!
//! # Variants
//!
//! Matrix products, convolutions and attention have several programs for one problem, their [`Variant`]s: tiles of
//! different sizes, split-k products in two stages, tiles for matrix units, and for 3x3 convolutions blocks of the map by
//! Winograd's algorithm. [`variant::choose`] takes one: a pure function of the kernel's sizes and of a
//! [`variant::Machine`], which also holds what `bench --tune` measured ([`tuning`]). One variant of every kernel runs on
//! every WebGPU device.
//!
//! # Storage types
//!
//! Kernels compute in f32; only matrix units multiply in f16, with sums in f32. A [`Storage`] says how tensors lie in
//! device memory: floats as f32, as f16, or as f16 packed in pairs into u32 for devices without the f16 feature;
//! matrices of weights as those floats, as f16 beside f32, or in 8 bits with one scale for each output channel, or for
//! each phase of it where a convolution upsamples ([`WeightType`]).
//!
//! # Checking and timing
//!
//! [`runner::check_case`] runs a [`Case`] on a [`Device`] and compares the outputs with the reference. Outputs
//! are poisoned and fenced, so that elements that were not written and writes out of bounds are found. Case files
//! ([`casefile`]) hold operands and expected outputs that another program computed. [`sample`] prepares operands for
//! timing; the command line times kernels with `bench`.
//!
//! # Example
//!
//! ```
//! use mobilediffusion_kernels::{Kernel, Linear};
//!
//! // y = x wᵀ + bias, with one row, two input features and two output features.
//! let linear = Linear { rows: 1, k: 2, cols: 2, bias: true, ..Linear::default() };
//! assert_eq!(linear.refusal(), None);
//!
//! // One slice for each operand that is read, in order. Optional operands that are left out are empty.
//! let (x, w, bias) = ([1.0, 2.0], [1.0, 0.0, 0.0, 1.0], [10.0, 20.0]);
//! let none: &[f64] = &[];
//! let outputs = linear.reference(&[&x, &w, &bias, none, none, none, none, none, none]);
//! assert_eq!(outputs[0], [11.0, 22.0]);
//! ```

pub mod casefile;
pub mod check;
pub mod cpu;
pub mod draw;
pub mod fold;
pub mod kernel;
pub mod names;
pub mod panels;
pub mod random;
pub mod runner;
pub mod sample;
pub mod storage;
pub mod tuning;
pub mod variant;
pub mod wgsl;

mod activation;
mod add;
mod attention;
mod cast;
mod channel_moments;
mod concat;
mod conv2d;
mod ddim_step;
mod depthwise_conv2d;
mod device;
mod embedding;
mod family;
pub mod fenced;
mod group_norm;
mod group_norm_scale;
mod group_norm_stats;
mod latent_to_rgba8;
mod layer_norm;
mod layout;
mod linear;
mod operand;
mod prediction;
mod prologue;
mod reference;
mod row_moments;
mod rows;
mod slice;
mod swish_glu;
mod tile;
mod timestep_embedding;
mod upsample_nearest;

pub use activation::Activate;
pub use add::Add;
pub use attention::{Attention, Phi};
pub use cast::Cast;
pub use channel_moments::ChannelMoments;
pub use concat::Concat;
pub use conv2d::{Conv2d, WinogradForm};
pub use ddim_step::DdimStep;
pub use depthwise_conv2d::DepthwiseConv2d;
pub use device::{Device, GpuDevice};
pub use embedding::Embedding;
pub use group_norm::GroupNorm;
pub use group_norm_scale::GroupNormScale;
pub use group_norm_stats::GroupNormStats;
pub use kernel::{
    Access, Activation, Case, Cost, DType, Family, Fill, Kernel, Layout, Operand, Param, ParamsJson, Program, Stage,
    Tolerance,
};
pub use latent_to_rgba8::Rgba8;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use prediction::Prediction;
pub use prologue::{Norm, Prologue};
pub use row_moments::RowMoments;
pub use slice::Slice;
pub use storage::{FloatType, Storage, WeightType};
pub use swish_glu::SwishGlu;
pub use tile::Moments;
pub use timestep_embedding::TimestepEmbedding;
pub use upsample_nearest::UpsampleNearest;
pub use variant::Variant;

/// List of all kernels, by name. ARCHITECTURE.md says under "Add a kernel" what a line here needs.
pub const FAMILIES: &[Family] = &[
    activation::FAMILY,
    add::FAMILY,
    attention::FAMILY,
    cast::FAMILY,
    channel_moments::FAMILY,
    concat::FAMILY,
    conv2d::FAMILY,
    ddim_step::FAMILY,
    depthwise_conv2d::FAMILY,
    embedding::FAMILY,
    group_norm::FAMILY,
    group_norm_scale::FAMILY,
    group_norm_stats::FAMILY,
    latent_to_rgba8::FAMILY,
    layer_norm::FAMILY,
    linear::FAMILY,
    row_moments::FAMILY,
    slice::FAMILY,
    swish_glu::FAMILY,
    timestep_embedding::FAMILY,
    upsample_nearest::FAMILY,
];

/// Returns the family called `name`, or `None` if there is no such kernel.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

//! Every kernel of the model. One kernel is one pair of files, `src/<name>.rs` and `shaders/<name>.wgsl`, and one
//! line in [`FAMILIES`]; whatever walks kernels walks that list.

pub mod casefile;
pub mod check;
pub mod cpu;
pub mod draw;
pub mod fold;
pub mod kernel;
pub mod names;
pub mod panels;
pub mod reference;
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
mod embedding;
mod family;
mod group_norm;
mod group_norm_scale;
mod group_norm_stats;
mod latent_to_rgba8;
mod layer_norm;
mod layer_norm_stats;
mod layout;
mod linear;
mod one_step_x0;
mod operand;
mod prediction;
mod prologue;
mod shared_kv_projection;
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
pub use conv2d::Conv2d;
pub use ddim_step::DdimStep;
pub use depthwise_conv2d::DepthwiseConv2d;
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
pub use layer_norm_stats::LayerNormStats;
pub use linear::Linear;
pub use one_step_x0::OneStepX0;
pub use prediction::Prediction;
pub use prologue::{Norm, Prologue};
pub use shared_kv_projection::SharedKvProjection;
pub use slice::Slice;
pub use storage::{FloatType, Storage, WeightType};
pub use swish_glu::SwishGlu;
pub use timestep_embedding::TimestepEmbedding;
pub use upsample_nearest::UpsampleNearest;
pub use variant::Variant;

/// The list of kernels. To add one: write its pair of files, its `mod` and `pub use`, and its line here.
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
    layer_norm_stats::FAMILY,
    linear::FAMILY,
    one_step_x0::FAMILY,
    shared_kv_projection::FAMILY,
    slice::FAMILY,
    swish_glu::FAMILY,
    timestep_embedding::FAMILY,
    upsample_nearest::FAMILY,
];

/// The family of this name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

//! Names that more than one module has to agree on: operands, and constants of the WGSL modules.
//!
//! An operand of a kernel is known by its name, in the WGSL module, in case files and when steps are fused. Names that
//! only one kernel uses are written where the kernel declares them. Names that are compared elsewhere are defined here.

/// Input that a [`Prologue`](crate::Prologue) reads.
pub const X: &str = "x";
/// Second input of a prologue, joined to `x` along the channels.
pub const X2: &str = "x2";
/// Statistics of a norm: the moments of every row (LayerNorm, see [`RowMoments`](crate::RowMoments)), or mean and
/// reciprocal standard deviation of every group of channels (GroupNorm).
pub const STATS: &str = "stats";
/// Weight of the LayerNorm of a prologue.
pub const NORM_WEIGHT: &str = "norm_weight";
/// Bias of the LayerNorm of a prologue.
pub const NORM_BIAS: &str = "norm_bias";
/// Scale and offset of every channel: the GroupNorm of a prologue.
pub const NORM: &str = "norm";
/// Bias of an epilogue, one value for every output channel.
pub const BIAS: &str = "bias";
/// Shift of an epilogue, one value for every image and output channel: the time embedding.
pub const SHIFT: &str = "shift";
/// Tensor of the output's shape that an epilogue adds last.
pub const RESIDUAL: &str = "residual";
/// Output of a product or a convolution.
pub const Y: &str = "y";
/// Moments of an output's channels, see [`ChannelMoments`](crate::ChannelMoments).
pub const MOMENTS: &str = "moments";
/// Moments of an output's rows, see [`RowMoments`](crate::RowMoments).
pub const ROW_MOMENTS: &str = "row_moments";
/// Partial sums that the stages of a split-k product share.
pub const PARTS: &str = "parts";

/// Parameter of a product that can be divided along its rows: the tile of rows of the grid's first workgroup.
pub const FIRST_ROW_TILE: &str = "first_row_tile";
/// Parameter of attention, which can be divided along its queries: the tile of queries of the grid's first workgroup.
pub const FIRST_QUERY_TILE: &str = "first_query_tile";

/// WGSL constant: 1 if the operand [`RESIDUAL`] is bound.
pub const HAS_RESIDUAL: &str = "HAS_RESIDUAL";
/// WGSL constant: 1 if the residual lies where the output is written, and is read there.
pub const IN_PLACE: &str = "IN_PLACE";
/// WGSL constant: 1 if the module multiplies by matrix units.
pub const MATRIX: &str = "MATRIX";
/// WGSL constant: 1 if the module convolves by Winograd's algorithm.
pub const WINOGRAD: &str = "WINOGRAD";

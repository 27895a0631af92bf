//! Offers that the fusion pass of the graph uses: what a kernel can do for its neighbours, so that a step can be
//! dropped.
//!
//! A step can be folded in two directions. A *prologue operation* moves it into the kernels that read its output: each
//! consumer then does the work as it loads its input ([`PrologueOffer`]). An *epilogue operation* moves it into the
//! kernel that writes its input: the producer then does the work before it stores its output ([`EpilogueOffer`]). A
//! kernel makes offers in [`Kernel::prologue_offer`] and [`Kernel::epilogue_offers`]. Its neighbour accepts in
//! [`Kernel::with_prologue`] or [`Kernel::with_epilogue`], which return the changed kernel. The fusion pass matches
//! offers and knows no kernel by name.
//!
//! Operands are matched by name. A [`Prologue`](crate::Prologue) adds the operands `x2`, `stats`, `norm_weight`,
//! `norm_bias` and `norm`; an epilogue adds `residual`, `moments` or `row_moments`.

use crate::kernel::{Activation, Kernel};
use crate::names;
use crate::prologue::Norm;

/// One operation that a consumer does as it loads its input, in place of the step that produced the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PrologueOp {
    /// Reads two tensors as one, joined along the channels.
    Concat {
        /// Channels of the second tensor.
        channels: usize,
    },
    /// Reads every pixel as a block of two by two pixels: nearest-neighbour upsampling.
    Upsample,
    /// Normalises with statistics that are given.
    Normalise(Norm),
    /// Reads f32 where the kernel would read the plan's float type.
    CastF32,
    /// Merges the moments of tiles into mean and reciprocal standard deviation.
    MergeMoments {
        /// Constant added to the variance.
        eps: f32,
    },
}

impl PrologueOp {
    /// Returns the name that plans print for the operation.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Concat { .. } => "concat",
            Self::Upsample => "upsample",
            Self::Normalise(Norm::Rows { .. }) => "layer norm",
            Self::Normalise(_) => "group norm",
            Self::CastF32 => "cast",
            Self::MergeMoments { .. } => "statistics",
        }
    }
}

/// Where an operand that a consumer gains by a fold comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandSource {
    /// The operand of this name of the folded step.
    Folded(&'static str),
    /// The output of the step that remains, see [`PrologueOffer::remainder`].
    Remainder,
}

/// Offer of a step to be done by its consumers as they load.
#[derive(Debug)]
pub struct PrologueOffer {
    /// Operation that the consumers take over.
    pub op: PrologueOp,
    /// Operand of the step that consumers read in place of its output. `None` if the output has no such replacement.
    pub main: Option<&'static str>,
    /// Operands that each consumer gains, by the consumer's name for them.
    pub operands: Vec<(&'static str, OperandSource)>,
    /// Part of the step that stays a step of its own: a kernel that reads some of the step's operands and has one
    /// output.
    pub remainder: Option<Box<dyn Kernel>>,
}

/// One operation that a producer does before it stores its output, in place of the step that read the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpilogueOp {
    /// Applies an activation.
    Activate(Activation),
    /// Adds a tensor of the output's shape, operand `residual`.
    AddResidual,
    /// Writes the moments of the output's channels to the further output `moments`, see
    /// [`ChannelMoments`](crate::ChannelMoments).
    Moments {
        /// Number of images in the output.
        images: usize,
    },
    /// Writes the moments of the output's rows to the further output `row_moments`, see
    /// [`RowMoments`](crate::RowMoments).
    RowMoments,
}

impl EpilogueOp {
    /// Returns the name that plans print for the operation.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Activate(_) => "activation",
            Self::AddResidual => "residual",
            Self::Moments { .. } => "moments",
            Self::RowMoments => "row moments",
        }
    }

    /// Returns the name of the further output that the operation adds to the producer. `None` if the folded step's
    /// output replaces the producer's own.
    pub fn extra_output(&self) -> Option<&'static str> {
        match self {
            Self::Activate(_) | Self::AddResidual => None,
            Self::Moments { .. } => Some(names::MOMENTS),
            Self::RowMoments => Some(names::ROW_MOMENTS),
        }
    }
}

/// Offer of a step to be done by the producer of one of its operands before that stores.
#[derive(Debug)]
pub struct EpilogueOffer {
    /// Operation that the producer takes over.
    pub op: EpilogueOp,
    /// Operand of the step that the producer writes.
    pub main: &'static str,
    /// Operands that the producer gains: the producer's name first, the folded step's name second.
    pub operands: Vec<(&'static str, &'static str)>,
}

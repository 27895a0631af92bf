//! What steps offer each other: a kernel that says here what it does can be left out of a plan where a neighbour does
//! the same on its way in or out. The graph's fusion pass knows these offers and no kernel.
//!
//! Operands are matched by name. `x2`, `stats`, `norm_weight`, `norm_bias` and `norm` are those of a
//! [`Source`](crate::Source); `residual` and `moments` are what a producer adds or writes besides.

use crate::kernel::{Activation, Kernel};
use crate::source::Norm;

/// What a consumer does as it reads, instead of the step that wrote what it read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Read {
    /// Reads two tensors side by side, the second of so many channels.
    Joined {
        /// Channels of the second tensor.
        channels: usize,
    },
    /// Reads every pixel as if it stood for two by two.
    Upsampled,
    /// Normalises with given statistics.
    Normalised(Norm),
    /// Reads f32, where it would read floats as the plan stores them.
    Wide,
    /// Merges moments to mean and reciprocal deviation.
    Merged {
        /// Added to the variance.
        eps: f32,
    },
}

impl Read {
    /// What it is called in a plan.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "concat",
            Self::Upsampled => "upsample",
            Self::Normalised(Norm::Rows) => "layer norm",
            Self::Normalised(_) => "group norm",
            Self::Wide => "cast",
            Self::Merged { .. } => "statistics",
        }
    }
}

/// Where an operand of a fused step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// This operand of the step that is folded in.
    Operand(&'static str),
    /// What is left of that step writes it.
    Rest,
}

/// A step as something its consumers can do as they read.
#[derive(Debug)]
pub struct OnLoad {
    /// What they do.
    pub read: Read,
    /// The operand that takes the place of the step's output, if one does.
    pub main: Option<&'static str>,
    /// Operands they get besides, by the consumer's name.
    pub operands: Vec<(&'static str, From)>,
    /// What is left of the step: a kernel with some of its operands, and one output.
    pub rest: Option<Box<dyn Kernel>>,
}

/// What a producer does as it writes, instead of the step that read what it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Applies an activation.
    Activated(Activation),
    /// Adds a tensor like its output, operand `residual`.
    Added,
    /// Also writes the `moments` of its output's channels, see `channel_moments`.
    Measured {
        /// Images of the output.
        images: usize,
    },
}

impl Write {
    /// What it is called in a plan.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Activated(_) => "activation",
            Self::Added => "residual",
            Self::Measured { .. } => "moments",
        }
    }

    /// The producer's operand that takes the step's output, if the producer's own output stays beside it.
    pub fn beside(&self) -> Option<&'static str> {
        matches!(self, Self::Measured { .. }).then_some("moments")
    }
}

/// A step as something the producer of its operand `main` can do as it writes.
#[derive(Debug)]
pub struct OnStore {
    /// What the producer does.
    pub write: Write,
    /// The operand that the producer writes.
    pub main: &'static str,
    /// Operands the producer gets besides, by the producer's name.
    pub operands: Vec<(&'static str, &'static str)>,
}

//! The end of a product: what `shaders/common/product_end.wgsl` does with the sums.

use super::Moments;
use crate::kernel::Activation;
use crate::names;

/// What the end of a product adds to the sums, and how it writes the results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductEnd {
    /// Whether there is a bias.
    pub(crate) bias: bool,
    /// Activation, applied before the residual is added.
    pub(crate) activation: Activation,
    /// Whether there is a residual.
    pub(crate) residual: bool,
    /// Number of layers that the columns belong to, each with an output of its own.
    pub(crate) layers: usize,
    /// See [`Sizes::phases`](super::Sizes).
    pub(crate) phases: usize,
    /// Moments of the output that are written too.
    pub(crate) moments: Moments,
    /// Whether the output is f32 whatever the storage type is.
    pub(crate) f32_output: bool,
}

impl ProductEnd {
    /// Returns the switches and sizes that the shader takes as constants.
    pub(crate) fn constants(self) -> [(&'static str, u32); 10] {
        [
            ("HAS_BIAS", self.bias.into()),
            (names::HAS_RESIDUAL, self.residual.into()),
            (names::IN_PLACE, 0),
            ("STACKED", (self.layers > 1).into()),
            ("PHASES", u32::try_from(self.phases).expect("one or four")),
            ("PHASED", (self.phases > 1).into()),
            ("HAS_MOMENTS", (self.moments == Moments::Channels).into()),
            ("HAS_ROW_MOMENTS", (self.moments == Moments::Rows).into()),
            ("Y_F32", self.f32_output.into()),
            ("ACTIVATION", self.activation.code()),
        ]
    }
}

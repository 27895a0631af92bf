//! Forms of Winograd's algorithm, and the convolutions that each of them computes.

use super::Conv2d;
use crate::panels::STEP;

/// Fewest input and output channels that use Winograd's algorithm. With fewer, the transforms cost more than they save.
const FEWEST: usize = 32;

/// Fewest input and output channels that use F(4x4, 3x3). With fewer, its transforms cost more than it saves over
/// F(2x2, 3x3).
const FEWEST_LARGE: usize = 64;

/// Form of Winograd's algorithm for 3x3 convolutions, see `conv2d/winograd.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WinogradForm {
    /// F(2x2, 3x3).
    Small,
    /// F(4x4, 3x3).
    Large,
    /// Tiles of 4x4 pixels of a map that is upsampled.
    Upsampled,
}

impl WinogradForm {
    /// Returns the form that computes the convolution, or `None` if Winograd's algorithm does not take it. The answer
    /// does not depend on the size of the image, so that weights have one layout.
    pub(in crate::conv2d) fn of(conv: &Conv2d) -> Option<Self> {
        let channels = |c: usize| c >= FEWEST && c.is_multiple_of(STEP);
        if !(conv.keeps_size() && channels(conv.ci) && channels(conv.co)) {
            return None;
        }
        match conv.upsample {
            1 if conv.ci.min(conv.co) >= FEWEST_LARGE => Some(Self::Large),
            1 => Some(Self::Small),
            2 => Some(Self::Upsampled),
            _ => None,
        }
    }

    /// Returns the edge of the input pixels under a tile, `D`.
    pub(super) fn pixels(self) -> usize {
        match self {
            Self::Small | Self::Upsampled => 4,
            Self::Large => 6,
        }
    }

    /// Returns the edge of the places of a tile where products are computed, `N`.
    pub(crate) fn places(self) -> usize {
        match self {
            Self::Small => 4,
            Self::Upsampled => 5,
            Self::Large => 6,
        }
    }

    /// Returns the edge of the output pixels of a tile, `M`.
    pub(super) fn outputs(self) -> usize {
        match self {
            Self::Small => 2,
            Self::Large | Self::Upsampled => 4,
        }
    }

    /// Returns whether the result of whole numbers is exact. F(4x4, 3x3) divides weights by multiples of three, the
    /// other forms by powers of two.
    pub(in crate::conv2d) fn is_exact(self) -> bool {
        match self {
            Self::Small | Self::Upsampled => true,
            Self::Large => false,
        }
    }
}

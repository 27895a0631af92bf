//! What a pipeline says while it works, and how it is told to stop.

use crate::picture::Picture;
use std::fmt;

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reading weights and bringing them to the device.
    Load,
    /// Making memory, and compiling and binding every step.
    Compile,
    /// Encoding the prompts.
    Text,
    /// Encoding the picture to begin from.
    Encode,
    /// Evaluating the UNet.
    Denoise,
    /// Decoding the latent.
    Decode,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::Compile => "compile",
            Self::Text => "text",
            Self::Encode => "encode",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// How far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Steps of it that are done: weights, dispatches, or evaluations of the UNet, the last of which a GPU may still be at.
    pub step: usize,
    /// Steps it has.
    pub total: usize,
    /// The picture of the request it is for, from 0.
    pub picture: usize,
    /// What the picture would be if the UNet were right at once, if previews are asked for and this step has one.
    pub preview: Option<Picture>,
}

/// What the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop: the call ends with [`Stopped`](crate::ModelError::Stopped) before the next chunk of work, and the
    /// pipeline can be used again.
    Stop,
}

/// Hears of progress, at least once between two chunks of work, and says whether to go on. It may ask the model anything;
/// another pipeline of the same model it may not draw with, which would wait for the one that called it.
pub type OnProgress<'a> = &'a mut (dyn FnMut(&Progress) -> Flow + Send);

/// Is handed each picture of a request once it is drawn, with its number from 0, and says whether to go on.
pub type OnPicture<'a> = &'a mut (dyn FnMut(usize, Picture) -> Flow + Send);

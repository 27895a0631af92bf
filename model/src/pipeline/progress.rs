//! Progress of a pipeline, and the ways to stop it.

use crate::error::ModelError;
use crate::picture::Picture;
pub use mobilediffusion_graph::Flow;
use std::fmt;

/// Kind of work that a pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Looking for NaNs and infinities in the weights that a request still needs, before any is brought to the device.
    Check,
    /// Reading weights and bringing them to the device.
    Load,
    /// Allocating memory, compiling kernels and binding the steps of a plan.
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
            Self::Check => "check",
            Self::Load => "load",
            Self::Compile => "compile",
            Self::Text => "text",
            Self::Encode => "encode",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// Progress within a phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Phase.
    pub phase: Phase,
    /// Number of steps of the phase that are done. A step is a weight, a dispatch, or an evaluation of the UNet; a
    /// GPU may still be computing the last evaluation that counts as done.
    pub step: usize,
    /// Number of steps of the phase.
    pub total: usize,
    /// Index of the picture within the request, from 0; of pictures that are drawn at once the first, except for a preview.
    pub picture: usize,
    /// Preview of the picture, decoded from the UNet's current prediction; `None` unless the request asks for
    /// previews and this step has one.
    pub preview: Option<Picture>,
}

/// Callback for progress, called at least once between two chunks of work, that decides whether to go on. A call that
/// it stops ends with [`ModelError::Stopped`].
///
/// It may query the model. On the CPU device it may be called on another thread than the one that draws, a thread of
/// rayon's pool, and the device computes nothing until it returns.
pub type OnProgress<'a> = &'a mut (dyn FnMut(&Progress) -> Flow + Send);

/// Callback that receives each picture of a request once it is drawn, with its index from 0, and decides whether to
/// go on.
pub type OnPicture<'a> = &'a mut (dyn FnMut(usize, Picture) -> Flow + Send);

/// Reports progress for the current picture, or the first of those that are drawn at once.
pub(super) struct Reporter<'a> {
    pub(super) on_progress: OnProgress<'a>,
    pub(super) picture: usize,
}

impl Reporter<'_> {
    /// Reports progress and returns whether to go on.
    pub(super) fn report(&mut self, phase: Phase, (step, total): (usize, usize)) -> Flow {
        let progress = Progress { phase, step, total, picture: self.picture, preview: None };
        (self.on_progress)(&progress)
    }

    /// Reports progress.
    ///
    /// # Errors
    /// If the caller asked to stop.
    pub(super) fn check(&mut self, phase: Phase, steps: (usize, usize)) -> Result<(), ModelError> {
        unless_stopped(self.report(phase, steps))
    }

    /// Reports that evaluations of the UNet are done, with a preview of number `at` of the pictures that are drawn at
    /// once.
    pub(super) fn preview(
        &mut self,
        (step, total): (usize, usize),
        at: usize,
        preview: Picture,
    ) -> Result<(), ModelError> {
        let picture = self.picture + at;
        let progress = Progress { phase: Phase::Denoise, step, total, picture, preview: Some(preview) };
        unless_stopped((self.on_progress)(&progress))
    }
}

/// Returns an error if the caller asked to stop.
pub(super) fn unless_stopped(flow: Flow) -> Result<(), ModelError> {
    match flow {
        Flow::Continue => Ok(()),
        Flow::Stop => Err(ModelError::Stopped),
    }
}

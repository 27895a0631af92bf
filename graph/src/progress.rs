//! Callbacks that follow long work and can stop it.

use crate::error::GraphError;

/// Answer of a callback: go on or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop: the call ends before the next chunk of work with an error that says so, such as [`GraphError::Stopped`].
    /// What was called can be used again.
    Stop,
}

impl Flow {
    /// Returns an error if the answer is to stop, after `done` of `total` steps.
    pub(crate) fn check(self, done: usize, total: usize) -> Result<(), GraphError> {
        match self {
            Self::Continue => Ok(()),
            Self::Stop => Err(GraphError::Stopped { done, total }),
        }
    }
}

/// Callback for progress, with the number of steps that are done and the number in all. The function that takes it says
/// what a step is. The work ends with [`GraphError::Stopped`] when the answer is [`Flow::Stop`]. A run on the CPU device may
/// call it on a thread of rayon's pool.
pub type OnProgress<'a> = &'a mut (dyn FnMut(usize, usize) -> Flow + Send);

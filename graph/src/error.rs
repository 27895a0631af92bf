//! What can be wrong with a graph or its run.

use mobilediffusion_kernels::DType;
use mobilediffusion_runtime::RuntimeError;

/// An error of the graph: it names the node by its path in the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A tensor does not fit where it is used.
    #[error("`{node}`: {what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Path of the node.
        node: String,
        /// The operand.
        what: String,
        /// What would fit.
        expected: Vec<usize>,
        /// What came.
        found: Vec<usize>,
    },
    /// A tensor is of another type than its user takes.
    #[error("`{node}`: {what} is {found:?}, expected {expected:?}")]
    Type {
        /// Path of the node.
        node: String,
        /// The operand.
        what: String,
        /// What would fit.
        expected: DType,
        /// What came.
        found: DType,
    },
    /// A size that no kernel takes.
    #[error("`{node}`: {what} is {found}, expected {expected}")]
    Size {
        /// Path of the node.
        node: String,
        /// The size.
        what: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        found: usize,
    },
    /// The plan's tensors cannot be placed in buffers as small as the device's.
    #[error("the plan needs {bytes} bytes in a few buffers, the device's largest buffer is {limit}")]
    Buffers {
        /// Most bytes alive at any step.
        bytes: usize,
        /// Largest buffer.
        limit: usize,
    },
    /// The last run was stopped before it had computed everything.
    #[error("output `{name}` is not there: the last run was stopped")]
    Unfinished {
        /// The output.
        name: String,
    },
    /// No input or output of this name.
    #[error("the plan has no {kind} `{name}`; it has: {known}")]
    Unknown {
        /// `input` or `output`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Values of the wrong length for an input.
    #[error("input `{name}` takes {expected} values, found {found}")]
    Length {
        /// The input.
        name: String,
        /// How many it takes.
        expected: usize,
        /// How many came.
        found: usize,
    },
    /// A weight could not be loaded.
    #[error("{0}")]
    Weight(Box<dyn std::error::Error + Send + Sync>),
    /// The device refused something; `node` says during which step.
    #[error("`{node}`: {source}")]
    Device {
        /// Path of the node, or of the plan.
        node: String,
        /// What the runtime says.
        source: RuntimeError,
    },
    /// The caller asked to stop.
    #[error("stopped after {done} of {total} steps")]
    Stopped {
        /// Steps done.
        done: usize,
        /// Steps of the run.
        total: usize,
    },
}

impl GraphError {
    /// Adds the node to a runtime error.
    pub(crate) fn at(node: &str) -> impl FnOnce(RuntimeError) -> Self {
        let node = node.to_owned();
        move |source| Self::Device { node, source }
    }
}

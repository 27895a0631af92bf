//! What can be wrong with a graph or its run.

use crate::record::PlanSummary;
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
    /// A problem that its kernel does not solve.
    #[error("`{node}`: {kernel} refuses it: {reason}")]
    Refused {
        /// Path of the node.
        node: String,
        /// The kernel.
        kernel: &'static str,
        /// Why.
        reason: &'static str,
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
    /// An input that a run needs was never written.
    #[error("input `{name}` was never written")]
    Unwritten {
        /// The input.
        name: String,
    },
    /// Nothing was run yet, or the last run was stopped before it had computed everything.
    #[error("output `{name}` is not there: nothing was run, or the last run was stopped")]
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
    /// Adds what the whole plan needs, where a device has no room for a part of it.
    pub(crate) fn with_needs(self, needs: impl FnOnce() -> PlanSummary) -> Self {
        match self {
            Self::Device { node, source: source @ RuntimeError::OutOfMemory { .. } } => {
                let needs = needs();
                let (activations, weights) = (needs.activation_bytes, needs.weight_bytes);
                let node = format!("{node}, of {activations} bytes of activations and {weights} of weights in all");
                Self::Device { node, source }
            }
            other => other,
        }
    }

    /// Adds the node to a runtime error.
    pub(crate) fn at(node: &str) -> impl FnOnce(RuntimeError) -> Self {
        let node = node.to_owned();
        move |source| Self::Device { node, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_says_how_much_the_plan_needs() {
        let source = RuntimeError::OutOfMemory { what: "arena 1".into(), bytes: Some(64) };
        let needs = PlanSummary {
            steps: 1,
            tensors: 3,
            buffers: 2,
            activation_bytes: 128,
            arena_bytes: 128,
            lower_bound_bytes: 128,
            lower_bound_in_place_bytes: 128,
            weight_bytes: 1000,
        };
        let text = GraphError::at("arena 1")(source).with_needs(|| needs).to_string();
        assert_eq!(
            text,
            "`arena 1, of 128 bytes of activations and 1000 of weights in all`: out of device memory: `arena 1` needs 64 bytes"
        );
    }
}

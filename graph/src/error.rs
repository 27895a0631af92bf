//! Errors of building, planning and running a graph.

use crate::need::Need;
use mobilediffusion_kernels::DType;
use mobilediffusion_runtime::RuntimeError;

/// Error of building, planning or running a graph. A node is named by its path in the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A tensor has another shape than its user expects.
    #[error("`{node}`: {what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Path of the node.
        node: String,
        /// Operand or output with the wrong shape.
        what: String,
        /// Expected shape.
        expected: Vec<usize>,
        /// Shape that was given.
        found: Vec<usize>,
    },
    /// A tensor has another element type than its user expects.
    #[error("`{node}`: {what} has type {found:?}, expected {expected:?}")]
    Type {
        /// Path of the node.
        node: String,
        /// Operand or output with the wrong type.
        what: String,
        /// Expected type.
        expected: DType,
        /// Type that was given.
        found: DType,
    },
    /// An operand that a kernel reads was not given, or one was given that the problem leaves out.
    #[error("`{node}`: operand `{operand}` of {kernel} is {}", presence(*given))]
    Presence {
        /// Path of the node.
        node: String,
        /// Name of the kernel.
        kernel: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// Whether a tensor was given.
        given: bool,
    },
    /// A kernel does not support the problem that a node poses.
    #[error("`{node}`: `{kernel}` does not support this problem: {reason}")]
    Unsupported {
        /// Path of the node.
        node: String,
        /// Name of the kernel.
        kernel: &'static str,
        /// Requirement that the problem violates.
        reason: &'static str,
    },
    /// A size is outside the range that a layer, a kernel or the device accepts.
    #[error("`{node}`: {what} is {found}, expected {expected}")]
    Size {
        /// Path of the node.
        node: String,
        /// Name of the size.
        what: &'static str,
        /// Accepted values.
        expected: String,
        /// Size that was given.
        found: usize,
    },
    /// The planner found no placement of the tensors in buffers as small as the device's limit.
    #[error(
        "found no placement of the plan's tensors in buffers of at most {limit} bytes; {bytes} bytes are alive at once"
    )]
    NoPlacement {
        /// Most bytes alive at any step: the lower bound of every placement.
        bytes: usize,
        /// Largest buffer that the device allows, in bytes.
        limit: usize,
    },
    /// A run began although an input has no value.
    #[error("input `{name}` was never written")]
    MissingInput {
        /// Name of the input.
        name: String,
    },
    /// An output was read although no run has produced its value: nothing was run yet, or the last run was stopped or
    /// failed.
    #[error("output `{name}` is not available: nothing was run, or the last run did not complete")]
    NotComputed {
        /// Name of the output.
        name: String,
    },
    /// The plan has no input or output of the given name.
    #[error("the plan has no {kind} `{name}`; it has: {known}")]
    Unknown {
        /// Kind of the name: `input` or `output`.
        kind: &'static str,
        /// Name that was given.
        name: String,
        /// Names that exist, separated by commas.
        known: String,
    },
    /// An input was given the wrong number of values.
    #[error("input `{name}` takes {expected} values, found {found}")]
    Length {
        /// Name of the input.
        name: String,
        /// Number of elements of the input.
        expected: usize,
        /// Number of values that were given.
        found: usize,
    },
    /// The weight loader failed; the error is the loader's own.
    #[error(transparent)]
    Weight(Box<dyn std::error::Error + Send + Sync>),
    /// The host or the GPU has no room for an allocation.
    #[error("out of {memory} memory: `{what}`{}", needs(*bytes, *plan))]
    OutOfMemory {
        /// Memory that is exhausted: `host` or `device`.
        memory: &'static str,
        /// Label of the allocation.
        what: String,
        /// Size of the allocation in bytes; `None` if it is not known, as for a pipeline.
        bytes: Option<u64>,
        /// What the whole plan needs, if the allocation was made for a session.
        plan: Option<Need>,
    },
    /// The device failed or rejected an operation.
    #[error("`{node}`: {error}")]
    Device {
        /// Path of the node, label of the buffer, or name of the operation.
        node: String,
        /// Error of the runtime. Its text is part of this error's, and so it is no
        /// [`source`](std::error::Error::source).
        error: RuntimeError,
    },
    /// The caller's callback asked to stop.
    #[error("stopped after {done} of {total} steps")]
    Stopped {
        /// Number of steps that were done.
        done: usize,
        /// Number of steps in all.
        total: usize,
    },
}

impl GraphError {
    /// Adds the memory needs of the whole plan to an out-of-memory error; returns other errors as they are.
    pub(crate) fn with_needs(self, needs: impl FnOnce() -> Need) -> Self {
        match self {
            Self::OutOfMemory { memory, what, bytes, .. } => {
                Self::OutOfMemory { memory, what, bytes, plan: Some(needs()) }
            }
            other => other,
        }
    }

    /// Returns a function that wraps a runtime error, naming the node or buffer at which it occurred.
    pub(crate) fn at(node: &str) -> impl FnOnce(RuntimeError) -> Self {
        let node = node.to_owned();
        move |error| match error {
            RuntimeError::OutOfMemory { what, bytes } => {
                Self::OutOfMemory { memory: "device", what, bytes, plan: None }
            }
            error => Self::Device { node, error },
        }
    }

    /// Error for the name of an input or output that the plan does not have. `known` are those that it has.
    pub(crate) fn unknown<'a>(kind: &'static str, name: &str, known: impl Iterator<Item = &'a String>) -> Self {
        let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
        Self::Unknown { kind, name: name.to_owned(), known }
    }

    /// Error of a host allocation that failed.
    pub(crate) fn out_of_host_memory(what: &str, bytes: usize) -> Self {
        Self::OutOfMemory { memory: "host", what: what.to_owned(), bytes: Some(bytes as u64), plan: None }
    }
}

/// Wording of what was found in place of an operand, and what was expected.
fn presence(given: bool) -> &'static str {
    if given { "a tensor, expected none in this problem" } else { "missing, expected a tensor" }
}

/// Wording of how much memory an allocation and its plan need.
fn needs(bytes: Option<u64>, plan: Option<Need>) -> String {
    let own = bytes.map_or_else(|| " does not fit".to_owned(), |bytes| format!(" needs {bytes} bytes"));
    let plan = plan.map(|Need { weights, plan, .. }| {
        format!("; the whole plan needs at least {plan} bytes of activations, and {weights} bytes of weights")
    });
    own + &plan.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_chain_of_causes_repeats_nothing() {
        let error = GraphError::at("layer")(RuntimeError::Lost { reason: "it is gone".into() });
        assert_eq!(error.to_string(), "`layer`: the device was lost: it is gone");
        assert!(std::error::Error::source(&error).is_none(), "its text is already there");
    }

    #[test]
    fn an_out_of_memory_error_says_how_much_the_plan_needs() {
        let source = RuntimeError::OutOfMemory { what: "arena 1".into(), bytes: Some(64) };
        let text =
            GraphError::at("arena 1")(source).with_needs(|| Need { weights: 1000, plan: 128, largest: 64 }).to_string();
        assert_eq!(
            text,
            "out of device memory: `arena 1` needs 64 bytes; \
             the whole plan needs at least 128 bytes of activations, and 1000 bytes of weights"
        );
        let text = GraphError::out_of_host_memory("arena", 64).to_string();
        assert_eq!(text, "out of host memory: `arena` needs 64 bytes");
    }
}

//! The error type of the crate.

/// An error of the runtime. Adapters, buffers, pipelines and dispatches are named by their labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No adapter matches the request.
    #[error("expected {wanted}, found {found}")]
    NoAdapter {
        /// Requested adapter: any GPU, a hardware GPU, or one of the name or index that was given.
        wanted: String,
        /// All adapters of the machine with their indices, or `none`.
        found: String,
    },
    /// The adapter exists, but no device could be opened on it.
    #[error("cannot open a device on adapter `{adapter}`: {reason}")]
    NoDevice {
        /// Name of the adapter.
        adapter: String,
        /// Error message of wgpu, on one line.
        reason: String,
    },
    /// The device is lost. Its buffers, pipelines and dispatches are unusable and must be made again on a new device,
    /// see [`Gpu::recreate`](crate::Gpu::recreate).
    #[error("the device was lost: {reason}")]
    Lost {
        /// Message of the driver or of wgpu. If they report none, a description of what the runtime observed: a panic
        /// inside wgpu, work that did not finish in time, a skipped pass, or a call of
        /// [`Gpu::destroy`](crate::Gpu::destroy).
        reason: String,
    },
    /// The device has not enough free memory.
    #[error("out of device memory: `{what}` {}", needs(*.bytes))]
    OutOfMemory {
        /// Label of the object that was being made, or of the operation.
        what: String,
        /// Size of the object in bytes; `None` if its size is not known, as for a pipeline.
        bytes: Option<u64>,
    },
    /// An object or a transfer is larger than a limit.
    #[error("`{what}`: {bytes} bytes exceed the {limit} of {allowed} bytes")]
    TooLarge {
        /// Label of the buffer.
        what: String,
        /// Requested size in bytes.
        bytes: u64,
        /// Name of the limit, for instance `adapter's largest buffer`.
        limit: &'static str,
        /// The limit in bytes.
        allowed: u64,
    },
    /// A count is higher than the adapter allows.
    #[error("`{what}` needs {count} {unit}, but the adapter allows at most {allowed}")]
    TooMany {
        /// Label of the pipeline or dispatch.
        what: String,
        /// Requested number.
        count: u64,
        /// Unit of the number in the plural, for instance `storage buffers`.
        unit: &'static str,
        /// Highest number that is allowed.
        allowed: u64,
    },
    /// A call was refused, by wgpu or by the runtime. This is a bug in a shader or in the caller.
    #[error("`{what}` was refused: {message}")]
    Validation {
        /// Label of the object that was being made, or of the operation.
        what: String,
        /// Reason, usually wgpu's message. For a shader it quotes the offending lines.
        message: String,
    },
    /// The thread that waits for the device on behalf of a future could not be started, or ended early.
    #[error("the thread that waits for the device failed: {reason}")]
    Thread {
        /// Message of the operating system, or a description of what happened.
        reason: String,
    },
    /// A file of the cache folder cannot be written.
    #[error("cannot write `{path}`: {reason}")]
    Unwritten {
        /// Path of the file.
        path: String,
        /// Message of the operating system, or `there is no cache folder`.
        reason: String,
    },
}

fn needs(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "does not fit".to_owned(), |bytes| format!("needs {bytes} bytes"))
}

#[cfg(test)]
mod tests {
    use super::RuntimeError;

    #[test]
    fn out_of_memory_names_a_size_only_if_it_is_known() {
        let text = |bytes| RuntimeError::OutOfMemory { what: "x".to_owned(), bytes }.to_string();
        assert_eq!(text(Some(64)), "out of device memory: `x` needs 64 bytes");
        assert_eq!(text(None), "out of device memory: `x` does not fit");
    }

    #[test]
    fn sizes_and_limits_have_units() {
        let too_large =
            |limit| RuntimeError::TooLarge { what: "x".to_owned(), bytes: 12, limit, allowed: 8 }.to_string();
        assert_eq!(too_large("destination"), "`x`: 12 bytes exceed the destination of 8 bytes");
        assert_eq!(
            too_large("adapter's largest buffer"),
            "`x`: 12 bytes exceed the adapter's largest buffer of 8 bytes"
        );
    }
}

//! What can go wrong on a device, as values.

/// An error of the runtime. It knows adapters, buffers and shaders by label, and no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No adapter fits the request.
    #[error("no GPU adapter fits `{wanted}`; found: {found}")]
    NoAdapter {
        /// The request.
        wanted: String,
        /// Every adapter there is, or `none`.
        found: String,
    },
    /// The adapter is there but gave no device.
    #[error("adapter `{adapter}` gave no device: {reason}")]
    NoDevice {
        /// Name of the adapter.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// The device is gone; everything on it has to be made again on a new one.
    #[error("the device was lost: {reason}")]
    Lost {
        /// The driver's words.
        reason: String,
    },
    /// The device has no room.
    #[error("out of device memory: `{what}` needs {bytes} bytes")]
    OutOfMemory {
        /// Label of what was to be made.
        what: String,
        /// Its size, 0 where it has none of its own.
        bytes: u64,
    },
    /// Larger than the adapter allows.
    #[error("`{what}` needs {bytes} bytes, the {limit} is {allowed}")]
    TooLarge {
        /// Label of what was to be made.
        what: String,
        /// Its size.
        bytes: u64,
        /// Name of the limit.
        limit: &'static str,
        /// The limit.
        allowed: u64,
    },
    /// More than the adapter allows.
    #[error("`{what}` needs {count} {unit}, the adapter allows {allowed}")]
    TooMany {
        /// Label of what was to be made or run.
        what: String,
        /// How many it needs.
        count: u64,
        /// What of.
        unit: &'static str,
        /// The limit.
        allowed: u64,
    },
    /// The device refused a call: a bug in a shader or in the caller.
    #[error("the device refused `{what}`: {message}")]
    Validation {
        /// Label of what was to be made or run.
        what: String,
        /// wgpu's words, with the shader's lines where there are any.
        message: String,
    },
    /// The file of compiled pipelines cannot be written.
    #[error("{path}: {reason}")]
    Unwritten {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
}

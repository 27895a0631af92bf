//! What can go wrong between a sentence and a picture: files, configurations, weights, requests, memory and devices.
//!
//! Every error carries its data, and its `Display` is one lower-case line: what, where, expected, found.

use mobilediffusion_graph::GraphError;
use mobilediffusion_runtime::RuntimeError;
use std::fmt;
use std::path::PathBuf;

/// Everything the model crate refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be: syntax, a missing or unknown key, a value of the wrong type.
    #[error("{}: at {key}: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Path of the key, `.` for the whole file.
        key: String,
        /// What the parser expected and found.
        message: String,
    },
    /// A configuration holds an impossible or unsupported value.
    #[error("{}: {key}: expected {expected}, found {found}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The tensors of a checkpoint are not those the network needs. Holds every problem; the line shows the first few.
    #[error("{}: {}", path.display(), summary(problems))]
    Weights {
        /// The checkpoint's directory.
        path: PathBuf,
        /// All problems found, never empty.
        problems: Vec<WeightProblem>,
    },
    /// A file is not a valid safetensors file, or an index does not fit its shards.
    #[error("{}: not a valid safetensors checkpoint: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The tokenizer cannot be built or cannot encode a text.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// What is wrong.
        message: String,
    },
    /// A sampler setting is out of range.
    #[error("sampler: {key}: expected {expected}, found {found}")]
    Sampler {
        /// The setting: `steps`, `eta` or `first timestep`.
        key: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// A picture size does not survive the network's halvings.
    #[error("picture size: {key}: expected a positive multiple of {multiple}, found {found}")]
    Size {
        /// `width` or `height`.
        key: &'static str,
        /// Pixels that a side is a multiple of.
        multiple: usize,
        /// Pixels asked for.
        found: usize,
    },
    /// The model lacks a part that is asked for.
    #[error("this model has no `{part}`: expected a folder {part} with config.json and model.safetensors")]
    NoPart {
        /// The folder.
        part: &'static str,
    },
    /// A request does not make sense.
    #[error("{key}: expected {expected}, found {found}")]
    Request {
        /// What of it, named as on the command line.
        key: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// A picture file cannot be used.
    #[error("{}: {message}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The model cannot begin from a picture.
    #[error(
        "this model has no encoder to begin from a picture: expected a folder vae with config.json and model.safetensors"
    )]
    NoEncoder,
    /// There is no room for the weights and plans of a request.
    #[error("out of memory: {width}x{height} pixels need {} {what}, {}; {advice}", mib(*needed), there(*available))]
    Memory {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for, in pixels.
        height: usize,
        /// In which form.
        what: &'static str,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes there are, none where the device does not say.
        available: Option<u64>,
        /// What would fit.
        advice: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The networks gave NaN or infinity: no picture can be made of it.
    #[error("{what} is not finite: the weights or the device are at fault")]
    NotFinite {
        /// What was looked at.
        what: &'static str,
    },
    /// The networks gave a picture of one colour, as they do when something is wrong with the weights or the device.
    #[error("the picture is of one colour: the weights or the device are at fault")]
    Flat,
    /// The device is gone. [`Pipeline::recover`](crate::Pipeline::recover) opens it again.
    #[error("the device was lost: {reason}")]
    DeviceLost {
        /// The driver's words.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// A network cannot be built or run.
    #[error(transparent)]
    Graph(GraphError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(RuntimeError),
}

impl From<RuntimeError> for ModelError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Lost { reason } => Self::DeviceLost { reason },
            other => Self::Device(other),
        }
    }
}

impl From<GraphError> for ModelError {
    fn from(error: GraphError) -> Self {
        match error {
            GraphError::Stopped { .. } => Self::Stopped,
            GraphError::Device { source: RuntimeError::Lost { reason }, .. } => Self::DeviceLost { reason },
            other => Self::Graph(other),
        }
    }
}

impl ModelError {
    /// Whether a device had no room.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let source = match self {
            Self::Graph(GraphError::Device { source, .. }) | Self::Device(source) => source,
            _ => return false,
        };
        matches!(source, RuntimeError::OutOfMemory { .. })
    }
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn there(available: Option<u64>) -> String {
    available.map_or("the device has less".to_owned(), |bytes| format!("there are {}", mib(bytes)))
}

/// One way in which a tensor of a checkpoint is not what the network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightProblem {
    /// The tensor is not there.
    Missing {
        /// Name of the tensor.
        name: String,
        /// The shape it should have, where the reader knew it.
        shape: Option<Vec<usize>>,
    },
    /// The tensor has another shape.
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape the network needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The tensor is of a type that is not read.
    DType {
        /// Name of the tensor.
        name: String,
        /// The type in the file, as safetensors spells it.
        found: String,
    },
    /// The network has no such tensor.
    Extra {
        /// Name of the tensor.
        name: String,
    },
    /// The tensor holds a NaN or an infinity.
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, shape: Some(shape) } => write!(f, "{name} {shape:?} is missing"),
            Self::Missing { name, shape: None } => write!(f, "{name} is missing"),
            Self::Shape { name, expected, found } => write!(f, "{name}: expected shape {expected:?}, found {found:?}"),
            Self::DType { name, found } => write!(f, "{name}: expected F32, F16 or BF16, found {found}"),
            Self::Extra { name } => write!(f, "{name} is not part of the network"),
            Self::NotFinite { name } => write!(f, "{name} holds a NaN or an infinity"),
        }
    }
}

/// How many problems a line names.
const SHOWN: usize = 5;

fn summary(problems: &[WeightProblem]) -> String {
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut line = format!("{} problem{plural} with the weights: ", problems.len());
    let shown: Vec<String> = problems.iter().take(SHOWN).map(WeightProblem::to_string).collect();
    line.push_str(&shown.join("; "));
    if problems.len() > SHOWN {
        line.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weights_error_is_one_line_with_the_first_five() {
        let problems = (0..7).map(|i| WeightProblem::Extra { name: format!("w{i}") }).collect();
        let error = ModelError::Weights { path: "unet".into(), problems };
        let line = error.to_string();
        assert!(line.starts_with("unet: 7 problems with the weights: w0 is not part of the network; w1"), "{line}");
        assert!(line.contains("w4") && !line.contains("w5") && line.ends_with("; and 2 more"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn one_problem_is_singular() {
        let problem = WeightProblem::Shape { name: "w".into(), expected: vec![2, 3], found: vec![3, 2] };
        let error = ModelError::Weights { path: "unet".into(), problems: vec![problem] };
        assert_eq!(error.to_string(), "unet: 1 problem with the weights: w: expected shape [2, 3], found [3, 2]");
    }
}

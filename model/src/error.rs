//! Errors of the model crate: files, configurations, weights, requests, memory and devices.
//!
//! Every error carries its data. Its `Display` is one lower-case line with the place, what was expected, and what was
//! found. The text of a cause is part of it, and so the cause is a field and no [`source`](std::error::Error::source).

use crate::networks::{UNET_BASE, VAE};
use mobilediffusion_graph::GraphError;
use mobilediffusion_runtime::RuntimeError;
use std::fmt;
use std::path::PathBuf;

/// Error of any operation of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Error of the operating system.
        error: std::io::Error,
    },
    /// A file is not the expected JSON: wrong syntax, a missing or unknown key, or a value of the wrong type.
    #[error("{}: {}{message}", path.display(), within(key))]
    Json {
        /// File.
        path: PathBuf,
        /// Path of the key; `.` stands for the whole file.
        key: String,
        /// Parser's message.
        message: String,
    },
    /// A configuration holds an impossible or unsupported value.
    #[error("{}: {key}: expected {expected}, found {found}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// Key.
        key: String,
        /// Accepted values.
        expected: String,
        /// Value in the file.
        found: String,
    },
    /// The tensors of a checkpoint are not those that the network needs. The error holds every problem, its line
    /// shows the first few.
    #[error("{}: {}", path.display(), summary(problems))]
    Weights {
        /// Directory of the checkpoint.
        path: PathBuf,
        /// All problems; never empty.
        problems: Vec<WeightProblem>,
    },
    /// A file is not a valid safetensors file, or an index does not fit its shards.
    #[error("{}: not a valid safetensors checkpoint: {message}", path.display())]
    Safetensors {
        /// File.
        path: PathBuf,
        /// Description of the defect.
        message: String,
    },
    /// The tokenizer cannot be built or cannot encode a text.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// Description of the failure.
        message: String,
    },
    /// The model lacks a part that is needed.
    #[error(
        "this model has no `{part}`{}: expected a folder {part} with config.json and model.safetensors",
        use_of(part)
    )]
    NoPart {
        /// Folder of the part.
        part: &'static str,
    },
    /// The checkpoint that comes with the project is nowhere to be found.
    #[error("the model that comes with the program is missing: expected one of the folders {}", listed(places))]
    NoCheckpoint {
        /// Folders that were looked for, in this order.
        places: Vec<PathBuf>,
    },
    /// The operating system starts no threads for the CPU's work.
    #[error("cannot start threads: {message}")]
    Threads {
        /// Message of the operating system.
        message: String,
    },
    /// A request holds an invalid value.
    #[error("{key}: expected {expected}, found {found}")]
    Request {
        /// Name of the value, spelt as on the command line.
        key: &'static str,
        /// Accepted values.
        expected: String,
        /// Value that was asked for.
        found: String,
    },
    /// A picture file cannot be used.
    #[error("{}: {message}", path.display())]
    Picture {
        /// File.
        path: PathBuf,
        /// Description of the defect.
        message: String,
    },
    /// The weights and plans of a request do not fit into memory.
    #[error(
        "out of memory: {}{width}x{height} pixels need {} {what}, {}; {advice}",
        at_once(*pictures), mib(*needed), limit(*available)
    )]
    Memory {
        /// Number of pictures that are drawn at once.
        pictures: usize,
        /// Width that was asked for, in pixels.
        width: usize,
        /// Height that was asked for, in pixels.
        height: usize,
        /// Use of the bytes: `for weights and plans`, or `in one buffer`.
        what: &'static str,
        /// Number of bytes that are needed.
        needed: u64,
        /// Number of bytes that may be used; `None` where it is unknown, or something did not fit although it seemed to.
        available: Option<u64>,
        /// Description of pictures and storage types that would fit.
        advice: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Output {
        /// File.
        path: PathBuf,
        /// Error of the operating system.
        error: std::io::Error,
    },
    /// The networks computed a NaN or an infinity, so there is no picture.
    #[error("{what} is not finite: the weights or the device are at fault")]
    NotFinite {
        /// Tensor that was checked.
        what: &'static str,
    },
    /// The networks drew a picture of one colour, which is a sign of wrong weights or a faulty device.
    #[error("the picture has a single colour: the weights or the device are at fault")]
    Flat,
    /// The device was lost. [`Pipeline::recover`](crate::Pipeline::recover) opens it again.
    #[error("the device was lost: {reason}")]
    DeviceLost {
        /// Message of the driver or of wgpu, or the runtime's own where they give none.
        reason: String,
    },
    /// A sheet of pictures does not fit into memory.
    #[error("{count} pictures of {width}x{height} pixels do not fit into memory as one sheet; draw files of their own")]
    SheetTooLarge {
        /// Number of pictures.
        count: usize,
        /// Width of a picture in pixels.
        width: usize,
        /// Height of a picture in pixels.
        height: usize,
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
            GraphError::Device { error: RuntimeError::Lost { reason }, .. } => Self::DeviceLost { reason },
            // What a checkpoint reports through the graph is an error of the model.
            GraphError::Weight(error) => match error.downcast() {
                Ok(error) => *error,
                Err(error) => Self::Graph(GraphError::Weight(error)),
            },
            other => Self::Graph(other),
        }
    }
}

impl ModelError {
    /// Returns the error for a value of a request that is not valid.
    pub(crate) fn request(key: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Request { key, expected: expected.into(), found: found.to_string() }
    }

    /// Whether there was too little memory: a smaller picture, fewer at once or narrower types may fit.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Memory { .. }
                | Self::SheetTooLarge { .. }
                | Self::Graph(GraphError::OutOfMemory { .. })
                | Self::Device(RuntimeError::OutOfMemory { .. })
        )
    }
}

/// Formats a number of bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Returns what needs a part of a model, in the words of a request.
fn use_of(part: &str) -> &'static str {
    match part {
        UNET_BASE => ", which guidance, a negative prompt, an eta and more steps than one-step sampling takes need",
        VAE => ", which the full decoder and beginning from a picture need",
        _ => "",
    }
}

/// Formats the key of an error, unless it stands for the whole file.
fn within(key: &str) -> String {
    if key == "." { String::new() } else { format!("{key}: ") }
}

/// Cuts a value or name from a file, which can have any length, so that an error stays one short line.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN: usize = 100;
    text.char_indices().nth(SHOWN).map_or(text.to_owned(), |(end, _)| format!("{}...", &text[..end]))
}

fn listed(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Formats the number of pictures that are drawn at once, if there are several.
fn at_once(pictures: usize) -> String {
    if pictures > 1 { format!("{pictures} pictures at once of ") } else { String::new() }
}

/// Formats the bytes that may be used.
fn limit(available: Option<u64>) -> String {
    available.map_or("but the device has less".to_owned(), |bytes| format!("but the limit is {}", mib(bytes)))
}

/// Difference between a tensor of a checkpoint and what the network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightProblem {
    /// The tensor is missing.
    Missing {
        /// Name of the tensor.
        name: String,
        /// Shape that the network needs.
        shape: Vec<usize>,
    },
    /// The tensor has another shape.
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape that the network needs.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// The tensor has a type that is not supported.
    DType {
        /// Name of the tensor.
        name: String,
        /// Type in the file, as safetensors spells it.
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
    /// The tensor is to be stored in f16, which does not hold one of its values, or a sum of some.
    TooLarge {
        /// Name of the tensor.
        name: String,
        /// Value that is too large.
        found: String,
    },
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Missing { name, .. }
        | Self::Shape { name, .. }
        | Self::DType { name, .. }
        | Self::Extra { name }
        | Self::NotFinite { name }
        | Self::TooLarge { name, .. }) = self;
        let name = shortened(name);
        match self {
            Self::Missing { shape, .. } => write!(f, "{name} {shape:?} is missing"),
            Self::Shape { expected, found, .. } => write!(f, "{name}: expected shape {expected:?}, found {found:?}"),
            Self::DType { found, .. } => write!(f, "{name}: expected F32, F16 or BF16, found {found}"),
            Self::Extra { .. } => write!(f, "{name} is not part of the network"),
            Self::NotFinite { .. } => write!(f, "{name} holds a NaN or an infinity"),
            Self::TooLarge { found, .. } => {
                let expected = "expected values from -65504 to 65504, which f16 holds";
                write!(f, "{name}: {expected}, found {found} among them or their sums; f32 holds it")
            }
        }
    }
}

/// Largest number of problems that an error's line names.
const SHOWN: usize = 5;

/// Formats the number of problems and the first few of them.
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
    use mobilediffusion_kernels::casefile::{CaseFileError, Problem};
    use mobilediffusion_kernels::{check::Mismatch, runner::RunError};
    use mobilediffusion_runtime::shader::ComposeError;
    use std::error::Error;

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
    fn a_printed_chain_of_causes_repeats_nothing() {
        let lost = || RuntimeError::Lost { reason: "it is gone".to_owned() };
        let io = || std::io::Error::new(std::io::ErrorKind::NotFound, lost());
        let composed = || ComposeError { file: "body".into(), line: 1, expected: "a".into(), found: "b".into() };
        let device = || GraphError::Device { node: "x".into(), error: lost() };
        let read = |problem| CaseFileError { path: "x".into(), problem };
        let own = || ModelError::Io { path: "x".into(), error: io() };
        let all: [(Box<dyn Error>, &str); 15] = [
            (Box::new(lost()), "the device was lost: it is gone"),
            (Box::new(composed()), "body:1: expected a, found b"),
            (Box::new(Mismatch::Length { got: 1, want: 2 }), "1 elements, expected 2"),
            (Box::new(RunError::Runtime(lost())), "the device was lost: it is gone"),
            (Box::new(RunError::Compose(composed())), "body:1: expected a, found b"),
            (Box::new(Problem::Io(io())), "the device was lost: it is gone"),
            (Box::new(read(Problem::Io(io()))), "x: the device was lost: it is gone"),
            (Box::new(read(Problem::Safetensors("y".into()))), "x: not a whole safetensors file: y"),
            (Box::new(device()), "`x`: the device was lost: it is gone"),
            (Box::new(GraphError::Weight(Box::new(own()))), "cannot read x: the device was lost: it is gone"),
            (Box::new(own()), "cannot read x: the device was lost: it is gone"),
            (
                Box::new(ModelError::Output { path: "x".into(), error: io() }),
                "cannot write x: the device was lost: it is gone",
            ),
            (Box::new(ModelError::Graph(device())), "`x`: the device was lost: it is gone"),
            (Box::new(ModelError::Device(lost())), "the device was lost: it is gone"),
            (Box::new(ModelError::from(device())), "the device was lost: it is gone"),
        ];
        for (error, text) in all {
            assert_eq!(error.to_string(), text, "{error:?}");
            assert!(error.source().is_none(), "its text is there already: {error:?}");
        }
    }

    #[test]
    fn one_problem_is_singular() {
        let problem = WeightProblem::Shape { name: "w".into(), expected: vec![2, 3], found: vec![3, 2] };
        let error = ModelError::Weights { path: "unet".into(), problems: vec![problem] };
        assert_eq!(error.to_string(), "unet: 1 problem with the weights: w: expected shape [2, 3], found [3, 2]");
    }
}

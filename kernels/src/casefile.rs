//! Case files: one problem of one kernel with its operands and expected outputs, in one `.safetensors` file. PyTorch,
//! NumPy and other programs can write them. `docs/cases.md` describes the format.

pub mod header;
pub mod json;
mod params;

use crate::check;
use crate::kernel::{Case, DType, Operand, Tolerance, checked_elements, split};
use crate::{FAMILIES, family};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensorError};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Largest size that a case file may hold. Products of three sizes then stay within 64 bits.
const LARGEST_SIZE: u64 = 1 << 21;

/// Largest size of a case file in bytes.
const LARGEST_FILE: u64 = 1 << 30;

/// Contents of a case file.
#[derive(Debug)]
pub struct CaseFile {
    /// Problem to solve.
    pub case: Case,
    /// Operands that the kernel reads, in order: dense, in PyTorch's orientation, and empty where an optional operand
    /// is left out. u32 operands hold the bits of their integers.
    pub inputs: Vec<Vec<f32>>,
    /// Expected outputs in order, in the form of [`inputs`](Self::inputs).
    pub expected: Vec<Vec<f32>>,
    /// Tolerance. `None` stands for the kernel's own.
    pub tolerance: Option<Tolerance>,
}

/// Error of reading or writing a case file, displayed in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CaseFileError {
    /// Path of the file.
    pub path: PathBuf,
    /// Problem with the file.
    pub problem: Problem,
}

/// Problems with a case file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(std::io::Error),
    /// The file is truncated, or is not a safetensors file.
    #[error("not a whole safetensors file: {0}")]
    Safetensors(String),
    /// A metadata key is missing.
    #[error("metadata `{key}` is missing, expected {expected}")]
    NoMetadata {
        /// Metadata key.
        key: &'static str,
        /// Expected value.
        expected: String,
    },
    /// A metadata key holds a wrong value.
    #[error("metadata `{key}` is {found}, expected {expected}")]
    Metadata {
        /// Metadata key.
        key: &'static str,
        /// Expected value.
        expected: String,
        /// Value in the file.
        found: String,
    },
    /// The kernel does not accept the sizes.
    #[error("metadata `params` of `{kernel}`: {why}")]
    Params {
        /// Name of the kernel.
        kernel: &'static str,
        /// Reason in one line.
        why: String,
    },
    /// A tensor is missing.
    #[error("tensor `{tensor}` is missing, expected {expected}; the file has {found}")]
    Missing {
        /// Name of the tensor.
        tensor: String,
        /// Expected shape and type.
        expected: String,
        /// Names of the tensors in the file.
        found: String,
    },
    /// A tensor does not belong to the problem.
    #[error("tensor `{tensor}` has no place in this problem, expected only {expected}")]
    Extra {
        /// Name of the tensor.
        tensor: String,
        /// Names of the tensors that belong to the problem.
        expected: String,
    },
    /// A tensor has a wrong shape or type.
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// Expected shape and type.
        expected: String,
        /// Shape and type in the file.
        found: String,
    },
    /// The number of tensors to write is not that of the kernel's operands.
    #[error("`{kernel}` has {found} {tensors}, expected {expected}")]
    Count {
        /// Name of the kernel.
        kernel: &'static str,
        /// What was counted: `inputs` or `expected outputs`.
        tensors: &'static str,
        /// Number of the kernel's operands.
        expected: usize,
        /// Number of tensors that were given.
        found: usize,
    },
    /// An integer does not fit into u32.
    #[error("tensor `{tensor}` holds {found} at {at}, expected a whole number of 0..2^32")]
    Integer {
        /// Name of the tensor.
        tensor: String,
        /// Value in the file.
        found: i64,
        /// Flat index of the value in the tensor.
        at: usize,
    },
}

impl CaseFile {
    /// Reads a case file.
    ///
    /// # Errors
    /// If the file is longer than 1 GiB or cannot be read, or its contents are not valid.
    pub fn read(path: &Path) -> Result<Self, CaseFileError> {
        let bytes = mobilediffusion_runtime::read_file(path, LARGEST_FILE).map_err(Problem::Io);
        let parsed = bytes.and_then(|bytes| Self::parse(&bytes));
        parsed.map_err(|problem| CaseFileError { path: path.to_owned(), problem })
    }

    /// Parses the bytes of a case file.
    ///
    /// # Errors
    /// If the contents are not valid.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let (start, header) = header::read(bytes).map_err(Problem::Safetensors)?;
        let none = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let case = parse_case(metadata)?;
        let tolerance = metadata.get("tolerance").map(|text| parse_tolerance(text)).transpose()?;

        let wanted = tensor_names(&case);
        let list = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let present: Vec<String> = wanted.iter().filter(|(_, o)| o.present).map(|(name, _)| name.clone()).collect();
        let mut found = header.offset_keys();
        found.sort();
        if let Some((name, operand)) = wanted.iter().find(|(name, o)| o.present && !found.contains(name)) {
            let (tensor, expected) = (name.clone(), describe_expected(operand));
            return Err(Problem::Missing { tensor, expected, found: shortened(&list(&found)) });
        }
        if let Some(tensor) = found.iter().find(|name| !present.contains(name)) {
            return Err(Problem::Extra { tensor: shortened(tensor), expected: list(&present) });
        }
        // All shapes are checked before any data is read, so that no memory is allocated for a problem that does not
        // fit.
        for (name, operand) in wanted.iter().filter(|(_, o)| o.present) {
            check_tensor(name, operand, &header)?;
        }
        let mut values = Vec::with_capacity(wanted.len());
        for (name, operand) in &wanted {
            // The name of an absent output may be that of the only present one.
            values.push(match header.info(name).filter(|_| operand.present) {
                Some(TensorInfo { dtype, data_offsets: (first, last), .. }) => {
                    decode(name, *dtype, &bytes[start + first..start + last])?
                }
                None => Vec::new(),
            });
        }
        let expected = values.split_off(split(case.kernel.as_ref()).0.len());
        Ok(Self { case, inputs: values, expected, tolerance })
    }

    /// Writes a case file, with floats as f32 and integers as u32. [`Tolerance::rounding`] is not written: it depends on
    /// the variant that runs and not on the problem.
    ///
    /// # Errors
    /// If the number of inputs or of expected outputs is not the kernel's, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CaseFileError> {
        let written =
            self.bytes().and_then(|bytes| mobilediffusion_runtime::write_whole(path, &bytes).map_err(Problem::Io));
        written.map_err(|problem| CaseFileError { path: path.to_owned(), problem })
    }

    fn bytes(&self) -> Result<Vec<u8>, Problem> {
        let kernel = self.case.kernel.as_ref();
        let (read, written) = split(kernel);
        let counts = [("inputs", read, &self.inputs), ("expected outputs", written, &self.expected)];
        if let Some((tensors, operands, values)) = counts.iter().find(|(_, o, values)| o.len() != values.len()) {
            let (expected, found) = (operands.len(), values.len());
            return Err(Problem::Count { kernel: kernel.name(), tensors, expected, found });
        }
        let unwritten = |error: SafeTensorError| Problem::Safetensors(params::cut(&error.to_string()));
        let names = tensor_names(&self.case);
        let mut views = Vec::new();
        for ((name, operand), values) in names.iter().zip(self.inputs.iter().chain(&self.expected)) {
            if operand.present {
                let dtype = if operand.dtype == DType::U32 { Dtype::U32 } else { Dtype::F32 };
                let data = bytemuck::cast_slice(values);
                views.push((name, TensorView::new(dtype, operand.shape.clone(), data).map_err(unwritten)?));
            }
        }
        let mut metadata = HashMap::from([
            ("kernel".to_owned(), kernel.name().to_owned()),
            ("params".to_owned(), kernel.params_json().to_string()),
        ]);
        if let Some(Tolerance { absolute, relative, .. }) = self.tolerance {
            let value = serde_json::json!({ "absolute": absolute, "relative": relative });
            metadata.insert("tolerance".to_owned(), value.to_string());
        }
        safetensors::serialize(views, Some(metadata)).map_err(unwritten)
    }

    /// Returns the expected outputs in f64, as the comparison takes them.
    pub fn expected_f64(&self) -> Vec<Vec<f64>> {
        let (_, written) = split(self.case.kernel.as_ref());
        written.iter().zip(&self.expected).map(|(operand, values)| check::to_f64(operand, values)).collect()
    }
}

/// Parses the kernel and its sizes from the metadata.
fn parse_case(metadata: &HashMap<String, String>) -> Result<Case, Problem> {
    let known = || format!("one of {}", FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", "));
    let name = metadata.get("kernel").ok_or_else(|| Problem::NoMetadata { key: "kernel", expected: known() })?.as_str();
    let family = family(name).ok_or_else(|| Problem::Metadata {
        key: "kernel",
        expected: known(),
        found: format!("`{}`", shortened(name)),
    })?;
    let object = || format!("a JSON object with the sizes of `{}`", family.name);
    let text = metadata.get("params").ok_or_else(|| Problem::NoMetadata { key: "params", expected: object() })?;
    let refused = |why: String| Problem::Params { kernel: family.name, why };
    let sizes = match json::parse(text) {
        Ok(sizes @ Value::Object(_)) => sizes,
        Err(error) if error.is_data() => return Err(refused(error.to_string())),
        _ => {
            let found = format!("`{}`", shortened(text));
            return Err(Problem::Metadata { key: "params", expected: object(), found });
        }
    };
    if let Some(why) = params::impossible("params", &sizes) {
        return Err(refused(why));
    }
    let kernel = (family.parse)(&sizes).map_err(|error| refused(params::unread(&sizes, &error)))?;
    if let Some(key) = params::list_for_object("params", &sizes, &kernel.params_json()) {
        return Err(refused(format!("`{key}` is a list, expected an object")));
    }
    if let Some(why) = kernel.refusal() {
        return Err(refused(why.to_owned()));
    }
    for operand in kernel.operands().iter().filter(|operand| operand.present) {
        if checked_elements(&operand.shape).is_none_or(|elements| elements == 0 || elements > u32::MAX as usize) {
            let (name, shape) = (operand.name, &operand.shape);
            return Err(refused(format!("`{name}` would be {shape:?}, expected 1 to 2^32 - 1 elements")));
        }
    }
    Ok(Case { kernel, fills: Vec::new(), exact: false })
}

fn parse_tolerance(text: &str) -> Result<Tolerance, Problem> {
    let value = json::parse(text).ok();
    let part = |value: &Value| value.as_f64().filter(|number| *number >= 0.0);
    let parsed = match &value {
        Some(Value::Object(parts)) if parts.keys().all(|key| key == "absolute" || key == "relative") => {
            let part = |key| parts.get(key).map_or(Some(0.0), part);
            part("absolute").zip(part("relative"))
        }
        Some(number) => part(number).map(|number| (number, number)),
        None => None,
    };
    let (absolute, relative) = parsed.ok_or_else(|| Problem::Metadata {
        key: "tolerance",
        expected: "a number or {\"absolute\": number, \"relative\": number}, not negative".to_owned(),
        found: format!("`{}`", shortened(text)),
    })?;
    Ok(Tolerance { absolute, relative, rounding: 0.0 })
}

/// Returns every tensor's name in the file with its operand: first those that are read, then the expected outputs.
fn tensor_names(case: &Case) -> Vec<(String, Operand)> {
    let (read, written) = split(case.kernel.as_ref());
    let single = written.iter().filter(|operand| operand.present).count() == 1;
    let read = read.into_iter().map(|operand| (operand.name.to_owned(), operand));
    let expected = move |operand: Operand| {
        (if single { "expected".to_owned() } else { format!("expected.{}", operand.name) }, operand)
    };
    read.chain(written.into_iter().map(expected)).collect()
}

/// Returns the types in which a file may hold an operand.
fn dtypes(operand: &Operand) -> &'static [Dtype] {
    if operand.dtype == DType::U32 {
        &[Dtype::U32, Dtype::I32, Dtype::I64]
    } else {
        &[Dtype::F32, Dtype::F16, Dtype::BF16]
    }
}

fn describe_expected(operand: &Operand) -> String {
    let names: Vec<String> = dtypes(operand).iter().map(ToString::to_string).collect();
    format!("{:?} of {}", operand.shape, names.join(" or "))
}

fn check_tensor(name: &str, operand: &Operand, header: &Metadata) -> Result<(), Problem> {
    let fits = |info: &TensorInfo| info.shape == operand.shape && dtypes(operand).contains(&info.dtype);
    match header.info(name) {
        Some(info) if !fits(info) => Err(Problem::Tensor {
            tensor: name.to_owned(),
            expected: describe_expected(operand),
            found: format!("{:?} of {}", info.shape, info.dtype),
        }),
        _ => Ok(()),
    }
}

/// Decodes the values of a tensor: floats, or the bits of integers.
fn decode(name: &str, dtype: Dtype, data: &[u8]) -> Result<Vec<f32>, Problem> {
    let narrow = |at: usize, found: i64| {
        let bits = u32::try_from(found).map_err(|_| Problem::Integer { tensor: name.to_owned(), found, at })?;
        Ok(f32::from_bits(bits))
    };
    let (pairs, fours, eights) = (data.as_chunks::<2>().0, data.as_chunks::<4>().0, data.as_chunks::<8>().0);
    match dtype {
        Dtype::F16 => Ok(pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Ok(pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::I32 => fours.iter().enumerate().map(|(at, b)| narrow(at, i32::from_le_bytes(*b).into())).collect(),
        Dtype::I64 => eights.iter().enumerate().map(|(at, b)| narrow(at, i64::from_le_bytes(*b))).collect(),
        // f32, and the bits of u32. `check_tensor` has refused all other types.
        _ => Ok(fours.iter().map(|b| f32::from_le_bytes(*b)).collect()),
    }
}

/// Shortens and escapes a text from a file, so that an error stays one short line.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut line: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Add;

    #[test]
    fn files_are_written_with_all_tensors_only() {
        let written = |inputs: usize, expected: usize| {
            let case = Case::new(Add { rows: 1, c: 1 });
            let of = |count| vec![vec![1.0]; count];
            CaseFile { case, inputs: of(inputs), expected: of(expected), tolerance: None }.bytes()
        };
        assert!(CaseFile::parse(&written(2, 1).expect("all are there")).is_ok(), "what was written reads");
        for (inputs, expected) in [(1, 1), (3, 1), (2, 0), (2, 2)] {
            let refused = written(inputs, expected).expect_err("a tensor is missing, or there is one more");
            assert!(matches!(refused, Problem::Count { .. }), "{inputs} inputs, {expected} outputs: {refused}");
        }
    }
}

//! Case files: one problem of one kernel with its operands and the answer, in one `.safetensors` file that anybody
//! can write, from PyTorch or anything else. `docs/cases.md` describes the format.

use crate::check;
use crate::kernel::{Case, DType, Operand, Tolerance};
use crate::{FAMILIES, family, runner};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// No side of a problem is larger: products of three of them stay within 64 bits.
const LARGEST_SIZE: u64 = 1 << 21;

/// A case with its data.
#[derive(Debug)]
pub struct CaseFile {
    /// The problem.
    pub case: Case,
    /// What the kernel reads, in order: dense, in PyTorch's orientation, empty where an optional operand is left out.
    /// u32 operands hold the bits of their integers.
    pub inputs: Vec<Vec<f32>>,
    /// What it should write, in order, as [`inputs`](Self::inputs).
    pub expected: Vec<Vec<f32>>,
    /// Allowed difference, if it is not the kernel's.
    pub tolerance: Option<Tolerance>,
}

/// What is wrong with a case file, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct CaseFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a case file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is truncated, or garbage.
    #[error("not a whole safetensors file: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// There is no such metadata.
    #[error("metadata `{key}` is missing, expected {expected}")]
    NoMetadata {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: String,
    },
    /// Metadata holds something else.
    #[error("metadata `{key}` is {found}, expected {expected}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The sizes are none the kernel takes.
    #[error("metadata `params` of `{kernel}`: {why}")]
    Params {
        /// The kernel.
        kernel: &'static str,
        /// The reason.
        why: String,
    },
    /// A tensor is not there.
    #[error("tensor `{tensor}` is missing, expected {expected}; the file has {found}")]
    Missing {
        /// Its name.
        tensor: String,
        /// What it should be.
        expected: String,
        /// The tensors there are.
        found: String,
    },
    /// A tensor has no place.
    #[error("tensor `{tensor}` has no place in this problem, expected only {expected}")]
    Extra {
        /// Its name.
        tensor: String,
        /// The tensors that have one.
        expected: String,
    },
    /// A tensor has another shape or type.
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An integer does not fit.
    #[error("tensor `{tensor}` holds {found} at {at}, expected a whole number of 0..2^32")]
    Integer {
        /// Its name.
        tensor: String,
        /// The value.
        found: i64,
        /// Its index, counted through the whole tensor.
        at: usize,
    },
}

impl CaseFile {
    /// Reads a case file.
    ///
    /// # Errors
    /// If it cannot be read, or anything in it is not as it should be.
    pub fn read(path: &Path) -> Result<Self, CaseFileError> {
        let bytes = std::fs::read(path).map_err(Problem::from);
        let parsed = bytes.and_then(|bytes| Self::parse(&bytes));
        parsed.map_err(|problem| CaseFileError { path: path.to_owned(), problem })
    }

    /// Reads the bytes of a case file.
    ///
    /// # Errors
    /// If anything in them is not as it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        // Reads the tensors' places, and refuses a file that is shorter or longer than they say.
        let tensors = SafeTensors::deserialize(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let none = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let case = parse_case(metadata)?;
        let tolerance = metadata.get("tolerance").map(|text| parse_tolerance(text)).transpose()?;

        let wanted = tensor_names(&case);
        let list = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let present: Vec<String> = wanted.iter().filter(|(_, o)| o.present).map(|(name, _)| name.clone()).collect();
        let mut found: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
        found.sort();
        if let Some((name, operand)) = wanted.iter().find(|(name, o)| o.present && !found.contains(name)) {
            let (tensor, expected) = (name.clone(), describe_expected(operand));
            return Err(Problem::Missing { tensor, expected, found: list(&found) });
        }
        if let Some(tensor) = found.iter().find(|name| !present.contains(name)) {
            return Err(Problem::Extra { tensor: tensor.clone(), expected: list(&present) });
        }
        // All shapes before any data: a problem too large for its tensors is refused before memory is taken for it.
        for (name, operand) in wanted.iter().filter(|(_, o)| o.present) {
            check_tensor(name, operand, &header)?;
        }
        let mut values = Vec::with_capacity(wanted.len());
        for (name, operand) in &wanted {
            values.push(if operand.present {
                let tensor = tensors.tensor(name)?;
                decode(name, tensor.dtype(), tensor.data())?
            } else {
                Vec::new()
            });
        }
        let expected = values.split_off(runner::split(case.kernel.as_ref()).0.len());
        Ok(Self { case, inputs: values, expected, tolerance })
    }

    /// Writes a case file: floats as f32, integers as u32.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CaseFileError> {
        let written = self.bytes().and_then(|bytes| Ok(mobilediffusion_runtime::write_whole(path, &bytes)?));
        written.map_err(|problem| CaseFileError { path: path.to_owned(), problem })
    }

    fn bytes(&self) -> Result<Vec<u8>, Problem> {
        let names = tensor_names(&self.case);
        let mut views = Vec::new();
        for ((name, operand), values) in names.iter().zip(self.inputs.iter().chain(&self.expected)) {
            if operand.present {
                let dtype = if operand.dtype == DType::U32 { Dtype::U32 } else { Dtype::F32 };
                let data = bytemuck::cast_slice(values);
                views.push((name, safetensors::tensor::TensorView::new(dtype, operand.shape.clone(), data)?));
            }
        }
        let kernel = self.case.kernel.as_ref();
        let mut metadata = HashMap::from([
            ("kernel".to_owned(), kernel.name().to_owned()),
            ("params".to_owned(), kernel.params_json().to_string()),
        ]);
        if let Some(Tolerance { absolute, relative, .. }) = self.tolerance {
            let value = serde_json::json!({ "absolute": absolute, "relative": relative });
            metadata.insert("tolerance".to_owned(), value.to_string());
        }
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// What the kernel should write, as the comparison takes it.
    pub fn expected_f64(&self) -> Vec<Vec<f64>> {
        let (_, written) = runner::split(self.case.kernel.as_ref());
        written.iter().zip(&self.expected).map(|(operand, values)| check::to_f64(operand, values)).collect()
    }
}

/// The kernel with its sizes, from the metadata.
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
    let params = match serde_json::from_str(text) {
        Ok(Value::Object(params)) => params,
        _ => {
            let found = format!("`{}`", shortened(text));
            return Err(Problem::Metadata { key: "params", expected: object(), found });
        }
    };
    // Before the kernel computes with them: whoever multiplies a few sizes need not think of overflow.
    for (key, value) in &params {
        if value.as_u64().is_some_and(|size| size > LARGEST_SIZE) {
            return Err(refused(format!("`{}` is {value}, expected at most {LARGEST_SIZE}", shortened(key))));
        }
    }
    let kernel = (family.parse)(&Value::Object(params)).map_err(|e| refused(e.to_string()))?;
    if let Some(why) = kernel.refusal() {
        return Err(refused(why.to_owned()));
    }
    for operand in kernel.operands().iter().filter(|operand| operand.present) {
        let elements = operand.shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        if elements.is_none_or(|elements| elements == 0 || elements > u32::MAX as usize) {
            let (name, shape) = (operand.name, &operand.shape);
            return Err(refused(format!("`{name}` would be {shape:?}, expected 1 to 2^32 - 1 elements")));
        }
    }
    Ok(Case { kernel, fills: Vec::new(), exact: false })
}

fn parse_tolerance(text: &str) -> Result<Tolerance, Problem> {
    let value: Option<Value> = serde_json::from_str(text).ok();
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

/// Name in the file and operand of every tensor: what is read first, then what is expected.
fn tensor_names(case: &Case) -> Vec<(String, Operand)> {
    let (read, written) = runner::split(case.kernel.as_ref());
    let single = written.iter().filter(|operand| operand.present).count() == 1;
    let read = read.into_iter().map(|operand| (operand.name.to_owned(), operand));
    let expected = move |operand: Operand| {
        (if single { "expected".to_owned() } else { format!("expected.{}", operand.name) }, operand)
    };
    read.chain(written.into_iter().map(expected)).collect()
}

/// Types that hold an operand.
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

/// The values of a tensor: floats, or the bits of integers.
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
        // f32, and u32 as its bits: `check_tensor` let no other type pass.
        _ => Ok(fours.iter().map(|b| f32::from_le_bytes(*b)).collect()),
    }
}

/// Errors are one line, whatever stands in the file.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut line: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        line.push_str("...");
    }
    line
}

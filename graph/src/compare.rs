//! Comparison of two devices, or of a device with the f64 references, step by step.

use crate::error::GraphError;
use crate::graph::{Origin, Part, TensorInfo};
use crate::node::Node;
use crate::progress::Flow;
use crate::record::Recording;
use crate::reference::ReferenceMemory;
use crate::run::Memory;
use crate::weights::Weights;
use mobilediffusion_kernels::check::{self, Mismatch};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{DType, FloatType, Tolerance};
use std::fmt;

/// Factor by which the tolerance of a kernel is widened. A kernel states its distance from the exact result for random
/// test data. Here both sides may be that far off, and a model's values cancel more than random ones.
const SLACK: f64 = 8.0;

/// First step whose results differ between the two sides of a comparison.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// Number of the step.
    pub step: usize,
    /// Path of the step in the model; of a step that computes several layers, that of the wrong one.
    pub path: String,
    /// Name of the step's kernel.
    pub kernel: &'static str,
    /// Difference between the results.
    pub mismatch: Mismatch,
    /// Lines of the recording's listing for the step before, the step itself and the step after.
    pub listing: Vec<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}, {} at `{}`: {}", self.step, self.kernel, self.path, self.mismatch)?;
        let number = format!("{:4} ", self.step);
        for line in &self.listing {
            writeln!(f, "{} {line}", if line.starts_with(&number) { '>' } else { ' ' })?;
        }
        Ok(())
    }
}

/// Source of the expected results of a comparison.
#[derive(Debug)]
pub enum Against<'a> {
    /// Another device, given by its weights.
    Device(&'a Weights),
    /// The f64 references of the kernels. They are slow, so this is for small pictures. Weights are used as their
    /// loader returns them, rounded if [`Weights::rounded`] says so.
    References(&'a Weights),
}

/// One side of a comparison.
enum Side<'a> {
    Device(Box<Memory>),
    References(ReferenceMemory<'a>),
}

impl<'a> Side<'a> {
    /// Creates a side, and says whether it stores floats in 16 bits.
    fn new(recording: &Recording, against: Against<'a>) -> Result<(Self, bool), GraphError> {
        Ok(match against {
            Against::Device(weights) => {
                let half = weights.device().storage().floats != FloatType::F32;
                (Self::Device(Box::new(Memory::new(recording, weights, &mut |_, _| Flow::Continue)?)), half)
            }
            Against::References(weights) => (Self::References(ReferenceMemory::new(recording, weights)), false),
        })
    }

    fn write(&mut self, recording: &Recording, tensor: usize, values: &[f32]) -> Result<(), GraphError> {
        match self {
            Self::Device(memory) => memory.write(recording, tensor, values)?,
            Self::References(memory) => memory.write(tensor, values),
        }
        Ok(())
    }

    fn run(&mut self, recording: &Recording, step: usize) -> Result<(), GraphError> {
        match self {
            Self::Device(memory) => memory.run(recording, &[step], &mut |_, _| Flow::Continue),
            Self::References(memory) => memory.run(recording, step),
        }
    }

    fn read(&self, recording: &Recording, tensor: usize) -> Result<Vec<f32>, GraphError> {
        match self {
            Self::Device(memory) => memory.read(recording, tensor),
            Self::References(memory) => Ok(memory.read(tensor)),
        }
    }
}

/// Runs a recording step by step on the device of `weights` and on `expected`, and returns the first step whose results
/// differ by more than the tolerance of its kernel, or `None`.
///
/// Both sides run every step on the results that `expected` computed before it. Small errors therefore do not add up,
/// and the step that is returned is the one that is wrong. `inputs` holds the values of every input by name.
///
/// # Errors
/// If an input is unknown, missing or of the wrong length, a weight cannot be loaded, or a device fails.
pub fn compare(
    recording: &Recording,
    expected: Against<'_>,
    weights: &Weights,
    inputs: &[(&str, &[f32])],
) -> Result<Option<Divergence>, GraphError> {
    let (mut expected, half) = Side::new(recording, expected)?;
    let (mut judged, other_half) = Side::new(recording, Against::Device(weights))?;
    let halves = usize::from(half) + usize::from(other_half);
    for (tensor, values) in input_values(recording, inputs)? {
        expected.write(recording, tensor, values)?;
        judged.write(recording, tensor, values)?;
    }
    for (step, node) in recording.nodes.iter().enumerate() {
        expected.run(recording, step)?;
        judged.run(recording, step)?;
        for tensor in node.written() {
            // Read at once, because a later step may reuse the memory.
            let want = expected.read(recording, tensor)?;
            let got = judged.read(recording, tensor)?;
            let info = &recording.tensors[tensor];
            if let Err(mismatch) = judge(&got, &want, info.dtype, &info.shape, allowed(node, halves)) {
                let (path, kernel) = (wrong_layer(recording, node, tensor, &mismatch), node.kernel.name());
                let around = step.saturating_sub(1)..(step + 2).min(recording.nodes.len());
                let text = recording.to_string();
                let listing = text.lines().skip(around.start).take(around.len()).map(str::to_owned).collect();
                return Ok(Some(Divergence { step, path, kernel, mismatch, listing }));
            }
            judged.write(recording, tensor, &want)?;
        }
    }
    Ok(None)
}

/// Returns the tensor number of every input of the recording with its values.
fn input_values<'a>(
    recording: &Recording,
    inputs: &[(&str, &'a [f32])],
) -> Result<Vec<(usize, &'a [f32])>, GraphError> {
    inputs.iter().try_for_each(|(name, _)| recording.input(name).map(drop))?;
    let values = |(tensor, _, info): (usize, u32, &TensorInfo)| {
        let expected = elements(&info.shape);
        let values = inputs.iter().find(|(name, _)| *name == info.name).map_or(&[][..], |(_, values)| values);
        match values.len() {
            found if found == expected => Ok((tensor, values)),
            found => Err(GraphError::Length { name: info.name.clone(), expected, found }),
        }
    };
    recording.inputs().map(values).collect()
}

/// Returns the path of a step with a wrong result, or that of the layer in which the result is wrong.
fn wrong_layer(recording: &Recording, node: &Node, tensor: usize, mismatch: &Mismatch) -> String {
    let Mismatch::Values { at, .. } = mismatch else { return node.path.clone() };
    let begins = |info: &TensorInfo| match info.origin {
        Origin::Part(Part { of, row }) if of == tensor && Some(&row) <= at.first() => Some(row),
        _ => None,
    };
    let layers = recording.tensors.iter().filter_map(|info| Some((begins(info)?, &info.name)));
    layers.max().map_or_else(|| node.path.clone(), |(_, name)| name.clone())
}

/// Returns the tolerance for a step, widened for the number `halves` of sides that round stored values, weights
/// included, to f16.
fn allowed(node: &Node, halves: usize) -> Tolerance {
    let Tolerance { absolute, relative, .. } = node.kernel.tolerance();
    // Rounding to f16 costs 2^-11 each for operands and result; 2^-7 leaves room for sums of rounded products.
    let rounding = halves as f64 * 2.0_f64.powi(-7);
    Tolerance { absolute: SLACK * absolute, relative: SLACK * relative + rounding, rounding: 0.0 }
}

fn judge(got: &[f32], want: &[f32], dtype: DType, shape: &[usize], tolerance: Tolerance) -> Result<(), Mismatch> {
    if dtype != DType::U32 {
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        return check::compare(&wide(got), &wide(want), shape, tolerance).map(|_| ());
    }
    // u32 outputs are RGBA pixels: each of the four bytes may be rounded up on one side and down on the other.
    let bytes =
        |values: &[f32]| values.iter().flat_map(|v| v.to_bits().to_le_bytes().map(f64::from)).collect::<Vec<_>>();
    let one = Tolerance { absolute: 1.0, ..Tolerance::EXACT };
    check::compare(&bytes(got), &bytes(want), &[shape, &[4]].concat(), one).map(|_| ())
}

//! Where two devices part, or a device and the references: a plan run step by step on both, every output compared.

use crate::error::GraphError;
use crate::graph::{Node, Origin};
use crate::plain::Plain;
use crate::plan::Sharing;
use crate::record::Recording;
use crate::run::Memory;
use crate::weights::{Device, Weights};
use mobilediffusion_kernels::check::{self, Mismatch};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Access, DType, FloatType, Tolerance};
use std::fmt;

/// Kernels state how far they may be from the exact result on well-mixed numbers. Here each side may be that far off,
/// and a model's numbers cancel more than a test's.
const SLACK: f64 = 8.0;

/// The first step whose result differs, with the steps around it.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// Its number.
    pub step: usize,
    /// Its path in the model.
    pub path: String,
    /// Its kernel.
    pub kernel: &'static str,
    /// How the results differ: the device's against the truth's.
    pub mismatch: Mismatch,
    /// The step before, the step itself and the one after, as a plan's listing shows them.
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

/// What a device is held to.
#[derive(Debug)]
pub enum Against<'a> {
    /// Another device, with its weights.
    Device(&'a mut Weights),
    /// The kernels' references in f64, on weights as their loader gives them: for small pictures.
    References(&'a Weights),
}

/// One side of a comparison.
enum Side<'a> {
    Device(Memory),
    References(Plain<'a>),
}

impl<'a> Side<'a> {
    /// The side, and whether it stores floats in 16 bits.
    fn new(recording: &Recording, against: Against<'a>) -> Result<(Self, bool), GraphError> {
        Ok(match against {
            Against::Device(weights) => {
                let half = matches!(weights.device(), Device::Gpu(_, storage) if storage.floats != FloatType::F32);
                (Self::Device(Memory::new(recording, weights, Sharing::Planned, &mut |_, _| true)?), half)
            }
            Against::References(weights) => (Self::References(Plain::new(recording, weights)), false),
        })
    }

    fn write(&mut self, recording: &Recording, tensor: usize, values: &[f32]) -> Result<(), GraphError> {
        match self {
            Self::Device(memory) => memory.write(recording, tensor, values)?,
            Self::References(plain) => plain.write(tensor, values),
        }
        Ok(())
    }

    fn run(&mut self, recording: &Recording, step: usize) -> Result<(), GraphError> {
        match self {
            Self::Device(memory) => memory.run(recording, &[step], &mut |_, _| true),
            Self::References(plain) => plain.run(recording, step),
        }
    }

    fn read(&self, recording: &Recording, tensor: usize) -> Result<Vec<f32>, GraphError> {
        match self {
            Self::Device(memory) => memory.read(recording, tensor),
            Self::References(plain) => Ok(plain.read(tensor)),
        }
    }
}

/// Runs every step on both sides and reports the first whose outputs differ beyond the tolerance of its kernel, or
/// none. Both run each step on what `truth` computed before it, so that small errors do not add up and the step that is
/// named is the one that is wrong. `inputs` gives every input of the plan by its name; `on_progress` hears the steps done
/// and those there are.
///
/// # Errors
/// If an input is unknown, missing or of the wrong length, a weight is refused, or a device fails.
pub fn compare(
    recording: &Recording,
    truth: Against<'_>,
    weights: &mut Weights,
    inputs: &[(&str, &[f32])],
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Option<Divergence>, GraphError> {
    let (mut truth, half) = Side::new(recording, truth)?;
    let (mut judged, other_half) = Side::new(recording, Against::Device(weights))?;
    let halves = usize::from(half) + usize::from(other_half);
    for (tensor, values) in by_tensor(recording, inputs)? {
        truth.write(recording, tensor, values)?;
        judged.write(recording, tensor, values)?;
    }
    for (step, node) in recording.nodes.iter().enumerate() {
        truth.run(recording, step)?;
        judged.run(recording, step)?;
        for tensor in written(node) {
            // Read before another step can take the memory.
            let want = truth.read(recording, tensor)?;
            let got = judged.read(recording, tensor)?;
            let info = &recording.tensors[tensor];
            if let Err(mismatch) = judge(&got, &want, info.dtype, &info.shape, allowed(node, halves)) {
                let (path, kernel) = (node.path.clone(), node.kernel.name());
                let around = step.saturating_sub(1)..(step + 2).min(recording.nodes.len());
                let text = recording.to_string();
                let listing = text.lines().skip(around.start).take(around.len()).map(str::to_owned).collect();
                return Ok(Some(Divergence { step, path, kernel, mismatch, listing }));
            }
            judged.write(recording, tensor, &want)?;
        }
        on_progress(step + 1, recording.nodes.len());
    }
    Ok(None)
}

/// The tensor of every input of the plan, with its values.
fn by_tensor<'a>(recording: &Recording, inputs: &[(&str, &'a [f32])]) -> Result<Vec<(usize, &'a [f32])>, GraphError> {
    let each = recording.tensors.iter().enumerate();
    let known: Vec<_> = each.filter(|(_, t)| matches!(t.origin, Origin::Input(_))).collect();
    let names = |all: &mut dyn Iterator<Item = &str>| all.collect::<Vec<_>>().join(", ");
    if let Some((name, _)) = inputs.iter().find(|(name, _)| known.iter().all(|(_, t)| t.name != *name)) {
        let known = names(&mut known.iter().map(|(_, t)| t.name.as_str()));
        return Err(GraphError::Unknown { kind: "input", name: (*name).to_owned(), known });
    }
    let values = |(tensor, info): &(usize, &crate::TensorInfo)| {
        let expected = elements(&info.shape);
        let values = inputs.iter().find(|(name, _)| *name == info.name).map_or(&[][..], |(_, values)| values);
        match values.len() {
            found if found == expected => Ok((*tensor, values)),
            found => Err(GraphError::Length { name: info.name.clone(), expected, found }),
        }
    };
    known.iter().map(values).collect()
}

/// Tensors a step writes.
fn written(node: &Node) -> Vec<usize> {
    let declared = node.kernel.operands();
    let each = declared.iter().zip(&node.operands);
    each.filter(|(operand, _)| operand.access == Access::Write).filter_map(|(_, tensor)| *tensor).collect()
}

/// The kernel's tolerance, widened for `halves` devices that round what they store, weights included, to f16.
fn allowed(node: &Node, halves: usize) -> Tolerance {
    let Tolerance { absolute, relative, .. } = node.kernel.tolerance();
    // An operand and a result each rounded by half a unit, 2^-11, and some room for sums of rounded products.
    let rounding = halves as f64 * 2.0_f64.powi(-7);
    Tolerance { absolute: SLACK * absolute, relative: SLACK * relative + rounding, rounding: 0.0 }
}

fn judge(got: &[f32], want: &[f32], dtype: DType, shape: &[usize], tolerance: Tolerance) -> Result<(), Mismatch> {
    if dtype != DType::U32 {
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        return check::compare(&wide(got), &wide(want), shape, tolerance).map(|_| ());
    }
    // Pixels: four bytes in a word, of which each may be rounded the other way.
    let bytes =
        |values: &[f32]| values.iter().flat_map(|v| v.to_bits().to_le_bytes().map(f64::from)).collect::<Vec<_>>();
    let one = Tolerance { absolute: 1.0, ..Tolerance::EXACT };
    check::compare(&bytes(got), &bytes(want), &[shape, &[4]].concat(), one).map(|_| ())
}

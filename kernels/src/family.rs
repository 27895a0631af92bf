//! A kernel's type: its name, the cases that test it and a parser for its sizes.

use crate::draw::Draw;
use crate::kernel::Kernel;
use std::fmt;

/// What an operand of a test is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normally distributed with this mean and deviation.
    Normal(f32, f32),
    /// Whole numbers of -4..=4: sums of their products are exact in f32.
    Integers,
    /// Every element the same.
    Constant(f32),
    /// u32 below this bound.
    Below(u32),
}

/// One test of a kernel: a problem, and data chosen to make its mistakes visible.
#[derive(Debug)]
pub struct Case {
    /// The problem.
    pub kernel: Box<dyn Kernel>,
    /// Fill of single operands, by name; the others are `Normal(0, 1)`.
    pub fills: Vec<(&'static str, Fill)>,
    /// Whether the answer must be exact whatever the kernel's tolerance says.
    pub exact: bool,
}

impl Case {
    /// A case with normally distributed operands.
    pub fn new(kernel: impl Kernel + 'static) -> Self {
        Self { kernel: Box::new(kernel), fills: Vec::new(), exact: false }
    }

    /// The same case with another fill of one operand.
    pub fn fill(mut self, operand: &'static str, fill: Fill) -> Self {
        self.fills.push((operand, fill));
        self
    }

    /// The same case on whole numbers in every operand, where the answer must be exact.
    pub fn integers(mut self) -> Self {
        self.fills = self.kernel.operands().iter().map(|o| (o.name, Fill::Integers)).collect();
        self.exact = true;
        self
    }

    /// The fill of an operand.
    pub fn fill_of(&self, operand: &str) -> Fill {
        self.fills.iter().rev().find(|(name, _)| *name == operand).map_or(Fill::Normal(0.0, 1.0), |(_, fill)| *fill)
    }
}

/// A kernel type: one line of the list.
#[derive(Clone, Copy)]
pub struct Family {
    /// Name of the file pair.
    pub name: &'static str,
    /// One line for the table of kernels.
    pub summary: &'static str,
    /// Edge cases: 1, the tile and its neighbours, primes, channels that are no multiple of four.
    pub cases: fn() -> Vec<Case>,
    /// The shapes of the full-size model, for the benches.
    pub model_shapes: fn() -> Vec<Case>,
    /// A small problem near the edges of the tiles, for property tests: any choice gives one that is not refused.
    pub random: fn(&mut Draw<'_>) -> Case,
    /// Reads a problem from the `params` of a case file.
    pub parse: fn(&serde_json::Value) -> Result<Box<dyn Kernel>, serde_json::Error>,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.name)
    }
}

/// Reads a kernel of type `K` from JSON: the `parse` of a family.
///
/// # Errors
/// If a field is missing, unknown or of the wrong type.
pub fn parse<K>(params: &serde_json::Value) -> Result<Box<dyn Kernel>, serde_json::Error>
where
    K: Kernel + serde::de::DeserializeOwned + 'static,
{
    serde_json::from_value::<K>(params.clone()).map(|kernel| Box::new(kernel) as Box<dyn Kernel>)
}

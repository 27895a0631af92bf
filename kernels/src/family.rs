//! Families: the type of a kernel with its name, its test cases and a parser for its sizes.

use crate::draw::Draw;
use crate::kernel::{Kernel, PORTABLE};
use crate::names;
use crate::variant::{Machine, choose};
use std::fmt;

/// Values that fill an operand of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Approximately normally distributed values with this mean and standard deviation.
    Normal(f32, f32),
    /// Whole numbers in `-4..=4`. Sums of their products are exact in f32.
    Integers,
    /// A constant in every element.
    Constant(f32),
    /// Random u32 values below this bound.
    Below(u32),
}

/// One test of a kernel: a problem, and fills of its operands that make mistakes visible.
#[derive(Debug)]
pub struct Case {
    /// Problem to solve.
    pub kernel: Box<dyn Kernel>,
    /// Fills of single operands, by name. All other operands are filled with `Normal(0, 1)`, or with `Normal(1, 0.1)` if
    /// they hold variances, which are not negative.
    pub fills: Vec<(&'static str, Fill)>,
    /// Whether the result must be exact, regardless of the kernel's tolerance.
    pub exact: bool,
}

impl Case {
    /// Makes a case with normally distributed operands.
    pub fn new(kernel: impl Kernel + 'static) -> Self {
        Self { kernel: Box::new(kernel), fills: Vec::new(), exact: false }
    }

    /// Sets the fill of one operand.
    pub fn fill(mut self, operand: &'static str, fill: Fill) -> Self {
        self.fills.push((operand, fill));
        self
    }

    /// Fills every operand with whole numbers and requires an exact result.
    pub fn integers(mut self) -> Self {
        self.fills = self.kernel.operands().iter().map(|o| (o.name, Fill::Integers)).collect();
        self.exact = true;
        self
    }

    /// Returns whether the case has more workgroups than fit on one axis of a grid. The variant and storage type make no
    /// difference. Software drivers may take a minute for so many.
    pub fn is_long(&self) -> bool {
        let program = self.kernel.program(&choose(self.kernel.as_ref(), &Machine::PORTABLE));
        program.grid.iter().map(|groups| u64::from(*groups)).product::<u64>() > PORTABLE.max_groups.into()
    }

    /// Returns the fill of an operand.
    pub(crate) fn fill_of(&self, operand: &str) -> Fill {
        let own = self.fills.iter().rev().find(|(name, _)| *name == operand).map(|(_, fill)| *fill);
        let with_variances = [names::STATS, names::MOMENTS].contains(&operand);
        own.unwrap_or(if with_variances { Fill::Normal(1.0, 0.1) } else { Fill::Normal(0.0, 1.0) })
    }
}

/// Type of a kernel: one line of [`FAMILIES`](crate::FAMILIES).
#[derive(Clone, Copy)]
pub struct Family {
    /// Name of the kernel and of its pair of files.
    pub name: &'static str,
    /// Summary for the README's table of kernels, one line of Markdown.
    pub summary: &'static str,
    /// Returns the test cases: sizes of 1, the tile size and its neighbours, primes, channel counts that are not a
    /// multiple of four.
    pub cases: fn() -> Vec<Case>,
    /// Returns problems with the shapes of the full-size model, for the benches.
    pub model_shapes: fn() -> Vec<Case>,
    /// Draws a small random problem with sizes near the edges of tiles, for property tests. Every draw gives a problem
    /// that the kernel does not refuse.
    pub random: fn(&mut Draw<'_>) -> Case,
    /// Parses a problem from the `params` of a case file.
    pub parse: fn(&serde_json::Value) -> Result<Box<dyn Kernel>, serde_json::Error>,
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.name)
    }
}

/// Parses a kernel of type `K` from JSON. Families use this function as their [`parse`](Family::parse).
///
/// # Errors
/// If a field is missing, unknown or of the wrong type.
pub(crate) fn parse<K>(params: &serde_json::Value) -> Result<Box<dyn Kernel>, serde_json::Error>
where
    K: Kernel + serde::de::DeserializeOwned + 'static,
{
    let named = |error: serde_path_to_error::Error<serde_json::Error>| {
        let (path, why) = (error.path().to_string(), error.inner().to_string().replace("usize", "a whole number"));
        serde::de::Error::custom(if path == "." { why } else { format!("`{path}`: {why}") })
    };
    serde_path_to_error::deserialize::<_, K>(params).map(|kernel| Box::new(kernel) as Box<dyn Kernel>).map_err(named)
}

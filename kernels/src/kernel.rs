//! The kernel contract: the trait that every kernel implements, and the plain data that it returns.
//!
//! A *kernel* is a small struct that holds the sizes of one problem. It declares its operands, its WGSL program, its
//! cost and its tolerance. It also implements the same computation twice more: as a plain f64 reference, and in a fast
//! form for the CPU. A [*family*](Family) describes the kernel's type: its name, its test cases and a parser for its
//! sizes. Tests, benches, case files and the table of the README walk the list of families and know no kernel by name.

pub(crate) use crate::family::parse;
pub use crate::family::{Case, Family, Fill};
use crate::fold::{EpilogueOffer, EpilogueOp, PrologueOffer, PrologueOp};
pub use crate::layout::Layout;
use crate::names;
pub use crate::operand::{Access, DType, Operand};
use crate::storage::Storage;
use crate::variant::Variant;
use mobilediffusion_runtime::{Binding, Caps};
use std::fmt;

/// Sizes of a tensor, outermost axis first. Feature maps are `[n, h, w, c]`, tokens `[n, l, c]`, matrices `[rows,
/// cols]`.
pub type Shape = Vec<usize>;

/// Returns the number of elements of a shape.
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Returns the number of elements of a shape, or `None` if it does not fit into a `usize`.
pub fn checked_elements(shape: &[usize]) -> Option<usize> {
    // An axis without elements decides, also behind axes whose product does not fit.
    if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1_usize, |all, size| all.checked_mul(*size)) }
}

/// Returns the shape that a tensor of floats has in device memory: the last axis is rounded up to a multiple of four,
/// so that every access is one vec4. The padding holds zeros, and every kernel keeps it zero.
pub fn padded(shape: &[usize]) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = last.next_multiple_of(4);
    }
    shape
}

/// One field of a kernel's uniform `Params` struct, four bytes wide. Name and order are those of the WGSL struct.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Param {
    /// A `u32` field.
    U(&'static str, u32),
    /// An `f32` field.
    F(&'static str, f32),
}

impl Param {
    /// Makes a `u32` field that holds a size or a count.
    ///
    /// # Panics
    /// If the value does not fit into 32 bits. Sessions on a GPU and case files refuse such tensors earlier.
    pub fn size(name: &'static str, value: usize) -> Self {
        Self::U(name, u32::try_from(value).expect("sizes are below 2^32"))
    }

    /// Returns the name of the field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::U(name, _) | Self::F(name, _) => name,
        }
    }

    /// Returns the four bytes of the field, little-endian.
    pub fn bytes(&self) -> [u8; 4] {
        match self {
            Self::U(_, value) => value.to_le_bytes(),
            Self::F(_, value) => value.to_le_bytes(),
        }
    }
}

/// Device code of a kernel for one problem. The entry point is always `main`.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// WGSL body, the text of `shaders/<name>.wgsl`.
    pub wgsl: &'static str,
    /// Values that the composer writes in front of the body as `const NAME: u32`: sizes of local arrays, and switches.
    pub constants: Vec<(&'static str, u32)>,
    /// Fields of the uniform `Params` struct, in order.
    pub params: Vec<Param>,
    /// Number of workgroups in x, y and z.
    pub grid: [u32; 3],
}

impl Program {
    /// Divides the program into up to `parts` programs that compute it together, in any order, with the same code; into more
    /// if the limit on an axis of a grid demands it. A program without a parameter for that remains whole.
    pub fn divided(&self, parts: u64) -> Vec<Self> {
        let [x, y, z] = self.grid;
        // Tiles of rows run along y, then z; a few of the last may be beyond the rows, and their workgroups return.
        let tiles_of = |param: &Param| match param.name() {
            names::FIRST_ROW_TILE => Some(u64::from(y) * u64::from(z)),
            names::FIRST_QUERY_TILE => Some(u64::from(x)),
            _ => None,
        };
        let found = self.params.iter().enumerate().find_map(|(at, param)| Some((at, param.name(), tiles_of(param)?)));
        let Some((at, name, tiles)) = found.filter(|_| parts > 1) else { return vec![self.clone()] };
        let each = tiles.div_ceil(parts).clamp(1, Caps::PORTABLE.max_groups.into());
        let part = |number: u64| {
            let (first, count) = (number * each, each.min(tiles - number * each));
            let [first, count] = [first, count].map(|tiles| u32::try_from(tiles).expect("no more than in the grid"));
            let grid = if name == names::FIRST_ROW_TILE { [x, count, 1] } else { [count, y, z] };
            let mut params = self.params.clone();
            params[at] = Param::U(name, first);
            Self { params, grid, ..self.clone() }
        };
        (0..tiles.div_ceil(each)).map(part).collect()
    }
}

/// One dispatch of a kernel: the program that runs, and the operands that it binds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Program that the dispatch runs.
    pub program: Program,
    /// Operands in binding order. The kernel's own operands come first; those that only another stage binds are marked
    /// as absent. If a variant has several stages, one more operand follows: the memory in which the first stage leaves
    /// intermediate results for the next. Only the stages know this operand.
    pub operands: Vec<Operand>,
}

impl Stage {
    /// Returns the operand that only the stages share, if there is one. `operands` is the number of the kernel's own
    /// operands.
    pub fn shared(&self, operands: usize) -> Option<&Operand> {
        self.operands.get(operands)
    }

    /// Returns the bindings that the WGSL module expects: the uniform `Params`, then the operands.
    pub fn bindings(&self) -> Vec<Binding> {
        std::iter::once(Binding::Uniform).chain(self.operands.iter().map(Operand::binding)).collect()
    }

    /// Changes the stage for an operand that lies in the memory of the first output; see [`Kernel::in_place`]. The shader
    /// then reads it from the output's binding, and the operand itself is not bound.
    pub fn read_in_place(&mut self, operand: &str) {
        for (name, value) in &mut self.program.constants {
            match *name {
                names::HAS_RESIDUAL => *value = 0,
                names::IN_PLACE => *value = 1,
                _ => {}
            }
        }
        self.operands.iter_mut().filter(|other| other.name == operand).for_each(|operand| operand.present = false);
    }
}

/// Folds up to 65,535² workgroups into a grid whose axes stay within WebGPU's limit of 65,535; devices refuse the grid
/// of more. The shader computes the flat index of its workgroup with `flat_group` and returns if that is beyond the number.
pub fn folded_grid(groups: usize) -> [u32; 3] {
    let y = groups.div_ceil(Caps::PORTABLE.max_groups as usize).max(1);
    let x = groups.div_ceil(y).max(1);
    [u32::try_from(x).expect("at most 65,535"), u32::try_from(y).expect("sizes are below 2^32"), 1]
}

/// Invocations of a workgroup of most kernels whose invocations do not work together: `GROUP` of `common/grid.wgsl`.
pub const GROUP: usize = 64;

/// Returns the folded grid of workgroups of [`GROUP`] invocations for `count` invocations. The shader computes the
/// number of its invocation with `flat_invocation` and returns if it is not below `count`.
pub fn grid_of(count: usize) -> [u32; 3] {
    folded_grid(count.div_ceil(GROUP))
}

/// Arithmetic work of a kernel, independent of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulates of contractions: matrix products, convolutions and attention. The paper calls these
    /// "FLOPs".
    pub macs: u64,
    /// Floating-point operations. Contractions are included, at two operations per multiply-accumulate.
    pub flops: u64,
}

impl Cost {
    /// Returns the cost of as many multiply-accumulates as the product of some sizes, and nothing else. A number that
    /// 64 bits do not hold becomes the largest that they do.
    pub fn macs(sizes: &[usize]) -> Self {
        let macs = sizes.iter().fold(1_u64, |all, size| all.saturating_mul(*size as u64));
        Self { macs, flops: macs.saturating_mul(2) }
    }

    /// Returns the cost of an element-wise kernel: `per_element` operations on each of `elements` elements.
    pub fn elementwise(elements: usize, per_element: usize) -> Self {
        Self { macs: 0, flops: (elements as u64).saturating_mul(per_element as u64) }
    }
}

/// Largest error of a result that is accepted.
///
/// An element passes if `|got - want| <= absolute + relative * max(|want|, scale) + rounding * max(row, scale)`. Here
/// `scale` is the root mean square of all expected values, and `row` that of the expected values in the element's row
/// (along the last axis).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Error that is allowed regardless of the value.
    pub absolute: f64,
    /// Error that is allowed in proportion to the value.
    pub relative: f64,
    /// Error that is allowed in proportion to the row, for factors that were rounded to f16. See [`Variant::rounds`].
    pub rounding: f64,
}

impl Tolerance {
    /// No difference at all: for integers and copies.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0, rounding: 0.0 };

    /// Returns the tolerance between two results that may each be off by this one, in opposite directions.
    #[must_use]
    pub fn doubled(self) -> Self {
        Self { absolute: 2.0 * self.absolute, relative: 2.0 * self.relative, ..self }
    }

    /// Returns the tolerance of a sum of `terms` products, each rounded to f32: `4 * sqrt(terms)` times `f32::EPSILON`,
    /// at least 16 times.
    pub fn f32_sum(terms: usize) -> Self {
        let unit = f64::from(f32::EPSILON);
        Self { absolute: unit, relative: unit * (4.0 * (terms as f64).sqrt()).max(16.0), rounding: 0.0 }
    }
}

/// Writes the sizes of a problem as JSON. Every kernel that implements [`serde::Serialize`] implements this trait.
pub trait ParamsJson {
    /// Returns the sizes as the JSON object that a case file holds under `params`.
    fn params_json(&self) -> serde_json::Value;
}

impl<K: serde::Serialize> ParamsJson for K {
    fn params_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("sizes are numbers, switches and names")
    }
}

/// One problem of one kernel. The trait is object-safe: the graph, the tests and the benches hold `Box<dyn Kernel>`.
pub trait Kernel: ParamsJson + fmt::Debug + Send + Sync {
    /// Returns the kernel's name. The file pair, the shader's label, tests, benches and errors all use it.
    fn name(&self) -> &'static str;

    /// Returns the reason why the kernel cannot solve this problem, or `None` if it can. All other methods may assume
    /// that the problem was not refused.
    fn refusal(&self) -> Option<&'static str> {
        None
    }

    /// Returns the operands in binding order, first those that are read, then those that are written. Binding 0 is the
    /// uniform `Params`; operands start at binding 1.
    fn operands(&self) -> Vec<Operand>;

    /// Returns the programs that solve this problem. A device runs one of them, see [`choose`](crate::variant::choose).
    fn variants(&self) -> Vec<Variant> {
        vec![Variant::ONLY]
    }

    /// Returns the device code of a variant, with its constants, parameters and grid. For a variant with several
    /// stages, this is the program of the first stage.
    fn program(&self, variant: &Variant) -> Program;

    /// Returns the dispatches of a variant, in order.
    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        vec![Stage { program: self.program(variant), operands: self.operands() }]
    }

    /// Returns the arithmetic work of this problem.
    fn cost(&self) -> Cost;

    /// Returns the largest error against the reference that is allowed when tensors are stored as f32.
    fn tolerance(&self) -> Tolerance;

    /// Computes the expected result with plain loops in f64. `inputs` are the operands that are read, in order: dense,
    /// in PyTorch's orientation, and empty where an optional operand is left out. The result holds the written
    /// operands.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>>;

    /// Returns the operand, if any, whose memory the first output may take on a GPU. This requires that no invocation
    /// writes an element that another one still reads. The program then has the constant `IN_PLACE`, see
    /// [`Stage::read_in_place`].
    fn in_place(&self) -> Option<&'static str> {
        None
    }

    /// Returns two kernels that do what this one does to the channels of `x` and to those of `x2`, each from operand
    /// `x` of its own. `None` if the kernel does not read a concatenation, or mixes channels.
    fn by_source(&self) -> Option<[Box<dyn Kernel>; 2]> {
        None
    }

    /// Computes the result on the CPU, in f32. `inputs` are the operands that are read, in order: dense, packed by
    /// their [host layout](Operand::host_layout), and empty where an optional operand is left out. u32 operands are
    /// passed as the same bytes (`bytemuck::cast_slice`). Every element of `outputs` is written.
    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]);

    /// Returns the offer that consumers do this step, or a part of it, as they load their input.
    fn prologue_offer(&self) -> Option<PrologueOffer> {
        None
    }

    /// Returns this kernel with the prologue operation `op` on `operand`, or `None` if it has no such form. The sizes
    /// of the result may differ; together with the folded step, it computes the same values.
    fn with_prologue(&self, _operand: &str, _op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        None
    }

    /// Returns the offers that the producer of an operand does this step before it stores.
    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        Vec::new()
    }

    /// Returns this kernel with the epilogue operation `op` on its output, or `None` if it has no such form.
    fn with_epilogue(&self, _op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        None
    }

    /// Returns the kernel that solves `layers` problems like this one on the same input at once, or `None` if it has no
    /// such form.
    ///
    /// Weights whose shape differs from that of a single problem hold the rows of all layers, one layer after the other,
    /// and so does the output. Every layer of the output begins at a multiple of [`BINDING_ALIGNMENT`] bytes, for which
    /// rows of zeros may be needed behind its own.
    fn stacked(&self, _layers: usize) -> Option<Box<dyn Kernel>> {
        None
    }
}

/// Alignment of binding offsets in bytes: the largest that WebGPU allows an adapter to require.
pub const BINDING_ALIGNMENT: usize = 256;

/// Returns the least number of rows, at least `rows`, that take a multiple of [`BINDING_ALIGNMENT`] bytes with `cols`
/// columns of two or four bytes each.
pub(crate) fn rows_to_bind(rows: usize, cols: usize) -> usize {
    let together = (1..=BINDING_ALIGNMENT).find(|rows| (2 * rows * cols).is_multiple_of(BINDING_ALIGNMENT));
    rows.next_multiple_of(together.expect("as many rows as bytes fit"))
}

/// Capabilities of every WebGPU device, by reference: a constant cannot drop the value that it takes a limit from.
pub(crate) const PORTABLE: &Caps = &Caps::PORTABLE;

/// Number of storage buffers that a dispatch may bind on every WebGPU device.
pub const MAX_BUFFERS: usize = PORTABLE.max_storage_buffers as usize;

/// Largest storage binding in bytes that WebGPU guarantees, which is also the limit of some drivers.
pub const LARGEST_BINDING: usize = PORTABLE.max_binding_bytes as usize;

/// Returns why a problem with these operands cannot be bound, if it has more than [`MAX_BUFFERS`] of them.
pub fn too_many(operands: &[Operand]) -> Option<&'static str> {
    let present = operands.iter().filter(|operand| operand.present).count();
    (present > MAX_BUFFERS).then_some("at most eight operands may be present")
}

/// Returns the operands that a kernel reads, and those that it writes.
pub fn split(kernel: &dyn Kernel) -> (Vec<Operand>, Vec<Operand>) {
    kernel.operands().into_iter().partition(|operand| operand.access == Access::Read)
}

/// Returns whether a kernel reads a matrix of weights.
pub fn has_weights(kernel: &dyn Kernel) -> bool {
    kernel.operands().iter().any(|operand| operand.dtype.is_weight())
}

/// Returns the number of bytes that a kernel moves if every operand is read or written once: the values as stored,
/// without padding, and the scales of int8 weights. Weights of which a GPU stores sums count as in their file.
pub fn bytes_moved(kernel: &dyn Kernel, storage: Storage) -> usize {
    let bytes = |o: &Operand| {
        o.host_len() * storage.bytes(o.dtype) + storage.scale_bytes(o.dtype, &o.layout.packed_shape(&o.shape))
    };
    kernel.operands().iter().filter(|o| o.present).map(bytes).sum()
}

/// Activation function. `shaders/common/activation.wgsl` uses the same codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The identity, `u`.
    #[default]
    None,
    /// `max(u, 0)`.
    Relu,
    /// `u * sigmoid(u)`, also called swish.
    Silu,
    /// `u * Phi(u)`, the exact form with the error function.
    Gelu,
    /// `u * sigmoid(1.702 u)`, the approximation that CLIP uses.
    QuickGelu,
}

impl Activation {
    /// All activations, for test cases.
    pub const ALL: [Self; 5] = [Self::None, Self::Relu, Self::Silu, Self::Gelu, Self::QuickGelu];

    /// Returns the code that the shader uses for the activation.
    pub fn code(self) -> u32 {
        self as u32
    }
}

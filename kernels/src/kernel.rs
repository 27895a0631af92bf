//! The kernel contract: what one kernel says about itself.
//!
//! A *kernel* is a small struct that holds the sizes of one problem. It names its operands, its WGSL program, its
//! cost and its tolerance, and it carries two more forms of itself: a plain f64 `reference` and a fast CPU form.
//! A [*family*](Family) is the kernel's type: its name, the cases that test it and a parser for its sizes. Tests,
//! benches, docs and the CPU device walk the list of families and know no kernel by name.

pub use crate::family::{Case, Family, Fill, parse};
use crate::fold::{EpilogueOffer, EpilogueOp, PrologueOffer, PrologueOp};
pub use crate::layout::Layout;
use crate::names;
pub use crate::operand::{Access, DType, Operand};
use crate::storage::Storage;
use crate::variant::Variant;
use mobilediffusion_runtime::Binding;
use std::fmt;

/// Sizes of a tensor, outermost first. Feature maps are `[n, h, w, c]`, tokens `[n, l, c]`, matrices `[rows, cols]`.
pub type Shape = Vec<usize>;

/// Number of elements of a shape.
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Rounds the last axis up to a multiple of four: how a tensor of floats lies in device memory, so that every access
/// is one vec4. The padding holds zeros, and every kernel keeps it zero.
pub fn padded(shape: &[usize]) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = last.next_multiple_of(4);
    }
    shape
}

/// A value in a kernel's uniform `Params` struct: four bytes, in the order of the WGSL struct, same name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Param {
    /// A `u32` field.
    U(&'static str, u32),
    /// An `f32` field.
    F(&'static str, f32),
}

impl Param {
    /// A size or a count.
    ///
    /// # Panics
    /// If the size does not fit into 32 bits; the graph refuses such tensors before.
    pub fn size(name: &'static str, value: usize) -> Self {
        Self::U(name, u32::try_from(value).expect("sizes are below 2^32"))
    }

    /// Name of the field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::U(name, _) | Self::F(name, _) => name,
        }
    }

    /// The four bytes of the field.
    pub fn bytes(&self) -> [u8; 4] {
        match self {
            Self::U(_, value) => value.to_le_bytes(),
            Self::F(_, value) => value.to_le_bytes(),
        }
    }
}

/// The device code of a kernel for one problem. The entry point is always `main`.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The WGSL body, `shaders/<name>.wgsl`.
    pub wgsl: &'static str,
    /// Values the composer writes as `const NAME: u32` in front of the body: sizes of local arrays and switches.
    pub constants: Vec<(&'static str, u32)>,
    /// Fields of the uniform `Params` struct, in order.
    pub params: Vec<Param>,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
}

/// One dispatch of a kernel: what it runs, and what it binds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What runs.
    pub program: Program,
    /// The kernel's operands in binding order, those that only another stage binds as left out; then, of a kernel in
    /// several stages, the one that they alone know: memory that the first leaves for the next.
    pub operands: Vec<Operand>,
}

impl Stage {
    /// What the stages share besides the operands of their kernel, of which there are `operands`.
    pub fn shared(&self, operands: usize) -> Option<&Operand> {
        self.operands.get(operands)
    }

    /// What the module expects at its bindings.
    pub fn bindings(&self) -> Vec<Binding> {
        std::iter::once(Binding::Uniform).chain(self.operands.iter().map(Operand::binding)).collect()
    }

    /// Makes it the stage for a residual that lies where the first output will: it is read there and not bound.
    pub fn read_in_place(&mut self) {
        for (name, value) in &mut self.program.constants {
            match *name {
                names::HAS_RESIDUAL => *value = 0,
                names::IN_PLACE => *value = 1,
                _ => {}
            }
        }
        self.operands
            .iter_mut()
            .filter(|operand| operand.name == names::RESIDUAL)
            .for_each(|operand| operand.present = false);
    }
}

/// Folds a count of workgroups into a grid whose axes stay within WebGPU's 65,535. The shader gets the flat number
/// back from `flat_group` and leaves if it is beyond the count.
pub fn folded_grid(groups: usize) -> [u32; 3] {
    const LIMIT: usize = 65_535;
    let y = groups.div_ceil(LIMIT).max(1);
    let x = groups.div_ceil(y).max(1);
    [u32::try_from(x).expect("at most 65,535"), u32::try_from(y).expect("sizes are below 2^32"), 1]
}

/// What a kernel has to do, whatever the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulates of contractions (matrix products, convolutions, attention): the paper's "FLOPs".
    pub macs: u64,
    /// Floating-point operations, contractions included (two per multiply-accumulate).
    pub flops: u64,
}

impl Cost {
    /// The cost of `macs` multiply-accumulates and nothing else.
    pub fn macs(macs: usize) -> Self {
        Self { macs: macs as u64, flops: 2 * macs as u64 }
    }

    /// The cost of an element-wise kernel: `per_element` operations on each of `elements`.
    pub fn elementwise(elements: usize, per_element: usize) -> Self {
        Self { macs: 0, flops: (elements * per_element) as u64 }
    }
}

/// How far a result may be from the reference: `|got - want| <= absolute + relative * max(|want|, scale) + rounding *
/// max(row, scale)`,
/// where `scale` is the root mean square of what was wanted, and `row` that of the last axis the value lies in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed whatever the size of the value.
    pub absolute: f64,
    /// Allowed in proportion to the value.
    pub relative: f64,
    /// Allowed in proportion to the row: what factors cost that were rounded to f16, see [`Variant::rounds`].
    pub rounding: f64,
}

impl Tolerance {
    /// Not a bit of difference: integers, copies.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0, rounding: 0.0 };

    /// For a sum of `terms` products, each rounded to f32: `4 * sqrt(terms)` units of rounding, at least 16.
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

/// One problem of one kernel. Object-safe: the graph, the tests and the benches hold `Box<dyn Kernel>`.
pub trait Kernel: ParamsJson + fmt::Debug + Send + Sync {
    /// The one name: of the file pair, the shader's label, the test, the bench and the errors.
    fn name(&self) -> &'static str;

    /// Why no form of the kernel solves this problem, if so: what the others may take for granted.
    fn refusal(&self) -> Option<&'static str> {
        None
    }

    /// Operands in binding order (binding 0 is the uniform `Params`): what is read first, then what is written.
    fn operands(&self) -> Vec<Operand>;

    /// The programs that solve this problem, of which a device runs one; see [`choose`](crate::variant::choose).
    fn variants(&self) -> Vec<Variant> {
        vec![Variant::ONLY]
    }

    /// The device code of one of the variants, with its constants, parameters and grid; of one in several stages the first's.
    fn program(&self, variant: &Variant) -> Program;

    /// The dispatches of one of the variants, in order.
    fn stages(&self, variant: &Variant) -> Vec<Stage> {
        vec![Stage { program: self.program(variant), operands: self.operands() }]
    }

    /// Work to be done.
    fn cost(&self) -> Cost;

    /// Largest allowed difference from the reference when stored as f32.
    fn tolerance(&self) -> Tolerance;

    /// The truth, in plain loops and f64. `inputs` are the read operands in order, dense, in PyTorch's orientation,
    /// empty where an optional one is left out; the result holds the written operands.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>>;

    /// Whether the first output may take the place of the operand `residual` on a GPU: no invocation writes what another
    /// one still reads. The program then knows the constant `IN_PLACE`, see [`Stage::read_in_place`].
    fn residual_in_place(&self) -> bool {
        false
    }

    /// The CPU form. `inputs` are the read operands in order, dense, *packed* by their `host` layout, empty where left out.
    /// u32 operands are passed as the same bytes (`bytemuck::cast_slice`). `outputs` are written completely.
    fn cpu(&self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]);

    /// What consumers could do as they read, so that this step need not be, or not all of it.
    fn prologue_offer(&self) -> Option<PrologueOffer> {
        None
    }

    /// The same problem where `operand` is read like that: its sizes may change, its meaning does not.
    fn with_prologue(&self, _operand: &str, _op: &PrologueOp) -> Option<Box<dyn Kernel>> {
        None
    }

    /// What producers of an operand could do as they write, so that this step need not be.
    fn epilogue_offers(&self) -> Vec<EpilogueOffer> {
        Vec::new()
    }

    /// The same problem whose output is written like that.
    fn with_epilogue(&self, _op: &EpilogueOp) -> Option<Box<dyn Kernel>> {
        None
    }
}

/// Storage buffers of a dispatch that every device has.
pub const MAX_BUFFERS: usize = 8;

/// Why a problem with these operands fits no device, if so.
pub(crate) fn too_many(operands: &[Operand]) -> Option<&'static str> {
    let present = operands.iter().filter(|operand| operand.present).count();
    (present > MAX_BUFFERS).then_some("no more than eight operands may be there")
}

/// Whether a kernel reads a matrix of weights.
pub fn has_weights(kernel: &dyn Kernel) -> bool {
    kernel.operands().iter().any(|operand| operand.dtype == DType::Weight)
}

/// Bytes a kernel has to move at least once where tensors are stored as `storage`: values without their padding, and the
/// scales of int8 weights.
pub fn bytes_moved(kernel: &dyn Kernel, storage: Storage) -> usize {
    let bytes = |o: &Operand| {
        o.host_len() * storage.bytes(o.dtype) + storage.scale_bytes(o.dtype, &o.layout.packed_shape(&o.shape))
    };
    kernel.operands().iter().filter(|o| o.present).map(bytes).sum()
}

/// The activation at the end of a kernel. Spelt the same in `shaders/common/activation.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `u`
    #[default]
    None,
    /// `max(u, 0)`
    Relu,
    /// `u * sigmoid(u)`, also called swish
    Silu,
    /// `u * Phi(u)`, the exact form with the error function
    Gelu,
    /// `u * sigmoid(1.702 u)`, CLIP's
    QuickGelu,
}

impl Activation {
    /// Every activation, for cases.
    pub const ALL: [Self; 5] = [Self::None, Self::Relu, Self::Silu, Self::Gelu, Self::QuickGelu];

    /// The number by which the shader knows it.
    pub fn code(self) -> u32 {
        self as u32
    }
}

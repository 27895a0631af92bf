//! The tensors of a kernel: what they are, and how devices want them.

use crate::kernel::{Shape, elements, padded};
use crate::layout::Layout;
use crate::storage::WeightType;
use mobilediffusion_runtime::Binding;

/// Element type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// The storage type the plan was recorded for: f32 or f16.
    Elem,
    /// A matrix of weights, its first axis the output channels: stored as `Elem` or in 8 bits.
    Weight,
    /// Always f32: statistics, sampler state, timesteps.
    F32,
    /// Always u32: token ids, rgba8 pixels. Never padded.
    U32,
}

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only read.
    Read,
    /// Written completely; what was there before is not read.
    Write,
}

/// One tensor a kernel reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Name in the WGSL module, in case files and in errors.
    pub name: &'static str,
    /// Read or written.
    pub access: Access,
    /// Element type.
    pub dtype: DType,
    /// Shape as in the file: weights keep PyTorch's orientation.
    pub shape: Shape,
    /// How the kernel wants it packed on a GPU.
    pub layout: Layout,
    /// How its CPU form wants it packed.
    pub host: Layout,
    /// False if this problem leaves an optional operand out: the composed module does not declare it.
    pub present: bool,
}

impl Operand {
    fn new(name: &'static str, access: Access, shape: impl Into<Shape>) -> Self {
        Self {
            name,
            access,
            dtype: DType::Elem,
            shape: shape.into(),
            layout: Layout::Rows,
            host: Layout::Rows,
            present: true,
        }
    }

    /// A tensor of activations or weights that is read.
    pub fn read(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::new(name, Access::Read, shape)
    }

    /// A matrix of weights, which a device may store in fewer bits than other floats.
    pub fn weight(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::read(name, shape).dtype(DType::Weight)
    }

    /// A tensor that is written completely.
    pub fn write(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::new(name, Access::Write, shape)
    }

    /// The same operand with another element type.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The same operand, packed.
    pub fn layout(mut self, layout: Layout) -> Self {
        (self.layout, self.host) = (layout, layout);
        self
    }

    /// The same operand, packed otherwise for the CPU form.
    pub fn host(mut self, layout: Layout) -> Self {
        self.host = layout;
        self
    }

    /// How a CPU device wants it packed that stores matrices of weights like this. In 8 bits it keeps those that products
    /// read as they are; what a convolution transforms or reads tap by tap stays in f32.
    pub fn host_layout(&self, weights: WeightType) -> Layout {
        match (self.host, self.dtype, weights) {
            (Layout::Panels, DType::Weight, WeightType::Int8) => Layout::Int8Panels,
            (host, ..) => host,
        }
    }

    /// The same operand, left out unless `present`.
    pub fn optional(mut self, present: bool) -> Self {
        self.present = present;
        self
    }

    /// What the module expects at the operand's binding.
    pub fn binding(&self) -> Binding {
        match self.access {
            _ if !self.present => Binding::Absent,
            Access::Read => Binding::Read,
            Access::Write => Binding::Write,
        }
    }

    /// Elements on the host: dense, zero for an operand that is left out.
    pub fn host_len(&self) -> usize {
        if self.present { elements(&self.shape) } else { 0 }
    }

    /// Shape on the device: packed, last axis padded (u32 operands are not).
    pub fn device_shape(&self) -> Shape {
        let packed = self.layout.packed_shape(&self.shape);
        if self.dtype == DType::U32 { packed } else { padded(&packed) }
    }
}

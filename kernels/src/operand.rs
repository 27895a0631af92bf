//! Operands: the tensors that a kernel reads and writes, and their layouts on devices.

use crate::kernel::{Shape, elements};
use crate::layout::Layout;
use crate::panels::Format;
use crate::storage::{Storage, WeightType};
use mobilediffusion_runtime::Binding;

/// Element type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// The float type that the plan is stored in: f32 or f16, see [`Storage`](crate::Storage).
    Elem,
    /// A matrix of weights whose first axis are the output channels. Stored as `Elem`, or in 16 or 8 bits.
    Weight,
    /// A matrix of weights of which a GPU holds sums. Stored in 8 bits if other weights are, else as `Elem`: sums of 16-bit
    /// weights may need more bits.
    WeightSum,
    /// Always f32: statistics, sampler state and timesteps.
    F32,
    /// Always u32: token ids and rgba8 pixels. Never padded.
    U32,
}

impl DType {
    /// Returns whether this is the type of a matrix of weights.
    pub fn is_weight(self) -> bool {
        matches!(self, Self::Weight | Self::WeightSum)
    }
}

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The operand is only read.
    Read,
    /// Every element is written; the previous contents are not read.
    Write,
}

/// One tensor that a kernel reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Name in the WGSL module, in case files and in errors. Names that are compared elsewhere are in
    /// [`names`](crate::names).
    pub name: &'static str,
    /// Whether the operand is read or written.
    pub access: Access,
    /// Element type.
    pub dtype: DType,
    /// Shape in the weights file or case file. Weights keep PyTorch's orientation.
    pub shape: Shape,
    /// Layout in which the operand is packed on a GPU.
    pub layout: Layout,
    /// Layout in which the operand is packed for the CPU form.
    pub host: Layout,
    /// `false` if this problem leaves the optional operand out. The composed WGSL module then does not declare it.
    pub present: bool,
}

impl Operand {
    /// Returns the number of bytes, as it is packed on a GPU that stores tensors as `storage`.
    pub fn bytes(&self, storage: Storage) -> usize {
        storage.tensor_bytes(self.dtype, &self.layout.packed_shape(&self.shape))
    }

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

    /// Makes an operand that is read, of type [`DType::Elem`] in layout [`Layout::Rows`].
    pub fn read(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::new(name, Access::Read, shape)
    }

    /// Makes a matrix of weights, which a device may store in fewer bits than other floats.
    pub fn weight(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::read(name, shape).dtype(DType::Weight)
    }

    /// Makes an operand that is written completely, of type [`DType::Elem`] in layout [`Layout::Rows`].
    pub fn write(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self::new(name, Access::Write, shape)
    }

    /// Sets the element type.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets the layout on the GPU and for the CPU form.
    pub fn layout(mut self, layout: Layout) -> Self {
        (self.layout, self.host) = (layout, layout);
        self
    }

    /// Sets the layout for the CPU form alone.
    pub fn host(mut self, layout: Layout) -> Self {
        self.host = layout;
        self
    }

    /// Returns the layout for a CPU device that stores matrices of weights as `weights`. Types other than f32 apply to
    /// weights in panels, which products read as they are. Weights that a convolution transforms or reads tap by tap
    /// lie in f32, with values that are rounded to the type.
    pub fn host_layout(&self, weights: WeightType) -> Layout {
        match (self.host, self.dtype) {
            (Layout::Panels { layers, format: Format::Floats }, DType::Weight) => {
                Layout::Panels { layers, format: Format::of(weights, elements(&self.shape[1..])) }
            }
            (host, _) => host,
        }
    }

    /// Packs values in the file's orientation for the CPU form, on a device that stores matrices of weights as `weights`.
    /// An operand that is left out has none.
    pub fn pack_for_cpu(&self, weights: WeightType, values: Vec<f32>) -> Vec<f32> {
        if self.present { self.host_layout(weights).pack(&self.shape, values) } else { Vec::new() }
    }

    /// Marks the operand as left out unless `present`.
    pub fn optional(mut self, present: bool) -> Self {
        self.present = present;
        self
    }

    /// Returns what the WGSL module expects at the operand's binding.
    pub fn binding(&self) -> Binding {
        match self.access {
            _ if !self.present => Binding::Absent,
            Access::Read => Binding::Read,
            Access::Write => Binding::Write,
        }
    }

    /// Returns the number of elements on the host: without padding, and zero for an operand that is left out.
    pub(crate) fn host_len(&self) -> usize {
        if self.present { elements(&self.shape) } else { 0 }
    }
}

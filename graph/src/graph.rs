//! The graph itself: a list of kernels over named tensors, in execution order.

use crate::node::Node;
use mobilediffusion_kernels::kernel::{Shape, elements};
use mobilediffusion_kernels::{DType, Storage};
use std::collections::HashMap;
use std::ops::Range;

/// Handle to a tensor of a [`Graph`].
///
/// A handle is only valid for the graph that returned it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) id: usize,
    shape: Shape,
}

impl Tensor {
    /// Returns the shape, channels last: `[n, h, w, c]` for feature maps, `[n, l, c]` for tokens.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the size of the last axis: the number of channels.
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Returns the product of all axes but the last: the number of pixels or tokens of all images.
    pub fn rows(&self) -> usize {
        elements(&self.shape[..self.shape.len().saturating_sub(1)])
    }

    /// Returns a handle to the same memory with other leading axes, such as `[n, h, w, c]` as `[n, h * w, c]`.
    ///
    /// # Panics
    /// If the number of elements or of channels changes, which is a bug in the model code.
    #[must_use]
    pub fn reshaped(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(elements(&shape), elements(&self.shape), "a reshape keeps the elements");
        assert_eq!(shape.last(), self.shape.last(), "a reshape keeps the channels");
        Self { id: self.id, shape }
    }
}

/// Source of a tensor's values.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Written by the caller before a run. The number is the input's bit in
    /// [`Recording::masks`](crate::Recording::masks).
    Input(u32),
    /// Loaded from a checkpoint: the rows of one weight, or of several that steps read as one, one below the other.
    Weight(Vec<WeightRows>),
    /// Given when the graph is built.
    Constant(Vec<f32>),
    /// Written by the step of this number.
    Step(usize),
    /// Rows of another tensor, which a step writes.
    Part(Part),
}

/// Place of a tensor within another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of the tensor that contains this one.
    pub of: usize,
    /// Row at which this one begins, where all axes but the last count as one. On a GPU, its bytes begin at a multiple of
    /// [`BINDING_ALIGNMENT`](mobilediffusion_kernels::kernel::BINDING_ALIGNMENT).
    pub row: usize,
}

/// Rows of a checkpoint's weight that a tensor holds.
///
/// These are all of the weight, unless it is larger than the storage binding that every device supports; then it is split
/// into several tensors along the first axis. A tensor may hold the rows of several weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightRows {
    /// Name of the weight in the checkpoint.
    pub name: String,
    /// Shape of the whole weight, as in the checkpoint.
    pub shape: Shape,
    /// Range of the first axis that the tensor holds.
    pub rows: Range<usize>,
}

impl WeightRows {
    pub(crate) fn whole(name: String, shape: Shape) -> Self {
        Self { name, rows: 0..shape.first().copied().unwrap_or(1), shape }
    }

    /// Returns the shape of the tensor: that of the weight, restricted to the selected rows.
    pub(crate) fn selected_shape(&self) -> Shape {
        rows_of(&self.shape, self.rows.len())
    }
}

/// Returns `shape` with its first axis replaced by `rows`.
pub(crate) fn rows_of(shape: &[usize], rows: usize) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows;
    }
    shape
}

/// Returns the number of elements at one index of the first axis.
pub(crate) fn row_len(shape: &[usize]) -> usize {
    elements(shape) / shape.first().copied().unwrap_or(1).max(1)
}

/// Description of a tensor of a graph.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Name: a weight's name in the checkpoint (of several, that of the first), the caller's name of an input, or the path
    /// of the node that writes it.
    pub name: String,
    /// Shape, channels last; a weight's shape is that of the checkpoint, and that of several has the rows of all.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// Source of the values.
    pub origin: Origin,
}

impl TensorInfo {
    /// Returns whether this tensor can be bound to an operand of type `dtype`. A matrix of weights has to be a weight,
    /// because only weights are encoded for it when they are loaded.
    pub(crate) fn is_of(&self, dtype: DType) -> bool {
        let loaded = matches!(self.origin, Origin::Weight(_));
        self.dtype == dtype || (loaded && self.dtype == DType::Elem && dtype.is_weight())
    }

    /// Returns the weights whose rows the tensor holds; none if it is no weight.
    pub(crate) fn sources(&self) -> &[WeightRows] {
        if let Origin::Weight(sources) = &self.origin { sources } else { &[] }
    }

    /// Returns the number of elements before row `row`, without padding.
    pub(crate) fn elements_before(&self, row: usize) -> usize {
        row * self.shape.last().copied().unwrap_or(1)
    }

    /// Returns the number of bytes on a GPU that stores tensors as `storage`.
    pub fn bytes(&self, storage: Storage) -> usize {
        storage.tensor_bytes(self.dtype, &self.shape)
    }

    /// Returns the number of bytes before row `row` on a GPU that stores tensors as `storage`.
    pub(crate) fn bytes_before(&self, row: usize, storage: Storage) -> usize {
        let channels = self.shape.last().copied().unwrap_or(1);
        if row == 0 { 0 } else { storage.tensor_bytes(self.dtype, &[row, channels]) }
    }
}

/// Builder of a network: a list of nodes over named tensors.
///
/// Every method that adds a layer checks shapes and types at once and names the layer by its path, which consists of
/// the enclosing [`scope`](Self::scope)s and the layer's own name. Weights are named by the same path, as in the
/// checkpoint.
#[derive(Debug, Default)]
pub struct Graph {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, usize)>,
    weights: HashMap<WeightRows, usize>,
    path: Vec<String>,
    inputs: u32,
    /// Mask of the inputs that are written before every run.
    pub(crate) every_run: u64,
    taps: bool,
}

impl Graph {
    /// Creates an empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty graph in which every [`tap`](Self::tap) becomes an output, for comparisons block by block.
    pub fn with_taps() -> Self {
        Self { taps: true, ..Self::default() }
    }

    /// Returns the nodes in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns names and shapes of the weights as in the checkpoint, each weight once, in order of first use.
    pub fn weights(&self) -> Vec<(String, Shape)> {
        // A weight that is split into several tensors is listed by the one that holds its first row.
        let first = self.tensors.iter().flat_map(TensorInfo::sources).filter(|source| source.rows.start == 0);
        first.map(|source| (source.name.clone(), source.shape.clone())).collect()
    }

    /// Calls `build` with `name` appended to the current path, and returns its result. The paths of nodes, weights and
    /// errors inside begin with that path.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.to_owned());
        let built = build(self);
        self.path.pop();
        built
    }

    /// Returns `name` prefixed with the current path.
    pub(crate) fn path_of(&self, name: &str) -> String {
        let parts = self.path.iter().map(String::as_str).chain([name]).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(".")
    }

    pub(crate) fn add(&mut self, name: String, shape: Shape, dtype: DType, origin: Origin) -> Tensor {
        self.tensors.push(TensorInfo { name, shape: shape.clone(), dtype, origin });
        Tensor { id: self.tensors.len() - 1, shape }
    }

    /// Adds an input: a tensor that the caller writes before a run. An input keeps its values until it is written
    /// again.
    ///
    /// # Panics
    /// If the graph already has 64 inputs: each step records the inputs it depends on in a mask of 64 bits.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        assert!(self.inputs < 64, "a graph has at most 64 inputs");
        self.inputs += 1;
        self.add(name.to_owned(), shape.into(), dtype, Origin::Input(self.inputs - 1))
    }

    /// Adds an [`input`](Self::input) that changes from run to run.
    ///
    /// Steps that depend on it count as depending on every input. Their results are recomputed in every run, and take
    /// no memory between runs.
    ///
    /// # Panics
    /// If the graph already has 64 inputs.
    pub fn input_of_every_run(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let input = self.input(name, shape, dtype);
        self.every_run |= 1 << (self.inputs - 1);
        input
    }

    /// Returns the weight `name` under the current path, of shape `shape` in the checkpoint. Repeated calls return the
    /// same tensor.
    pub fn weight(&mut self, name: &str, shape: impl Into<Shape>) -> Tensor {
        self.weight_rows(WeightRows::whole(self.path_of(name), shape.into()))
    }

    /// Returns a tensor that holds some rows of a weight.
    pub(crate) fn weight_rows(&mut self, source: WeightRows) -> Tensor {
        let (shape, next) = (source.selected_shape(), self.tensors.len());
        let id = *self.weights.entry(source.clone()).or_insert(next);
        if id == next {
            self.add(source.name.clone(), shape.clone(), DType::Elem, Origin::Weight(vec![source]));
        }
        Tensor { id, shape }
    }

    /// Adds a tensor whose values are given when the graph is built.
    pub(crate) fn constant(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType, values: Vec<f32>) -> Tensor {
        self.add(self.path_of(name), shape.into(), dtype, Origin::Constant(values))
    }

    /// Declares `tensor` to be an output, which the caller can read by `name` after a run.
    pub fn output(&mut self, name: &str, tensor: &Tensor) {
        self.outputs.push((name.to_owned(), tensor.id));
    }

    /// Marks `tensor` as the result of `name` under the current path, or of the current scope if `name` is empty.
    ///
    /// In a graph made by [`with_taps`](Self::with_taps) the tensor becomes an output named by that path; in other
    /// graphs the call does nothing.
    pub fn tap(&mut self, name: &str, tensor: &Tensor) {
        if self.taps {
            self.outputs.push((self.path_of(name), tensor.id));
        }
    }
}

//! A model as a list of kernels over named tensors, in the order they run. Shapes are checked when a node is added.

use crate::error::GraphError;
use mobilediffusion_kernels::kernel::{Shape, elements};
use mobilediffusion_kernels::{Access, Cast, DType, Kernel, Operand};
use std::ops::Range;

/// A handle to a tensor of a graph.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) id: usize,
    shape: Shape,
}

impl Tensor {
    /// Its shape, channels last.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its channels: the last axis.
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Everything before the channels, multiplied: pixels or tokens of all images.
    pub fn rows(&self) -> usize {
        elements(&self.shape[..self.shape.len().saturating_sub(1)])
    }

    /// The same memory with other leading axes: `[n, h, w, c]` as `[n, h * w, c]`.
    ///
    /// # Panics
    /// If the number of elements or of channels changes: a bug of the model code.
    pub fn reshaped(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(elements(&shape), elements(&self.shape), "a reshape keeps the elements");
        assert_eq!(shape.last(), self.shape.last(), "a reshape keeps the channels");
        Self { id: self.id, shape }
    }
}

/// Where a tensor comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Written by the caller before a run; the number is its bit in the masks of steps.
    Input(u32),
    /// Loaded from a checkpoint.
    Weight(WeightRows),
    /// Known when the graph is built.
    Constant(Vec<f32>),
    /// Written by the step of this number.
    Step(usize),
}

/// What is loaded of a weight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightRows {
    /// Shape of the whole weight, as in the file.
    pub shape: Shape,
    /// Rows that are wanted: all, unless the weight is larger than what many devices bind.
    pub rows: Range<usize>,
}

impl WeightRows {
    pub(crate) fn whole(shape: Shape) -> Self {
        Self { rows: 0..shape.first().copied().unwrap_or(1), shape }
    }

    /// Shape of the rows that are wanted.
    pub fn part(&self) -> Shape {
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = self.rows.len();
        }
        shape
    }
}

/// A tensor of a graph.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The checkpoint's name of a weight, the caller's name of an input, else the path of the node that writes it.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Its element type.
    pub dtype: DType,
    /// Where it comes from.
    pub origin: Origin,
}

impl TensorInfo {
    /// Whether an operand of this type may be this tensor. Only what is loaded is stored otherwise than floats are.
    pub(crate) fn is_of(&self, dtype: DType) -> bool {
        let loaded = matches!(self.origin, Origin::Weight(_));
        self.dtype == dtype || (loaded && self.dtype == DType::Elem && dtype == DType::Weight)
    }
}

/// A kernel with its operands: a step of the run.
#[derive(Debug)]
pub struct Node {
    /// Path in the model, such as `mid_block.attentions.2.transformer_blocks.0.attn1`.
    pub path: String,
    /// What it computes.
    pub kernel: Box<dyn Kernel>,
    /// Tensor of each operand in binding order; none where an optional one is left out.
    pub operands: Vec<Option<usize>>,
}

/// A model under construction.
#[derive(Debug, Default)]
pub struct Graph {
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, usize)>,
    path: Vec<String>,
    inputs: u32,
    /// Inputs that are written before every run, as a mask.
    pub(crate) every_run: u64,
    taps: bool,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty graph in which every [`tap`](Self::tap) becomes an output: for comparing block by block.
    pub fn with_taps() -> Self {
        Self { taps: true, ..Self::default() }
    }

    /// The steps, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Weights with their names and shapes in the file, each once, in order of first use.
    pub fn weights(&self) -> Vec<(String, Shape)> {
        let weight = |t: &TensorInfo| match &t.origin {
            // The first rows stand for the whole.
            Origin::Weight(source) if source.rows.start == 0 => Some((t.name.clone(), source.shape.clone())),
            _ => None,
        };
        self.tensors.iter().filter_map(weight).collect()
    }

    /// Builds a part of the model under `name`: its weights and errors carry the name.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.to_owned());
        let built = build(self);
        self.path.pop();
        built
    }

    /// `name` under the current path.
    pub(crate) fn path_of(&self, name: &str) -> String {
        let parts = self.path.iter().map(String::as_str).chain([name]).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(".")
    }

    fn add(&mut self, name: String, shape: Shape, dtype: DType, origin: Origin) -> Tensor {
        self.tensors.push(TensorInfo { name, shape: shape.clone(), dtype, origin });
        Tensor { id: self.tensors.len() - 1, shape }
    }

    /// A tensor the caller writes before a run.
    ///
    /// # Panics
    /// At the 65th input: steps keep the inputs they depend on in a mask of 64 bits.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        assert!(self.inputs < 64, "a graph has at most 64 inputs");
        self.inputs += 1;
        self.add(name.to_owned(), shape.into(), dtype, Origin::Input(self.inputs - 1))
    }

    /// Like [`input`](Self::input), for what changes from run to run: whatever depends on it is computed in every run and
    /// not kept for the next one, so that it does not take memory between runs.
    ///
    /// # Panics
    /// As [`input`](Self::input).
    pub fn input_of_every_run(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        self.every_run |= 1 << self.inputs;
        self.input(name, shape, dtype)
    }

    /// A weight `name` under the current path, of `shape` in the file; the same handle if it was asked for before.
    pub fn weight(&mut self, name: &str, shape: impl Into<Shape>) -> Tensor {
        self.weight_part(name, WeightRows::whole(shape.into()))
    }

    /// Some rows of a weight.
    pub(crate) fn weight_part(&mut self, name: &str, source: WeightRows) -> Tensor {
        let (name, shape) = (self.path_of(name), source.part());
        let origin = Origin::Weight(source);
        match self.tensors.iter().position(|t| t.name == name && t.origin == origin) {
            Some(id) => Tensor { id, shape },
            None => self.add(name, shape, DType::Elem, origin),
        }
    }

    /// A tensor known when the graph is built.
    pub fn constant(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType, values: Vec<f32>) -> Tensor {
        self.add(self.path_of(name), shape.into(), dtype, Origin::Constant(values))
    }

    /// Makes a tensor readable after a run.
    pub fn output(&mut self, name: &str, tensor: &Tensor) {
        self.outputs.push((name.to_owned(), tensor.id));
    }

    /// Marks what `name` under the current path computes (an empty name: the current scope): an output of that path in
    /// a graph with taps, nothing otherwise.
    pub fn tap(&mut self, name: &str, tensor: &Tensor) {
        if self.taps {
            self.outputs.push((self.path_of(name), tensor.id));
        }
    }

    /// Adds a step that runs `kernel` on `inputs` (in binding order, none for an optional operand left out) and gives
    /// the tensors it writes, in the shapes of its operands.
    ///
    /// # Errors
    /// If the kernel refuses the problem, or an input's elements or channels are not what its operand wants.
    pub(crate) fn step(
        &mut self,
        name: &str,
        kernel: impl Kernel + 'static,
        inputs: &[Option<&Tensor>],
    ) -> Result<Vec<Tensor>, GraphError> {
        let path = self.path_of(name);
        // Shaders are trusted with what this lets through.
        if let Some(reason) = kernel.refusal() {
            return Err(GraphError::Refused { node: path, kernel: kernel.name(), reason });
        }
        let declared = kernel.operands();
        if declared.iter().any(|operand| operand.present && elements(&operand.shape) == 0) {
            let expected = "at least one in each operand".to_owned();
            return Err(GraphError::Size { node: path, what: "number of elements", expected, found: 0 });
        }
        let read = declared.iter().filter(|operand| operand.access == Access::Read);
        let mut operands = Vec::with_capacity(declared.len());
        // Whoever leaves the last operands out need not say so.
        for (operand, input) in read.zip(inputs.iter().copied().chain(std::iter::repeat(None))) {
            if let Some(tensor) = input {
                let is_weight = matches!(self.tensors[tensor.id].origin, Origin::Weight(_));
                let same_channels = is_weight || operand.shape.last() == tensor.shape.last();
                if elements(&operand.shape) != elements(&tensor.shape) || !same_channels {
                    return Err(GraphError::Shape {
                        node: path,
                        what: format!("operand `{}` of {}", operand.name, kernel.name()),
                        expected: operand.shape.clone(),
                        found: tensor.shape.clone(),
                    });
                }
            }
            operands.push(input.map(|tensor| self.typed(&path, operand, tensor)).transpose()?);
        }
        let node = self.nodes.len();
        let mut written = Vec::new();
        for operand in declared.into_iter().filter(|operand| operand.access == Access::Write) {
            if !operand.present {
                operands.push(None);
                continue;
            }
            let tensor = self.add(path.clone(), operand.shape, operand.dtype, Origin::Step(node));
            operands.push(Some(tensor.id));
            written.push(tensor);
        }
        self.nodes.push(Node { path, kernel: Box::new(kernel), operands });
        Ok(written)
    }

    /// The number of `tensor` in the type that `operand` takes. What is f32 and has to be stored like all floats of the
    /// plan is cast by a step of its own, once for all its users.
    fn typed(&mut self, path: &str, operand: &Operand, tensor: &Tensor) -> Result<usize, GraphError> {
        match (self.tensors[tensor.id].dtype, operand.dtype) {
            (_, expected) if self.tensors[tensor.id].is_of(expected) => Ok(tensor.id),
            (DType::F32, DType::Elem) => {
                let is_cast = |node: &&Node| node.kernel.name() == Cast::NAME && node.operands[0] == Some(tensor.id);
                if let Some(cast) = self.nodes.iter().find(is_cast) {
                    return Ok(cast.operands[1].expect("a cast writes"));
                }
                let name = self.tensors[tensor.id].name.clone();
                let kernel = Cast { rows: tensor.rows(), c: tensor.channels() };
                let written = self.add(name.clone(), tensor.shape.clone(), DType::Elem, Origin::Step(self.nodes.len()));
                let operands = vec![Some(tensor.id), Some(written.id)];
                self.nodes.push(Node { path: name, kernel: Box::new(kernel), operands });
                Ok(written.id)
            }
            (found, expected) => {
                let what = format!("operand `{}`", operand.name);
                Err(GraphError::Type { node: path.to_owned(), what, expected, found })
            }
        }
    }

    /// Like [`step`](Self::step) for a kernel with one output, which takes the given shape.
    pub(crate) fn step_one(
        &mut self,
        name: &str,
        kernel: impl Kernel + 'static,
        inputs: &[Option<&Tensor>],
        shape: impl Into<Shape>,
    ) -> Result<Tensor, GraphError> {
        let written = self.step(name, kernel, inputs)?;
        Ok(written[0].reshaped(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::{Linear, Prologue};

    #[test]
    fn what_a_kernel_refuses_is_no_step() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 4], DType::Elem);
        // All four channels from a second tensor.
        let prologue = Prologue { joined: 4, ..Prologue::default() };
        let linear = Linear { rows: 1, k: 4, cols: 4, prologue, ..Linear::default() };
        let refused = graph.step("proj", linear, &[Some(&x)]).expect_err("nothing is left of `x`");
        assert!(matches!(refused, GraphError::Refused { kernel: "linear", .. }), "{refused}");
        let empty = graph.input("empty", [0, 4], DType::Elem);
        let linear = Linear { rows: 0, k: 4, cols: 4, ..Linear::default() };
        let refused = graph.step("proj", linear, &[Some(&empty)]).expect_err("there is nothing").to_string();
        assert_eq!(refused, "`proj`: number of elements is 0, expected at least one in each operand");
    }
}

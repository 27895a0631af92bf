//! Steps: how a kernel joins a graph. Operands are checked when a step is added.

use crate::error::GraphError;
use crate::graph::{Graph, Origin, Tensor};
use crate::node::Node;
use mobilediffusion_kernels::kernel::{Shape, checked_elements, elements, too_many};
use mobilediffusion_kernels::{Access, Cast, DType, Kernel, Operand};

/// Largest number of elements of an operand. No memory holds as many, and the bytes of all operands can be added up.
const MOST_ELEMENTS: u64 = 1 << 45;

/// Returns what is wrong with the operands that a kernel declares, if anything is.
fn misdeclared(operands: &[Operand]) -> Option<&'static str> {
    if !operands.is_sorted_by_key(|operand| operand.access == Access::Write) {
        return Some("it declares an operand that is read behind one that is written");
    }
    let writes_nothing = operands.iter().all(|operand| !operand.present || operand.access == Access::Read);
    too_many(operands).or(writes_nothing.then_some("it writes nothing"))
}

impl Graph {
    /// Adds a step that runs `kernel` on `inputs`, and returns the first tensor that it writes, in the shape of its
    /// operand. Fusion adds the outputs that kernels may have besides.
    ///
    /// The typed methods add the kernels of this project. An application adds one of its own by this method; its name must
    /// differ from those of [`FAMILIES`](mobilediffusion_kernels::FAMILIES). Sessions trust what a kernel declares, and
    /// its shader runs without bounds checks: compare it with its reference first, by
    /// [`check_case`](mobilediffusion_kernels::runner::check_case) on a device that `Gpu::open_checked` opened.
    ///
    /// `inputs` are in binding order, `None` for an optional operand that is absent. Trailing `None`s may be left out.
    ///
    /// ```
    /// # fn main() -> Result<(), mobilediffusion_graph::GraphError> {
    /// use mobilediffusion_graph::Graph;
    /// use mobilediffusion_kernels::{Add, DType};
    ///
    /// let mut graph = Graph::new();
    /// let [a, b] = ["a", "b"].map(|name| graph.input(name, [2, 4], DType::Elem));
    /// let sum = graph.step("sum", Add { rows: 2, c: 4 }, &[Some(&a), Some(&b)])?;
    /// assert_eq!(sum.shape(), [2, 4]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the kernel does not support the problem or declares operands that no device can bind, an operand has no
    /// elements, an input is missing, has no operand, or does not have the number of elements, the number of channels or
    /// the type that its operand requires.
    pub fn step(
        &mut self,
        name: &str,
        kernel: impl Kernel + 'static,
        inputs: &[Option<&Tensor>],
    ) -> Result<Tensor, GraphError> {
        let path = self.path_of(name);
        // Shaders run without bounds checks, so everything they cannot handle has to be rejected here.
        if let Some(reason) = kernel.refusal() {
            return Err(GraphError::Unsupported { node: path, kernel: kernel.name(), reason });
        }
        let declared = kernel.operands();
        if let Some(reason) = misdeclared(&declared) {
            return Err(GraphError::Unsupported { node: path, kernel: kernel.name(), reason });
        }
        for operand in declared.iter().filter(|operand| operand.present) {
            let found = checked_elements(&operand.shape).unwrap_or(usize::MAX);
            if found == 0 || found as u64 > MOST_ELEMENTS {
                let (what, expected) = ("number of elements", format!("1 to {MOST_ELEMENTS} in each operand"));
                return Err(GraphError::Size { node: path, what, expected, found });
            }
        }
        let read: Vec<&Operand> = declared.iter().filter(|operand| operand.access == Access::Read).collect();
        if inputs.len() > read.len() {
            let expected = format!("at most {}, as many as `{}` reads", read.len(), kernel.name());
            return Err(GraphError::Size { node: path, what: "number of inputs", expected, found: inputs.len() });
        }
        let mut operands = Vec::with_capacity(declared.len());
        for (operand, input) in read.into_iter().zip(inputs.iter().copied().chain(std::iter::repeat(None))) {
            if operand.present != input.is_some() {
                let (kernel, operand) = (kernel.name(), operand.name);
                return Err(GraphError::Presence { node: path, kernel, operand, given: input.is_some() });
            }
            operands.push(input.map(|tensor| self.bound(&path, kernel.name(), operand, tensor)).transpose()?);
        }
        let node = self.nodes.len();
        let mut first = None;
        for operand in declared.into_iter().filter(|operand| operand.access == Access::Write) {
            if !operand.present {
                operands.push(None);
                continue;
            }
            let tensor = self.add(path.clone(), operand.shape, operand.dtype, Origin::Step(node));
            operands.push(Some(tensor.id));
            first.get_or_insert(tensor);
        }
        self.nodes.push(Node { path, kernel: Box::new(kernel), operands });
        Ok(first.expect("the kernel writes something"))
    }

    /// Returns the number of a tensor that an operand of a kernel can be bound to, with the values of `tensor`.
    fn bound(&mut self, path: &str, kernel: &str, operand: &Operand, tensor: &Tensor) -> Result<usize, GraphError> {
        let is_weight = matches!(self.tensors[tensor.id].origin, Origin::Weight(_));
        let same_channels = is_weight || operand.shape.last() == tensor.shape().last();
        if elements(&operand.shape) != elements(tensor.shape()) || !same_channels {
            return Err(GraphError::Shape {
                node: path.to_owned(),
                what: format!("operand `{}` of {kernel}", operand.name),
                expected: operand.shape.clone(),
                found: tensor.shape().to_vec(),
            });
        }
        self.typed(path, operand, tensor)
    }

    /// Returns the number of a tensor that holds the values of `tensor` in the type of `operand`. An f32 tensor that
    /// has to be read in the storage type is converted by a cast step, which all its users share.
    fn typed(&mut self, path: &str, operand: &Operand, tensor: &Tensor) -> Result<usize, GraphError> {
        match (self.tensors[tensor.id].dtype, operand.dtype) {
            (_, expected) if self.tensors[tensor.id].is_of(expected) => Ok(tensor.id),
            (DType::F32, DType::Elem) => {
                let is_cast = |node: &&Node| node.kernel.name() == Cast::NAME && node.operands[0] == Some(tensor.id);
                if let Some(cast) = self.nodes.iter().find(is_cast) {
                    return Ok(cast.operands[1].expect("a cast has an output"));
                }
                let name = self.tensors[tensor.id].name.clone();
                let kernel = Cast { rows: tensor.rows(), c: tensor.channels() };
                let written =
                    self.add(name.clone(), tensor.shape().to_vec(), DType::Elem, Origin::Step(self.nodes.len()));
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

    /// Adds a [`step`](Self::step), and returns its result in the given shape.
    pub(crate) fn step_as(
        &mut self,
        name: &str,
        kernel: impl Kernel + 'static,
        inputs: &[Option<&Tensor>],
        shape: impl Into<Shape>,
    ) -> Result<Tensor, GraphError> {
        Ok(self.step(name, kernel, inputs)?.reshaped(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobilediffusion_kernels::{Activation, Add, Linear, Prologue};

    #[test]
    fn an_unsupported_problem_is_an_error() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 4], DType::Elem);
        // All four channels come from the second tensor.
        let prologue = Prologue { joined: 4, ..Prologue::default() };
        let linear = Linear { rows: 1, k: 4, cols: 4, prologue, ..Linear::default() };
        let refused = graph.step("proj", linear, &[Some(&x)]).expect_err("nothing is left of `x`");
        assert!(matches!(refused, GraphError::Unsupported { kernel: "linear", .. }), "{refused}");
        let empty = graph.input("empty", [0, 4], DType::Elem);
        let linear = Linear { rows: 0, k: 4, cols: 4, ..Linear::default() };
        let refused = graph.step("proj", linear, &[Some(&empty)]).expect_err("there is nothing").to_string();
        assert_eq!(refused, "`proj`: number of elements is 0, expected 1 to 35184372088832 in each operand");
        for rows in [1 << 43, usize::MAX / 2] {
            let huge = graph.input("huge", [rows + 1, 4], DType::Elem);
            let refused = graph.activate(&huge, Activation::Relu, 1.0).expect_err("no memory is so large").to_string();
            assert!(refused.contains("number of elements"), "{refused}");
        }
    }

    #[test]
    fn inputs_are_those_that_the_kernel_reads() {
        let mut graph = Graph::new();
        let [x, w] = [graph.input("x", [2, 4], DType::Elem), graph.weight("w", [4, 4])];
        let bias = graph.weight("bias", [4]);
        let mut add = |name, inputs: &[Option<&Tensor>]| {
            let refused = graph.step(name, Add { rows: 2, c: 4 }, inputs);
            refused.expect_err("the inputs do not fit").to_string()
        };
        assert_eq!(add("sum", &[Some(&x)]), "`sum`: operand `b` of add is missing, expected a tensor");
        assert_eq!(add("sum", &[None, Some(&x)]), "`sum`: operand `a` of add is missing, expected a tensor");
        assert_eq!(
            add("sum", &[Some(&x), Some(&x), None]),
            "`sum`: number of inputs is 3, expected at most 2, as many as `add` reads"
        );
        let linear = |bias| Linear { rows: 2, k: 4, cols: 4, bias, ..Linear::default() };
        let inputs = [Some(&x), Some(&w), Some(&bias)];
        let refused = graph.step("proj", linear(false), &inputs).expect_err("it has no bias").to_string();
        assert_eq!(refused, "`proj`: operand `bias` of linear is a tensor, expected none in this problem");
        let refused = graph.step("proj", linear(true), &inputs[..2]).expect_err("it has a bias").to_string();
        assert_eq!(refused, "`proj`: operand `bias` of linear is missing, expected a tensor");
        assert!(graph.step("proj", linear(true), &inputs).is_ok() && graph.nodes().len() == 1, "it has a bias");
    }

    #[test]
    fn operands_that_no_device_can_bind_are_refused() {
        let (read, write) = (Operand::read("x", [1, 4]), Operand::write("y", [1, 4]));
        assert_eq!(misdeclared(&[read.clone(), write.clone()]), None);
        for (operands, words) in [
            (vec![read.clone()], "writes nothing"),
            (vec![read.clone(), write.clone().optional(false)], "writes nothing"),
            (vec![write.clone(), read.clone()], "behind one that is written"),
            ([vec![read; 8], vec![write]].concat(), "at most eight"),
        ] {
            assert!(misdeclared(&operands).is_some_and(|reason| reason.contains(words)), "{words}: {operands:?}");
        }
    }
}

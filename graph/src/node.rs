//! Steps of a run.

use mobilediffusion_kernels::{Access, Kernel, Operand};

/// Kernel with its operands: one step of a run.
#[derive(Debug)]
pub struct Node {
    /// Path in the model, such as `mid_block.attentions.2.transformer_blocks.0.attn1`.
    pub path: String,
    /// Kernel, with its problem size.
    pub kernel: Box<dyn Kernel>,
    /// Number of the tensor of each operand in binding order; `None` for an optional operand that is absent.
    pub operands: Vec<Option<usize>>,
}

impl Node {
    /// Returns the kernel's operands in binding order, each with its tensor; `None` for one that is absent.
    pub fn bound(&self) -> impl Iterator<Item = (Operand, Option<usize>)> {
        self.kernel.operands().into_iter().zip(self.operands.iter().copied())
    }

    /// Returns the operands that are present, each with its tensor.
    pub fn present(&self) -> impl Iterator<Item = (Operand, usize)> {
        self.bound().filter_map(|(operand, tensor)| Some((operand, tensor?)))
    }

    /// Returns the tensors that the step writes.
    pub fn written(&self) -> impl Iterator<Item = usize> {
        self.present().filter(|(operand, _)| operand.access == Access::Write).map(|(_, tensor)| tensor)
    }
}

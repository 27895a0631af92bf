//! Problems in candle on the CPU, since candle has no backend for graphics APIs.

use crate::{Failure, Problem, Run};
use candle_core::{Device, Tensor};

/// Problem as tensors of candle.
pub(crate) struct Candle {
    conv: bool,
    left: Tensor,
    right: Tensor,
    result: Option<Tensor>,
}

impl Candle {
    pub(crate) fn new(problem: &Problem) -> Result<Self, Failure> {
        let (left, right) = problem.operands();
        let cpu = &Device::Cpu;
        Ok(match *problem {
            Problem::Product { rows, k, cols } => Self {
                conv: false,
                left: Tensor::from_vec(left, (rows, k), cpu)?,
                right: Tensor::from_vec(right, (cols, k), cpu)?.t()?,
                result: None,
            },
            Problem::Conv { h, w, ci, co } => Self {
                conv: true,
                left: Tensor::from_vec(left, (1, ci, h, w), cpu)?,
                right: Tensor::from_vec(right, (co, ci, 3, 3), cpu)?,
                result: None,
            },
        })
    }
}

impl Run for Candle {
    fn run(&mut self, runs: usize) -> Result<(), Failure> {
        for _ in 0..runs {
            let (left, right) = (&self.left, &self.right);
            self.result = Some(if self.conv { left.conv2d(right, 1, 1, 1, 1)? } else { left.matmul(right)? });
        }
        Ok(())
    }

    fn results(&self) -> Result<Vec<f32>, Failure> {
        let result = self.result.as_ref().ok_or("nothing was computed")?;
        Ok(result.flatten_all()?.to_vec1()?)
    }
}

//! Problems in burn on wgpu, with burn's own tuning: in WGSL, or in SPIR-V with the feature `spirv`.

use crate::{Failure, Problem, Run};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};

/// Problem as tensors of burn.
pub(crate) struct Burn {
    device: Device,
    operands: Operands,
    result: Option<Tensor<1>>,
}

enum Operands {
    Product(Tensor<2>, Tensor<2>),
    Conv(Tensor<4>, Tensor<4>),
}

impl Burn {
    /// Prepares a problem on the first adapter of a kind, as `mobilediffusion devices` names it.
    pub(crate) fn new(problem: &Problem, kind: &str, half: bool) -> Result<Self, Failure> {
        let device = Device::wgpu(match kind {
            "discrete GPU" => DeviceKind::DiscreteGpu(0),
            "integrated GPU" => DeviceKind::IntegratedGpu(0),
            "software" => DeviceKind::Cpu,
            // `devices` says no more of other kinds, of which virtual ones are the most likely.
            "GPU" => DeviceKind::VirtualGpu(0),
            _ => DeviceKind::DefaultDevice,
        });
        let options = (&device, if half { DType::F16 } else { DType::F32 });
        let (left, right) = problem.operands();
        let operands = match *problem {
            Problem::Product { rows, k, cols } => Operands::Product(
                Tensor::from_data(TensorData::new(left, [rows, k]), options),
                Tensor::<2>::from_data(TensorData::new(right, [cols, k]), options).transpose(),
            ),
            Problem::Conv { h, w, ci, co } => Operands::Conv(
                Tensor::from_data(TensorData::new(left, [1, ci, h, w]), options),
                Tensor::from_data(TensorData::new(right, [co, ci, 3, 3]), options),
            ),
        };
        device.sync().map_err(|error| format!("{error:?}"))?;
        Ok(Self { device, operands, result: None })
    }
}

impl Run for Burn {
    fn run(&mut self, runs: usize) -> Result<(), Failure> {
        // Without fusion burn enqueues every operation, also if its result is dropped.
        for _ in 0..runs {
            self.result = Some(match &self.operands {
                Operands::Product(left, right) => left.clone().matmul(right.clone()).flatten(0, 1),
                Operands::Conv(x, w) => {
                    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
                    conv2d(x.clone(), w.clone(), None, options).flatten(0, 3)
                }
            });
        }
        Ok(self.device.sync().map_err(|error| format!("{error:?}"))?)
    }

    fn results(&self) -> Result<Vec<f32>, Failure> {
        let result = self.result.clone().ok_or("nothing was computed")?;
        let data = result.into_data().convert::<f32>();
        Ok(data.to_vec::<f32>().map_err(|error| format!("{error:?}"))?)
    }
}

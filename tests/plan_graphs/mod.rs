//! Graphs, weights and devices for the tests of plans.

mod in_place;
pub(crate) mod simulation;

use mobilediffusion_graph::{Conv, Device, Graph, GroupNorm, Linear, Origin, Recording, Tensor};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Activation, DType, Storage};
use mobilediffusion_runtime::{Gpu, Select};
use mobilediffusion_tests::adapters;
use std::sync::{Arc, OnceLock};

/// Opens the best GPU, if there is an adapter.
fn any_gpu() -> Option<Arc<Gpu>> {
    let open = || pollster::block_on(Gpu::open(&Select::Best)).expect("an adapter opens");
    (!adapters().is_empty()).then(|| Arc::new(open()))
}

/// Returns the CPU and, if there is an adapter, one GPU that is opened once for all tests of this program.
pub(crate) fn cpu_and_best_gpu() -> Vec<Device> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    let gpu = GPU.get_or_init(any_gpu).clone().map(|gpu| Device::Gpu(gpu, Storage::F32));
    [Some(Device::CPU), gpu].into_iter().flatten().collect()
}

/// Returns the inputs of a recording: name, number of elements, and bit in the masks of steps.
pub(crate) fn inputs(recording: &Recording) -> Vec<(String, usize, u32)> {
    let input = |t: &mobilediffusion_graph::TensorInfo| match t.origin {
        Origin::Input(bit) => Some((t.name.clone(), elements(&t.shape), bit)),
        _ => None,
    };
    recording.tensors().iter().filter_map(input).collect()
}

/// Builds a graph of chains and branches on two inputs. Each operation takes one or two of the tensors before it.
pub(crate) fn random_graph(operations: &[(u8, u8, u8)]) -> Graph {
    let mut g = Graph::new();
    let mut made: Vec<Tensor> = vec![g.input("x", [1, 4, 4, 5], DType::Elem), g.input("y", [1, 4, 4, 4], DType::Elem)];
    for (number, &(kind, a, b)) in operations.iter().enumerate() {
        let (a, b) = (made[usize::from(a) % made.len()].clone(), made[usize::from(b) % made.len()].clone());
        let name = format!("layer.{number}");
        let result = match kind {
            0 => g.scope(&name, |g| g.activate(&a, Activation::Silu, 0.5)),
            1 if a.channels() + b.channels() <= 24 => g.scope(&name, |g| g.concat(&a, &b)),
            2 => g.conv2d(&a, &name, Conv { residual: Some(&b), ..Conv::to(b.channels()) }),
            3 => g.group_norm(&a, &name, GroupNorm { groups: 1, eps: 1e-5 }, Activation::Relu),
            _ => {
                let layer = Linear { cols: b.channels(), bias: true, residual: Some(&b), ..Linear::default() };
                g.linear(&a, &name, layer)
            }
        };
        made.push(result.expect("every operation fits"));
    }
    // One output is the last tensor; the other has to be kept while later ones come and go.
    for (name, tensor) in [("last", made.len() - 1), ("middle", 2 + (made.len() - 2) / 2 % (made.len() - 2))] {
        g.output(name, &made[tensor]);
    }
    g
}

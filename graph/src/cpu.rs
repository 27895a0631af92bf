//! The CPU device: runs steps through the CPU forms of their kernels, with all tensors in one arena.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::progress::OnProgress;
use crate::record::Recording;
use crate::weights::{Resident, Weights};
use mobilediffusion_kernels::Access;
use mobilediffusion_kernels::cpu::awake;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::panels::Aligned;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Alignment of tensors in the arena in bytes: a cache line.
const ALIGNMENT: usize = 64;

/// Location of an operand's tensor.
#[derive(Clone, Debug)]
enum Place {
    /// Elements of the arena.
    Arena(Range<usize>),
    /// Weight or constant with memory of its own.
    Resident(Arc<Aligned>),
    /// Optional operand that the step does not use.
    Absent,
}

/// Locations of a step's operands, in binding order.
#[derive(Debug)]
struct Operands {
    inputs: Vec<Place>,
    outputs: Vec<Range<usize>>,
}

/// Memory of a session on the CPU: its arena, and references to its weights.
#[derive(Debug)]
pub(crate) struct CpuMemory {
    arena: Aligned,
    /// Range of elements of each planned tensor in the arena.
    placed: Vec<Option<Range<usize>>>,
    steps: Vec<Operands>,
}

impl CpuMemory {
    /// Returns the bytes of the arena, which is all the memory of the session besides the weights.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.arena.len() as u64
    }

    pub(crate) fn new(
        recording: &Recording,
        weights: &Weights,
        on_progress: OnProgress<'_>,
    ) -> Result<Self, GraphError> {
        let bytes_of = |t: &TensorInfo| (4 * elements(&t.shape)).next_multiple_of(ALIGNMENT);
        let (offsets, bytes) = recording.packing(bytes_of);
        let range = |(offset, tensor): (&Option<usize>, &TensorInfo)| {
            offset.map(|bytes| bytes / 4..bytes / 4 + elements(&tensor.shape))
        };
        let len = bytes / 4;
        let mut arena = Aligned::with_capacity(len).map_err(|_| GraphError::out_of_host_memory("arena", bytes))?;
        let placed: Vec<_> = offsets.iter().zip(&recording.tensors).map(range).collect();
        let mut steps = Vec::with_capacity(recording.nodes.len());
        for (step, node) in recording.nodes.iter().enumerate() {
            let mut operands = Operands { inputs: Vec::new(), outputs: Vec::new() };
            for (declared, tensor) in node.bound() {
                let Some(tensor) = tensor else {
                    match declared.access {
                        Access::Read => operands.inputs.push(Place::Absent),
                        Access::Write => operands.outputs.push(0..0),
                    }
                    continue;
                };
                let info = &recording.tensors[tensor];
                let place = match &info.origin {
                    Origin::Weight(sources) => Place::Resident(cpu_values(weights.get(sources, &declared)?)),
                    Origin::Constant(values) => Place::Resident(Arc::new(Aligned::from(values.as_slice()))),
                    Origin::Input(_) | Origin::Step(_) | Origin::Part(_) => {
                        Place::Arena(placed[tensor].clone().expect("inputs and results of steps are planned"))
                    }
                };
                match (declared.access, place) {
                    (Access::Write, Place::Arena(range)) => operands.outputs.push(range),
                    (_, place) => operands.inputs.push(place),
                }
            }
            steps.push(operands);
            let (done, total) = (step + 1, recording.nodes.len());
            // A large arena takes seconds to fill with zeros, so each step fills a part.
            arena.grow_to(len / total * done);
            on_progress(done, total).check(done, total)?;
        }
        arena.grow_to(len);
        Ok(Self { arena, placed, steps })
    }

    pub(crate) fn run(
        &mut self,
        recording: &Recording,
        steps: &[usize],
        on_progress: OnProgress<'_>,
    ) -> Result<(), GraphError> {
        awake(|| {
            for (done, &step) in steps.iter().enumerate() {
                on_progress(done, steps.len()).check(done, steps.len())?;
                self.step(recording, step);
            }
            Ok(())
        })
    }

    fn step(&mut self, recording: &Recording, step: usize) {
        let Operands { inputs, outputs } = &self.steps[step];
        let (rest, mut written) = split(&mut self.arena, outputs);
        let read = inputs.iter().map(|place| match place {
            Place::Arena(range) => find(&rest, range),
            Place::Resident(values) => values,
            Place::Absent => &[],
        });
        recording.nodes[step].kernel.cpu(&read.collect::<Vec<_>>(), &mut written);
    }

    /// Runs the steps in order and returns the seconds that each took.
    pub(crate) fn time(&mut self, recording: &Recording, steps: &[usize]) -> Vec<f64> {
        let one = |&step: &usize| {
            let start = Instant::now();
            self.step(recording, step);
            start.elapsed().as_secs_f64()
        };
        awake(|| steps.iter().map(one).collect())
    }

    fn range(&self, tensor: usize) -> Range<usize> {
        self.placed[tensor].clone().expect("inputs and outputs are planned")
    }

    pub(crate) fn write(&mut self, tensor: usize, values: &[f32]) {
        let range = self.range(tensor);
        self.arena[range].copy_from_slice(values);
    }

    pub(crate) fn read(&self, tensor: usize) -> Vec<f32> {
        self.arena[self.range(tensor)].to_vec()
    }

    pub(crate) fn copy(&mut self, from: usize, to: usize) {
        let (from, to) = (self.range(from), self.range(to).start);
        self.arena.copy_within(from, to);
    }

    pub(crate) fn poison(&mut self) {
        self.arena.fill(f32::NAN);
    }
}

/// Pieces of the arena between the outputs of a step, each with the index of its first element.
type Rest<'a> = Vec<(usize, &'a [f32])>;

/// Splits the arena into the outputs of a step, in binding order, and the rest, which holds the inputs. Inputs and
/// outputs are alive at the same step, so the planner has given them disjoint ranges.
fn split<'a>(arena: &'a mut [f32], outputs: &[Range<usize>]) -> (Rest<'a>, Vec<&'a mut [f32]>) {
    let mut order: Vec<usize> = (0..outputs.len()).collect();
    order.sort_by_key(|&i| (outputs[i].start, outputs[i].end));
    let mut written: Vec<(usize, &mut [f32])> = Vec::with_capacity(outputs.len());
    let mut rest = Rest::with_capacity(outputs.len() + 1);
    let (mut at, mut tail) = (0, arena);
    for i in order {
        let (before, from) = tail.split_at_mut(outputs[i].start - at);
        let (output, after) = from.split_at_mut(outputs[i].len());
        rest.push((at, before));
        written.push((i, output));
        (at, tail) = (outputs[i].end, after);
    }
    rest.push((at, tail));
    written.sort_by_key(|(i, _)| *i);
    (rest, written.into_iter().map(|(_, output)| output).collect())
}

/// Returns the values of an input. No output overlaps it, so it lies in the last piece that begins at or before it.
fn find<'a>(rest: &Rest<'a>, range: &Range<usize>) -> &'a [f32] {
    let piece = rest.partition_point(|(start, _)| *start <= range.start) - 1;
    let (start, values) = rest[piece];
    &values[range.start - start..range.end - start]
}

fn cpu_values(resident: Resident) -> Arc<Aligned> {
    match resident {
        Resident::Cpu(values) => values,
        Resident::Gpu(_) => unreachable!("the CPU device keeps its weights in host memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flow, Graph, WeightLoader};
    use mobilediffusion_kernels::{Activation, DType, Device};
    use std::error::Error;
    use std::ops::Range;

    struct NoWeights;

    impl WeightLoader for NoWeights {
        fn load_part(
            &self,
            name: &str,
            _: &[usize],
            _: Range<usize>,
        ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
            Err(format!("there is no {name}").into())
        }
    }

    #[test]
    fn memory_is_allocated_before_a_step_is_reported() {
        let mut g = Graph::new();
        let x = g.input("x", [1 << 15, 1 << 30], DType::F32);
        let y = g.activate(&x, Activation::Silu, 1.0).expect("the shape fits");
        g.output("y", &y);
        let weights = Weights::new(Device::CPU, Box::new(NoWeights));
        let mut reported = 0;
        let made = CpuMemory::new(&Recording::new(g), &weights, &mut |_, _| {
            reported += 1;
            Flow::Continue
        });
        let error = made.expect_err("no machine can address 256 TiB").to_string();
        assert!(error.contains("arena") && reported == 0, "after {reported} steps: {error}");
    }
}

//! The CPU device: the same steps through each kernel's CPU form, in one arena packed by the planner.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::plan::Sharing;
use crate::record::Recording;
use crate::weights::{Resident, Weights};

use mobilediffusion_kernels::Access;
use mobilediffusion_kernels::cpu::awake;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::panels::Aligned;
use mobilediffusion_runtime::RuntimeError;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Tensors begin at multiples of a cache line.
const ALIGNMENT: usize = 64;

/// Where a tensor is.
#[derive(Clone, Debug)]
enum Place {
    Arena(Range<usize>),
    Resident(Arc<Aligned>),
    Absent,
}

/// One step: operands in binding order.
#[derive(Debug)]
struct Operands {
    inputs: Vec<Place>,
    outputs: Vec<Range<usize>>,
}

/// Arena and weights of a session.
#[derive(Debug)]
pub(crate) struct CpuMemory {
    arena: Aligned,
    /// Elements of the arena that are each planned tensor's.
    placed: Vec<Option<Range<usize>>>,
    steps: Vec<Operands>,
}

impl CpuMemory {
    /// Bytes of all that the session has for itself.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.arena.len() as u64
    }

    pub(crate) fn new(
        recording: &Recording,
        weights: &mut Weights,
        sharing: Sharing,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self, GraphError> {
        let bytes_of = |t: &TensorInfo| (4 * elements(&t.shape)).next_multiple_of(ALIGNMENT);
        let (offsets, bytes) = recording.packing(bytes_of, sharing);
        let range = |(offset, tensor): (&Option<usize>, &TensorInfo)| {
            offset.map(|bytes| bytes / 4..bytes / 4 + elements(&tensor.shape))
        };
        let placed: Vec<_> = offsets.iter().zip(&recording.tensors).map(range).collect();
        let mut steps = Vec::with_capacity(recording.nodes.len());
        for (step, node) in recording.nodes.iter().enumerate() {
            let mut operands = Operands { inputs: Vec::new(), outputs: Vec::new() };
            for (declared, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                let Some(tensor) = *tensor else {
                    match declared.access {
                        Access::Read => operands.inputs.push(Place::Absent),
                        Access::Write => operands.outputs.push(0..0),
                    }
                    continue;
                };
                let info = &recording.tensors[tensor];
                let place = match &info.origin {
                    Origin::Weight(source) => Place::Resident(host(weights.get(&info.name, source, declared)?)),
                    Origin::Constant(values) => Place::Resident(Arc::new(Aligned::from(values.as_slice()))),
                    Origin::Input(_) | Origin::Step(_) => {
                        Place::Arena(placed[tensor].clone().expect("what steps write is planned"))
                    }
                };
                match (declared.access, place) {
                    (Access::Write, Place::Arena(range)) => operands.outputs.push(range),
                    (_, place) => operands.inputs.push(place),
                }
            }
            steps.push(operands);
            let (done, total) = (step + 1, recording.nodes.len());
            if !go_on(done, total) {
                return Err(GraphError::Stopped { done, total });
            }
        }
        let refused = |_| RuntimeError::OutOfMemory { what: "arena".to_owned(), bytes: Some(bytes as u64) };
        let arena = Aligned::zeros(bytes / 4).map_err(refused).map_err(GraphError::at("arena"))?;
        Ok(Self { arena, placed, steps })
    }

    pub(crate) fn run(
        &mut self,
        recording: &Recording,
        steps: &[usize],
        go_on: &mut (dyn FnMut(usize, usize) -> bool + Send),
    ) -> Result<(), GraphError> {
        awake(|| {
            for (done, &step) in steps.iter().enumerate() {
                if !go_on(done, steps.len()) {
                    return Err(GraphError::Stopped { done, total: steps.len() });
                }
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

    /// Seconds of each of the steps, run in order.
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

/// What lies between the outputs of a step, each piece with its first element.
type Rest<'a> = Vec<(usize, &'a [f32])>;

/// Takes the outputs of a step out of the arena, in their order, and leaves the rest to be read. Everything a step
/// reads or writes is alive at that step, so the planner gave it bytes of its own.
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

/// An input of a step: no output cuts it, so it lies in the last piece that begins at or before it.
fn find<'a>(rest: &Rest<'a>, range: &Range<usize>) -> &'a [f32] {
    let piece = rest.partition_point(|(start, _)| *start <= range.start) - 1;
    let (start, values) = rest[piece];
    &values[range.start - start..range.end - start]
}

fn host(resident: Resident) -> Arc<Aligned> {
    match resident {
        Resident::Host(values) => values,
        Resident::Device(_) => unreachable!("the CPU device keeps its weights on the host"),
    }
}

//! The CPU device: the same steps through each kernel's CPU form, in memory placed by the same planner.

use crate::error::GraphError;
use crate::graph::{Origin, TensorInfo};
use crate::record::Recording;
use crate::weights::{Device, Resident, Weights};
use mobilediffusion_kernels::Access;
use mobilediffusion_kernels::kernel::elements;
use std::sync::Arc;

/// Where a tensor is.
#[derive(Clone, Debug)]
enum Place {
    Slot(usize, usize),
    Resident(Arc<Vec<f32>>),
    Absent,
}

/// One step: operands in binding order.
#[derive(Debug)]
struct Operands {
    inputs: Vec<Place>,
    outputs: Vec<(usize, usize)>,
}

/// Slots and weights of a session.
#[derive(Debug)]
pub(crate) struct CpuMemory {
    slots: Vec<Vec<f32>>,
    /// Slot and length of each planned tensor.
    placed: Vec<Option<(usize, usize)>>,
    steps: Vec<Operands>,
}

impl CpuMemory {
    pub(crate) fn new(
        recording: &Recording,
        weights: &mut Weights,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, GraphError> {
        let (slot_of, placement) = recording.placement(|t: &TensorInfo| 4 * elements(&t.shape));
        let len = |tensor: usize| elements(&recording.tensors[tensor].shape);
        let placed: Vec<_> = slot_of.iter().enumerate().map(|(t, slot)| slot.map(|slot| (slot, len(t)))).collect();
        let mut steps = Vec::with_capacity(recording.nodes.len());
        for (step, node) in recording.nodes.iter().enumerate() {
            let mut operands = Operands { inputs: Vec::new(), outputs: Vec::new() };
            for (declared, tensor) in node.kernel.operands().iter().zip(&node.operands) {
                let Some(tensor) = *tensor else {
                    operands.inputs.push(Place::Absent);
                    continue;
                };
                let info = &recording.tensors[tensor];
                let place = match &info.origin {
                    Origin::Weight(shape) => Place::Resident(host(weights.get(&info.name, shape, declared.layout)?)),
                    Origin::Constant(values) => {
                        Place::Resident(host(Device::Cpu.place(&info.name, info.dtype, &info.shape, values.clone())?))
                    }
                    Origin::Input(_) | Origin::Step(_) => {
                        let (slot, len) = placed[tensor].expect("what steps write is planned");
                        Place::Slot(slot, len)
                    }
                };
                match (declared.access, place) {
                    (Access::Write, Place::Slot(slot, len)) => operands.outputs.push((slot, len)),
                    (_, place) => operands.inputs.push(place),
                }
            }
            steps.push(operands);
            on_progress(step + 1, recording.nodes.len());
        }
        let slots = placement.slot_bytes.iter().map(|bytes| vec![0.0; bytes / 4]).collect();
        Ok(Self { slots, placed, steps })
    }

    pub(crate) fn run(
        &mut self,
        recording: &Recording,
        steps: &[usize],
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<(), GraphError> {
        for (done, &step) in steps.iter().enumerate() {
            if !go_on(done, steps.len()) {
                return Err(GraphError::Stopped { done, total: steps.len() });
            }
            let operands = &self.steps[step];
            // A step's outputs never share a slot with its inputs or with each other: all are alive at this step.
            let mut written: Vec<Vec<f32>> =
                operands.outputs.iter().map(|&(slot, _)| std::mem::take(&mut self.slots[slot])).collect();
            {
                let inputs: Vec<&[f32]> = operands
                    .inputs
                    .iter()
                    .map(|place| match place {
                        Place::Slot(slot, len) => &self.slots[*slot][..*len],
                        Place::Resident(values) => values.as_slice(),
                        Place::Absent => &[],
                    })
                    .collect();
                let mut outputs: Vec<&mut [f32]> =
                    written.iter_mut().zip(&operands.outputs).map(|(slot, &(_, len))| &mut slot[..len]).collect();
                recording.nodes[step].kernel.cpu(&inputs, &mut outputs);
            }
            for (&(slot, _), memory) in operands.outputs.iter().zip(written) {
                self.slots[slot] = memory;
            }
        }
        Ok(())
    }

    fn slot(&self, tensor: usize) -> (usize, usize) {
        self.placed[tensor].expect("inputs and outputs are planned")
    }

    pub(crate) fn write(&mut self, tensor: usize, values: &[f32]) {
        let (slot, len) = self.slot(tensor);
        self.slots[slot][..len].copy_from_slice(values);
    }

    pub(crate) fn read(&self, tensor: usize) -> Vec<f32> {
        let (slot, len) = self.slot(tensor);
        self.slots[slot][..len].to_vec()
    }

    pub(crate) fn copy(&mut self, from: usize, to: usize) {
        let values = self.read(from);
        self.write(to, &values);
    }
}

fn host(resident: Resident) -> Arc<Vec<f32>> {
    match resident {
        Resident::Host(values) => values,
        Resident::Device(_) => unreachable!("the CPU device keeps its weights on the host"),
    }
}

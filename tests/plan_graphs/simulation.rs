//! Simulation of a plan's memory that stores the owner of each unit instead of values. It knows nothing of lifetimes,
//! and finds every step that reads a tensor which was overwritten.

use mobilediffusion_graph::plan::Place;
use mobilediffusion_graph::{Origin, Recording};
use mobilediffusion_kernels::kernel::BINDING_ALIGNMENT;

/// Simulated memory: the tensor that each unit of each arena holds.
pub(crate) struct Memory<'a> {
    recording: &'a Recording,
    /// Arena, first unit and number of units of each planned tensor.
    places: Vec<Option<(usize, usize, usize)>>,
    owner: Vec<Vec<Option<usize>>>,
    /// Whether a step must not write into an arena that it reads.
    one_way: bool,
    /// Steps whose output takes the place of their residual.
    in_place: Vec<bool>,
    started: bool,
}

impl<'a> Memory<'a> {
    /// Creates the memory in units of `unit` bytes, to which all places must be aligned.
    pub(crate) fn new(
        recording: &'a Recording,
        places: &[Option<Place>],
        bytes_of: impl Fn(usize) -> usize,
        (unit, one_way): (usize, bool),
    ) -> Self {
        let place = |(tensor, place): (usize, &Option<Place>)| {
            place.map(|Place { arena, offset }| {
                assert!(offset.is_multiple_of(unit), "tensor {tensor} begins at {offset}, no multiple of {unit}");
                (arena, offset / unit, bytes_of(tensor).div_ceil(unit))
            })
        };
        let places: Vec<_> = places.iter().enumerate().map(place).collect();
        let arenas = places.iter().flatten().map(|place| place.0 + 1).max().unwrap_or(0);
        let end = |arena| places.iter().flatten().filter(|p| p.0 == arena).map(|p| p.1 + p.2).max().unwrap_or(0);
        let owner = (0..arenas).map(|arena| vec![None; end(arena)]).collect();
        Self { recording, places, owner, one_way, in_place: vec![false; recording.nodes().len()], started: false }
    }

    fn units(&mut self, tensor: usize) -> Option<&mut [Option<usize>]> {
        let (arena, first, len) = self.places[tensor]?;
        Some(&mut self.owner[arena][first..first + len])
    }

    fn write(&mut self, tensor: usize) {
        self.units(tensor).expect("what is written is planned").fill(Some(tensor));
    }

    fn read(&mut self, tensor: usize) -> Result<(), String> {
        let written = owner(self.recording, tensor);
        let lost = self.units(tensor).is_some_and(|units| units.iter().any(|owner| *owner != Some(written)));
        if lost {
            Err(format!("`{}` (tensor {tensor}) is overwritten", self.recording.tensors()[tensor].name))
        } else {
            Ok(())
        }
    }

    /// Writes the inputs whose bits are set, runs the steps that depend on them, and reads every output. The first call
    /// writes every input and runs every step.
    pub(crate) fn run(&mut self, written: u64) -> Result<(), String> {
        let recording = self.recording;
        let written = if self.started { written } else { u64::MAX };
        for (tensor, info) in recording.tensors().iter().enumerate() {
            if let Origin::Input(bit) = info.origin
                && written & 1 << bit != 0
            {
                self.write(tensor);
            }
        }
        for (step, node) in recording.nodes().iter().enumerate() {
            if recording.masks()[step] & written == 0 && (self.started || recording.masks()[step] != 0) {
                continue;
            }
            let (outputs, inputs): (Vec<usize>, Vec<usize>) =
                node.operands.iter().flatten().partition(|&&t| recording.tensors()[t].origin == Origin::Step(step));
            for &input in &inputs {
                self.read(input).map_err(|lost| format!("step {step}, {}: {lost}", node.path))?;
                let arena = |tensor: usize| self.places[tensor].map(|place| place.0);
                if self.in_place[step] && self.places[input] == self.places[outputs[0]] {
                    continue;
                }
                if self.one_way && outputs.iter().any(|&output| arena(input).is_some() && arena(output) == arena(input))
                {
                    return Err(format!("step {step}, {}: reads and writes one arena", node.path));
                }
            }
            outputs.iter().for_each(|&output| self.write(output));
        }
        self.started = true;
        recording
            .outputs()
            .iter()
            .try_for_each(|(name, tensor)| self.read(*tensor).map_err(|lost| format!("output `{name}`: {lost}")))
    }
}

/// Returns the tensor that a step writes for `tensor`: itself, or the one that it is a part of.
fn owner(recording: &Recording, tensor: usize) -> usize {
    if let Origin::Part(part) = recording.tensors()[tensor].origin { part.of } else { tensor }
}

/// Simulates a plan for GPUs and for the CPU. The first run writes all inputs, each further one the inputs of its mask.
pub(crate) fn play(recording: &Recording, runs: &[u64]) -> Result<(), String> {
    use mobilediffusion_graph::TensorInfo;
    use mobilediffusion_graph::plan::NO_LIMIT;
    use mobilediffusion_kernels::Storage;
    let mut all = Vec::new();
    for storage in [Storage::F32, Storage::F16] {
        let plan = recording.arenas(storage, NO_LIMIT).expect("there is no limit");
        let bytes_of = |t: usize| recording.tensors()[t].bytes(storage);
        let memory = Memory::new(recording, &plan.places, bytes_of, (BINDING_ALIGNMENT, true));
        all.push(Memory { in_place: plan.in_place, ..memory });
    }
    let line = |t: &TensorInfo| (4 * t.shape.iter().product::<usize>()).next_multiple_of(64);
    let (offsets, _) = recording.packing(line);
    let places: Vec<_> = offsets.iter().map(|offset| offset.map(|offset| Place { arena: 0, offset })).collect();
    all.push(Memory::new(recording, &places, |t| line(&recording.tensors()[t]), (64, false)));
    for memory in &mut all {
        memory.run(u64::MAX)?;
        runs.iter().try_for_each(|&written| memory.run(written))?;
    }
    Ok(())
}

/// A simulation that finds nothing is worth something only if it finds plans that are wrong.
#[test]
fn wrong_places_are_found() {
    use mobilediffusion_graph::plan::NO_LIMIT;
    use mobilediffusion_kernels::Storage;
    let recording = Recording::new(mobilediffusion_tests::made_up::mini_denoise());
    let plan = recording.arenas(Storage::F32, NO_LIMIT).expect("there is no limit");
    let bytes_of = |t: usize| recording.tensors()[t].bytes(Storage::F32);
    let run = |places: &[Option<Place>], one_way: bool| {
        Memory::new(&recording, places, bytes_of, (BINDING_ALIGNMENT, one_way)).run(u64::MAX)
    };
    let same: Vec<_> = plan.places.iter().map(|place| place.map(|_| Place::default())).collect();
    let found = run(&same, false).expect_err("all tensors are at one place");
    assert!(found.contains("is overwritten"), "{found}");

    // Side by side in one arena nothing is overwritten, but a GPU must not read an arena that a step writes.
    let mut end = 0;
    let mut beside = vec![None; plan.places.len()];
    for (tensor, place) in beside.iter_mut().enumerate() {
        if plan.places[tensor].is_some() && owner(&recording, tensor) == tensor {
            *place = Some(Place { arena: 0, offset: end });
            end += bytes_of(tensor).next_multiple_of(BINDING_ALIGNMENT);
        }
    }
    for tensor in 0..beside.len() {
        let of = owner(&recording, tensor);
        if let (Some(within), Some(first), Some(place)) = (plan.places[tensor], plan.places[of], beside[of]) {
            beside[tensor] = Some(Place { offset: place.offset + within.offset - first.offset, ..place });
        }
    }
    run(&beside, false).expect("every tensor has a place of its own");
    let found = run(&beside, true).expect_err("all tensors are in one arena");
    assert!(found.ends_with("reads and writes one arena"), "{found}");

    // A step reads two tensors, of which one begins in the last unit of the other.
    let mut pairs = recording.nodes().iter().enumerate().filter_map(|(step, node)| {
        let planned = |t: &usize| {
            let is_own = owner(&recording, *t) == *t && recording.tensors()[*t].origin != Origin::Step(step);
            beside[*t].is_some() && is_own
        };
        let mut read = node.operands.iter().flatten().copied().filter(planned);
        let (a, b) = (read.next()?, read.next()?);
        (a != b).then_some((a, b))
    });
    let (a, b) = pairs.next_back().expect("a step reads two tensors");
    let mut shared = beside.clone();
    let units = bytes_of(a).div_ceil(BINDING_ALIGNMENT);
    shared[b] = beside[a].map(|place| Place { offset: place.offset + (units - 1) * BINDING_ALIGNMENT, ..place });
    let found = run(&shared, false).expect_err("two tensors share a unit");
    assert!(found.contains("is overwritten"), "{found}");
}

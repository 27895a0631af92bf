//! Variants: several programs of a kernel that solve the same problem, and the rule that takes one of them.
//!
//! A kernel lists its [`variants`](Kernel::variants) as plain data: what each asks of a device, how many workgroups it
//! has for this problem and what one of them costs. [`choose`] takes one by numbers alone, so a plan can say before it
//! runs, and without a device, which one every step gets. One variant of every kernel runs on every WebGPU device.

use crate::kernel::Kernel;
use crate::storage::{FloatType, Storage};
use crate::tuning::{Measured, Tuning, problem};
use mobilediffusion_runtime::{AdapterKind, Caps, Gpu, MatrixShape, MatrixType};

/// What a variant asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Invocations in a workgroup.
    pub invocations: u32,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: u32,
    /// Matrix units, and with them floats stored as [`FloatType::F16`].
    pub matrix: Option<MatrixUnit>,
}

/// What computes products of square matrices of f16 with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnit {
    /// Rows and columns of all three matrices.
    pub edge: u32,
    /// Invocations of the subgroup that computes one.
    pub subgroup: u32,
}

impl MatrixUnit {
    /// The one that kernels would use on a device, if it has any.
    pub fn of(caps: &Caps) -> Option<Self> {
        let subgroup = caps.subgroup_size?;
        [16, 8].map(|edge| Self { edge, subgroup }).into_iter().find(|unit| unit.met_by(caps))
    }

    /// Whether a device has it. This is the one check: what it turns down runs by a variant without matrices.
    pub fn met_by(&self, caps: &Caps) -> bool {
        let product = MatrixShape::square(self.edge, MatrixType::F16, MatrixType::F32);
        caps.shader_f16 && caps.subgroup_size == Some(self.subgroup) && caps.matrices.contains(&product)
    }
}

impl Needs {
    /// What every WebGPU device has.
    pub const PORTABLE: Self = Self { invocations: 256, workgroup_bytes: 16 << 10, matrix: None };

    /// Whether a device has it all, for tensors stored like that.
    pub fn met_by(&self, caps: &Caps, storage: Storage) -> bool {
        self.invocations <= caps.max_invocations
            && self.workgroup_bytes <= caps.max_workgroup_bytes
            && self.matrix.is_none_or(|matrix| storage.floats == FloatType::F16 && matrix.met_by(caps))
    }
}

/// One of the ways in which a kernel's shader solves a problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Its name among the kernel's: the tile, as `64x64`.
    pub name: &'static str,
    /// What it asks of a device.
    pub needs: Needs,
    /// Workgroups it has for this problem.
    pub groups: usize,
    /// Time of one workgroup beside the other variants': only ratios count.
    pub work: f64,
    /// Whether factors that the kernel makes are rounded to f16 before they are multiplied: normalised rows, weights of
    /// attention. Matrix units take nothing else, and as a tensor of its own in f16 it would be rounded too.
    pub rounds: bool,
}

impl Variant {
    /// That of a kernel with one program.
    pub const ONLY: Self = Self { name: "only", needs: Needs::PORTABLE, groups: 1, work: 1.0, rounds: false };

    /// Its time on a device beside the others' of the same problem, as far as one can tell without measuring: too few
    /// workgroups leave a part of the device idle.
    pub fn estimate(&self, machine: &Machine) -> f64 {
        self.groups.max(machine.busy_groups) as f64 * self.work
    }
}

/// What a choice depends on besides the problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// What the device can do.
    pub caps: Caps,
    /// How tensors are stored on it.
    pub storage: Storage,
    /// Workgroups that keep it busy: fewer take as long as these.
    pub busy_groups: usize,
    /// What was measured on it.
    pub tuned: Measured,
}

impl Machine {
    /// What is chosen for where nothing is known of the device but that it is one of WebGPU.
    pub const PORTABLE: Self =
        Self { caps: Caps::PORTABLE, storage: Storage::F32, busy_groups: 256, tuned: Measured::new() };

    /// A device that is open, where tensors are stored like that, with what the user's cache folder tells of it.
    pub fn of(gpu: &Gpu, storage: Storage) -> Self {
        // No API tells the compute units. Two workgroups for each of 128 keep the large GPUs of our day busy, and two
        // for each of 16 the small ones.
        let busy_groups = match gpu.adapter().kind {
            AdapterKind::Discrete | AdapterKind::Other => 256,
            AdapterKind::Integrated => 32,
            AdapterKind::Software => 8,
        };
        let (tuning, _) = Tuning::read(gpu);
        Self { caps: gpu.caps().clone(), storage, busy_groups, tuned: tuning.of(gpu.adapter()) }
    }
}

/// The variants of a kernel that a device can run on tensors stored like that.
pub fn runnable(kernel: &dyn Kernel, caps: &Caps, storage: Storage) -> Vec<Variant> {
    let mut variants = kernel.variants();
    variants.retain(|variant| variant.needs.met_by(caps, storage));
    variants
}

/// The variant that a device should run: the one that was measured to be the fastest, else the one of the least estimated
/// time. Of equal ones it is the first.
pub fn choose(kernel: &dyn Kernel, machine: &Machine) -> Variant {
    let fitting = runnable(kernel, &machine.caps, machine.storage);
    let tuned = machine.tuned.get(&problem(kernel, machine.storage));
    let measured = fitting.iter().find(|variant| tuned.is_some_and(|name| name == variant.name));
    if let Some(measured) = measured {
        return *measured;
    }
    fitting.into_iter().min_by(|a, b| a.estimate(machine).total_cmp(&b.estimate(machine))).unwrap_or(Variant::ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, WeightType};

    /// What NVIDIA's driver tells, as far as it matters here.
    fn with_matrices() -> Machine {
        let matrices = vec![MatrixShape::square(16, MatrixType::F16, MatrixType::F32)];
        let caps = Caps {
            shader_f16: true,
            subgroup_size: Some(32),
            matrices,
            max_workgroup_bytes: 48 << 10,
            ..Caps::PORTABLE
        };
        Machine { caps, storage: Storage::F16, ..Machine::PORTABLE }
    }

    fn by_matrices(machine: &Machine) -> bool {
        let linear = Linear { rows: 4096, k: 1024, cols: 1024, ..Linear::default() };
        choose(&linear, machine).needs.matrix.is_some()
    }

    #[test]
    fn matrix_units_are_used_where_they_are_and_only_there() {
        let machine = with_matrices();
        assert!(by_matrices(&machine));
        let int8 = Storage::F16.with_weights(WeightType::Int8);
        assert!(by_matrices(&Machine { storage: int8, ..machine.clone() }), "whole numbers of 8 bits, which f16 holds");
        let changed = |change: &dyn Fn(&mut Machine)| {
            let mut machine = machine.clone();
            change(&mut machine);
            by_matrices(&machine)
        };
        assert!(!changed(&|m| m.caps.matrices.clear()), "no such feature");
        assert!(!changed(&|m| m.caps.matrices[0].sum = MatrixType::F16), "sums are f16");
        assert!(!changed(&|m| m.caps.matrices[0].k = 8), "another shape");
        assert!(!changed(&|m| m.caps.shader_f16 = false), "no f16 in shaders");
        assert!(!changed(&|m| m.caps.subgroup_size = None), "subgroups of several sizes");
        assert!(!changed(&|m| m.caps.subgroup_size = Some(64)), "subgroups of another size");
        assert!(!changed(&|m| m.storage = Storage::F32), "tensors in f32");
        assert!(!changed(&|m| m.storage = Storage::F16_PACKED), "f16 that shaders do not know");
    }
}

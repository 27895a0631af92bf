//! Variants: several programs of a kernel that solve the same problem, and the rule that chooses one of them.
//!
//! A kernel lists its [`variants`](Kernel::variants) as plain data: the device features that each needs, its number of
//! workgroups for this problem, and the relative cost of one workgroup. [`choose`] is a pure function of these numbers
//! and of a [`Machine`]. A plan therefore knows the variant of every step before it runs, and without a device. At
//! least one variant of every kernel runs on every WebGPU device.

use crate::device::GpuDevice;
use crate::kernel::{Kernel, PORTABLE};
use crate::storage::{FloatType, Storage};
use crate::tuning::{Measured, Tuning, problem};
use mobilediffusion_runtime::{AdapterKind, AdapterSummary, Caps, MatrixShape, MatrixType};

/// Device features and limits that a variant needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Number of invocations in a workgroup.
    pub invocations: u32,
    /// Workgroup memory in bytes.
    pub workgroup_bytes: u32,
    /// Matrix unit. A variant that needs one also needs floats stored as [`FloatType::F16`].
    pub matrix: Option<MatrixUnit>,
}

/// Matrix unit: hardware that multiplies square matrices of f16 and accumulates in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixUnit {
    /// Rows and columns of all three matrices.
    pub edge: u32,
    /// Number of invocations in the subgroup that computes one product.
    pub subgroup: u32,
}

impl MatrixUnit {
    /// Returns the matrix unit that kernels use on a device, or `None` if the device has none that they can use.
    pub fn of(caps: &Caps) -> Option<Self> {
        let subgroup = caps.subgroup_size?;
        [16, 8].map(|edge| Self { edge, subgroup }).into_iter().find(|unit| unit.met_by(caps))
    }

    /// Returns whether a device has this unit. No other code checks this; where it returns `false`, kernels run a
    /// variant without matrix units.
    pub(crate) fn met_by(&self, caps: &Caps) -> bool {
        let product = MatrixShape::square(self.edge, MatrixType::F16, MatrixType::F32);
        caps.shader_f16 && caps.subgroup_size == Some(self.subgroup) && caps.matrices.contains(&product)
    }
}

impl Needs {
    /// Limits that every WebGPU device meets.
    pub const PORTABLE: Self =
        Self { invocations: PORTABLE.max_invocations, workgroup_bytes: PORTABLE.max_workgroup_bytes, matrix: None };

    /// Returns whether a device meets these needs for tensors stored as `storage`.
    pub(crate) fn met_by(&self, caps: &Caps, storage: Storage) -> bool {
        self.invocations <= caps.max_invocations
            && self.workgroup_bytes <= caps.max_workgroup_bytes
            && self.matrix.is_none_or(|matrix| storage.floats == FloatType::F16 && matrix.met_by(caps))
    }
}

/// Program by which a kernel solves a problem, one of several that may solve the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Name, unique among the variants of the kernel: the tile, for example `64x64`.
    pub name: &'static str,
    /// Device features and limits that the variant needs.
    pub needs: Needs,
    /// Number of workgroups for this problem.
    pub groups: usize,
    /// Share of a unit that one workgroup keeps busy, in halves: 2 if its invocations take so many registers that no
    /// other has room beside it.
    pub slots: usize,
    /// Number of values that an invocation keeps in registers from step to step: sums, what it has loaded for the next step,
    /// and in blocks the columns that it multiplies.
    pub registers: usize,
    /// Relative time of one workgroup. Only ratios between variants of one problem have a meaning.
    pub work: f64,
    /// Whether factors that the kernel computes (normalised rows, attention weights) are rounded to f16 before they are
    /// multiplied. Matrix units accept no other type. A separate step would round them as well when it stores them in
    /// f16.
    pub rounds: bool,
}

impl Variant {
    /// Variant of a kernel that has one program.
    pub const ONLY: Self =
        Self { name: "only", needs: Needs::PORTABLE, groups: 1, slots: 1, registers: 0, work: 1.0, rounds: false };

    /// Estimates the relative time of the variant on a device, for comparison with other variants of the same problem.
    /// The estimate is not measured. It takes into account that too few workgroups leave a part of the device idle, and
    /// that values without a register are stored and loaded again.
    pub fn estimate(&self, machine: &Machine) -> f64 {
        let spills = if self.registers > machine.registers { SPILLED } else { 1.0 };
        machine.units.rounds(self.groups).max(2.0 / self.slots as f64) * self.work * spills
    }
}

/// Factor by which a variant takes longer whose values do not fit into registers. A guess: compilers show that they are
/// stored and loaded in the innermost loop then (benches/records/compilers.md), but not what that costs.
const SPILLED: f64 = 4.0;

/// Number of a device's compute units, each of which runs workgroups of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// The driver's number.
    Known(usize),
    /// A number that devices of this kind may have.
    Guessed(usize),
}

impl Units {
    /// Returns how many of some workgroups the busiest unit runs. A number of units that is a guess leaves open how many
    /// of them the last round needs.
    fn rounds(self, groups: usize) -> f64 {
        match self {
            Self::Known(units) => groups.div_ceil(units) as f64,
            Self::Guessed(units) => groups as f64 / units as f64,
        }
    }
}

/// Facts about a device that the choice of a variant depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Features and limits of the device.
    pub caps: Caps,
    /// Storage of tensors on the device.
    pub storage: Storage,
    /// Compute units. Two workgroups keep one busy; one that is alone on its unit is assumed to take as long as two.
    pub units: Units,
    /// Number of values that an invocation can keep in registers from step to step, beside factors and addresses.
    pub registers: usize,
    /// Variants that were measured to be the fastest on this device.
    pub tuned: Measured,
}

impl Machine {
    /// A device of which nothing is known but that it supports WebGPU.
    pub const PORTABLE: Self = Self {
        caps: Caps::PORTABLE,
        storage: Storage::F32,
        units: Units::Guessed(128),
        registers: usize::MAX,
        tuned: Measured::new(),
    };

    /// Describes an open device. Reads measured variants from the user's cache folder.
    pub fn of(GpuDevice { gpu, storage }: GpuDevice<'_>) -> Self {
        let (tuning, _) = Tuning::read(gpu);
        let adapter = gpu.adapter();
        let (units, registers) = (units(adapter), registers(adapter.vendor, &adapter.backend));
        Self { caps: gpu.caps().clone(), storage, units, registers, tuned: tuning.of(adapter) }
    }
}

/// Returns the number of an adapter's compute units. Where the driver does not tell it, that of today's large GPUs is
/// assumed for those with memory of their own, and that of small ones for others.
fn units(adapter: &AdapterSummary) -> Units {
    adapter.units.map_or(
        Units::Guessed(match adapter.kind {
            AdapterKind::Discrete | AdapterKind::Other => 128,
            AdapterKind::Integrated => 16,
            AdapterKind::Software => 4,
        }),
        |units| Units::Known(units as usize),
    )
}

/// Returns the number of values that an invocation can keep in registers from step to step on a GPU of this vendor, or
/// behind this graphics API: those of Arm's and Intel's between the tiles of which compilers spill values and those of which
/// they spill none (benches/records/compilers.md), others guessed from the number of registers.
fn registers(vendor: u32, backend: &str) -> usize {
    const ARM: u32 = 0x13B5;
    const INTEL: u32 = 0x8086;
    const BROADCOM: u32 = 0x14E4;
    match vendor {
        ARM => 32,
        INTEL => 56,
        // A compiler that was looked at fits every product into the 64 registers of a Raspberry Pi.
        BROADCOM => 100,
        // Apple's have 128, as far as is known; no compiler was at hand.
        _ if backend == "metal" => 100,
        // NVIDIA's and AMD's have 255, Qualcomm's up to 192.
        _ => usize::MAX,
    }
}

/// Returns the variants of a kernel that a device can run on tensors stored as `storage`.
pub fn runnable(kernel: &dyn Kernel, caps: &Caps, storage: Storage) -> Vec<Variant> {
    let mut variants = kernel.variants();
    variants.retain(|variant| variant.needs.met_by(caps, storage));
    variants
}

/// Chooses the variant that a device should run: the one that was measured to be the fastest, or else the first of
/// those with the least estimated time.
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
pub(crate) mod tests {
    use super::*;
    use crate::{Activation, Conv2d, Linear, Prologue, SwishGlu, WeightType};

    /// A large GPU with matrices of 16x16x16 in subgroups of this size: 32 on NVIDIA, 64 on AMD.
    pub(crate) fn with_matrices(subgroup: u32) -> Machine {
        let matrices = vec![MatrixShape::square(16, MatrixType::F16, MatrixType::F32)];
        let caps = Caps {
            shader_f16: true,
            subgroup_size: Some(subgroup),
            matrices,
            max_workgroup_bytes: 48 << 10,
            ..Caps::PORTABLE
        };
        Machine { caps, storage: Storage::F16, ..Machine::PORTABLE }
    }

    #[test]
    fn the_number_of_units_is_the_drivers_or_a_guess() {
        for (kind, guess) in [
            (AdapterKind::Discrete, 128),
            (AdapterKind::Other, 128),
            (AdapterKind::Integrated, 16),
            (AdapterKind::Software, 4),
        ] {
            let (name, backend, driver) = (String::new(), String::new(), String::new());
            let caps = Caps::PORTABLE;
            let adapter = AdapterSummary { index: 0, name, backend, driver, kind, vendor: 0, units: None, caps };
            assert_eq!(units(&adapter), Units::Guessed(guess), "{kind}");
            assert_eq!(units(&AdapterSummary { units: Some(84), ..adapter }), Units::Known(84), "{kind}");
        }
    }

    #[test]
    fn groups_that_leave_a_device_idle_take_as_long_as_those_that_do_not() {
        for (units, groups, slots, time) in [
            (Units::Guessed(16), 4, 1, 6.0),
            (Units::Guessed(16), 64, 1, 12.0),
            (Units::Guessed(16), 4, 2, 3.0),
            (Units::Guessed(16), 72, 2, 13.5),
            (Units::Known(16), 16, 1, 6.0),
            (Units::Known(16), 16, 2, 3.0),
            (Units::Known(16), 17, 2, 6.0),
            (Units::Known(16), 33, 1, 9.0),
        ] {
            let variant = Variant { groups, slots, work: 3.0, ..Variant::ONLY };
            let machine = Machine { units, ..Machine::PORTABLE };
            assert_eq!(variant.estimate(&machine), time, "{groups} groups of {slots} slots on {units:?}");
        }
    }

    #[test]
    fn values_that_do_not_fit_into_registers_cost_more() {
        let of = |vendor, backend| Machine { registers: registers(vendor, backend), ..Machine::PORTABLE };
        let arm = of(0x13B5, "vulkan");
        for (registers, time) in [(32, 4.0), (33, 16.0)] {
            let variant = Variant { registers, work: 2.0, ..Variant::ONLY };
            assert_eq!(variant.estimate(&arm), time, "{registers} registers");
        }
        let linear = |rows| Linear { rows, k: 1024, cols: 1024, ..Linear::default() };
        let square = Conv2d { n: 1, h: 128, w: 128, ci: 256, co: 256, ..Conv2d::default() };
        let conv = Conv2d { kernel: 3, stride: 1, upsample: 1, pad_start: 1, pad_end: 1, ..square };
        let (gate, prologue) = (Activation::Silu, Prologue::default());
        let glu = SwishGlu { rows: 16_384, k: 640, cols: 1920, gate, prologue };
        for (machine, name, product, block, pair) in [
            (arm, "Arm", "64x64", "64x64", "32x32x2"),
            (of(0x8086, "vulkan"), "Intel", "128x64", "128x64", "64x64x2"),
            (of(0, "metal"), "Apple", "128x128", "128x128", "128x64x2"),
            (of(0x14E4, "vulkan"), "Broadcom", "128x128", "128x128", "128x64x2"),
            (of(0x10DE, "vulkan"), "NVIDIA", "128x128", "winograd 128x32", "128x64x2"),
        ] {
            assert_eq!(choose(&linear(65_536), &machine).name, product, "a product on {name}");
            assert_eq!(choose(&linear(1), &machine).name, "2x16/64", "a row on {name}");
            assert_eq!(choose(&conv, &machine).name, block, "a convolution on {name}");
            assert_eq!(choose(&glu, &machine).name, pair, "two products on {name}");
        }
    }

    fn by_matrices(machine: &Machine) -> bool {
        let linear = Linear { rows: 4096, k: 1024, cols: 1024, ..Linear::default() };
        choose(&linear, machine).needs.matrix.is_some()
    }

    #[test]
    fn matrix_units_are_used_where_they_are_and_only_there() {
        let machine = with_matrices(32);
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
        assert!(changed(&|m| m.caps.subgroup_size = Some(64)), "tiles for subgroups of 64");
        assert!(!changed(&|m| m.caps.subgroup_size = Some(16)), "subgroups of a size without tiles");
        assert!(!changed(&|m| m.storage = Storage::F32), "tensors in f32");
        assert!(!changed(&|m| m.storage = Storage::F16_PACKED), "f16 that shaders do not know");
    }
}

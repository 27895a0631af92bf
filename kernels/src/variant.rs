//! Variants: several programs of a kernel that solve the same problem, and the rule that takes one of them.
//!
//! A kernel lists its [`variants`](Kernel::variants) as plain data: what each asks of a device, how many workgroups it
//! has for this problem and what one of them costs. [`choose`] takes one by numbers alone, so a plan can say before it
//! runs, and without a device, which one every step gets. One variant of every kernel runs on every WebGPU device.

use crate::kernel::Kernel;
use mobilediffusion_runtime::{AdapterKind, Caps, Gpu};

/// What a variant asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Invocations in a workgroup.
    pub invocations: u32,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: u32,
}

impl Needs {
    /// What every WebGPU device has.
    pub const PORTABLE: Self = Self { invocations: 256, workgroup_bytes: 16 << 10 };

    /// Whether a device has it all.
    pub fn met_by(&self, caps: &Caps) -> bool {
        self.invocations <= caps.max_invocations && self.workgroup_bytes <= caps.max_workgroup_bytes
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
}

impl Variant {
    /// That of a kernel with one program.
    pub const ONLY: Self = Self { name: "only", needs: Needs::PORTABLE, groups: 1, work: 1.0 };
}

/// What a choice depends on besides the problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// What the device can do.
    pub caps: Caps,
    /// Workgroups that keep it busy: fewer take as long as these.
    pub busy_groups: usize,
}

impl Machine {
    /// What is chosen for where nothing is known of the device but that it is one of WebGPU.
    pub const PORTABLE: Self = Self { caps: Caps::PORTABLE, busy_groups: 256 };

    /// A device that is open.
    pub fn of(gpu: &Gpu) -> Self {
        // No API tells the compute units. Two workgroups for each of 128 keep the large GPUs of our day busy, and two
        // for each of 16 the small ones.
        let busy_groups = match gpu.adapter().kind {
            AdapterKind::Discrete | AdapterKind::Other => 256,
            AdapterKind::Integrated => 32,
            AdapterKind::Software => 8,
        };
        Self { caps: *gpu.caps(), busy_groups }
    }
}

/// The variants of a kernel that a device can run.
pub fn runnable(kernel: &dyn Kernel, caps: &Caps) -> Vec<Variant> {
    let mut variants = kernel.variants();
    variants.retain(|variant| variant.needs.met_by(caps));
    variants
}

/// The variant that a device should run: the one of the least time, where too few workgroups leave a part of the device
/// idle. Of equal ones it is the first.
pub fn choose(kernel: &dyn Kernel, machine: &Machine) -> Variant {
    let time = |variant: &Variant| variant.groups.max(machine.busy_groups) as f64 * variant.work;
    let fitting = runnable(kernel, &machine.caps).into_iter();
    fitting.min_by(|a, b| time(a).total_cmp(&time(b))).unwrap_or(Variant::ONLY)
}

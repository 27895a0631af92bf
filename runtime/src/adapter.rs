//! The adapters of the machine as plain data, and the rule that selects one.

use crate::caps::Caps;
use crate::error::RuntimeError;
use crate::vulkan;
use std::fmt;
use std::sync::LazyLock;

/// Kind of hardware or software behind an adapter. The order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the memory of the host.
    Integrated,
    /// A GPU passed through to a virtual machine, or one that the driver does not describe.
    Other,
    /// A driver that computes on the CPU: correct but slow.
    Software,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Other => "GPU",
            Self::Software => "software",
        })
    }
}

/// Description of an adapter of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Position in the list of [`adapters`]. [`Select::Named`] accepts it as a name.
    pub index: usize,
    /// Name of the adapter, as the driver reports it.
    pub name: String,
    /// Name of the graphics API, for instance `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// Kind of the adapter.
    pub kind: AdapterKind,
    /// Number of the GPU's vendor: that of PCI, or Khronos' for vendors that have none. 0 where the graphics API has no
    /// such number.
    pub vendor: u32,
    /// Number of compute units, each of which runs workgroups of its own: NVIDIA's multiprocessors, AMD's compute units,
    /// Arm's shader cores. `None` where the driver does not tell.
    pub units: Option<u32>,
    /// Capabilities and limits of the adapter.
    pub caps: Caps,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.kind, self.backend, self.driver)
    }
}

/// Choice of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// The first adapter in the order discrete GPU, integrated GPU, other GPU, software driver.
    #[default]
    Best,
    /// The first adapter in the order of [`Best`](Self::Best) that is no software driver.
    Hardware,
    /// The adapter at this position of the list, if the text is a number of at most two digits. Otherwise the best one
    /// whose name contains the text, or whose driver does if it is no number. Case is ignored.
    Named(String),
    /// The adapter with the name, backend and driver of this summary. If several match, the one with the same index is
    /// preferred.
    Same(AdapterSummary),
}

impl Select {
    /// Returns the index of the adapter that this choice takes from a list.
    ///
    /// # Errors
    /// [`RuntimeError::NoAdapter`] if none fits; the error lists all adapters that were found.
    pub fn choose(&self, found: &[AdapterSummary]) -> Result<usize, RuntimeError> {
        Ok(self.candidates(found)?[0])
    }

    /// Returns the indices of the adapters to try, in order of preference. The first is the one that
    /// [`choose`](Self::choose) returns; the others are for the case that it cannot be opened, since a GPU may be
    /// listed twice, by a driver that works and by one that does not. A choice of a specific adapter has no
    /// alternatives.
    ///
    /// # Errors
    /// [`RuntimeError::NoAdapter`] if none fits.
    pub(crate) fn candidates(&self, found: &[AdapterSummary]) -> Result<Vec<usize>, RuntimeError> {
        let all = |fits: &dyn Fn(&AdapterSummary) -> bool| {
            let mut fitting: Vec<&AdapterSummary> = found.iter().filter(|a| fits(a)).collect();
            fitting.sort_by_key(|a| (a.kind, a.index));
            fitting.iter().map(|a| a.index).collect::<Vec<_>>()
        };
        let best = |fits: &dyn Fn(&AdapterSummary) -> bool| all(fits).first().copied();
        let chosen = match self {
            Self::Best => all(&|_| true),
            Self::Hardware => all(&|a| a.kind != AdapterKind::Software),
            Self::Named(name) => {
                let name = name.trim().to_lowercase();
                let number = name.parse::<usize>().ok();
                let says = |text: &str| !name.is_empty() && text.to_lowercase().contains(&name);
                // A long number may be a part of a name, such as 4090. Drivers' versions hold all kinds of numbers.
                let fits = |a: &AdapterSummary| match number {
                    Some(index) if name.len() <= 2 => index == a.index,
                    _ => says(&a.name) || number.is_none() && says(&a.driver),
                };
                best(&fits).into_iter().collect()
            }
            Self::Same(same) => {
                let fits =
                    |a: &AdapterSummary| (&a.name, &a.backend, &a.driver) == (&same.name, &same.backend, &same.driver);
                // Identical cards are told apart by their index.
                best(&|a| fits(a) && a.index == same.index).or_else(|| best(&fits)).into_iter().collect()
            }
        };
        if chosen.is_empty() { Err(self.none_of(found)) } else { Ok(chosen) }
    }

    fn none_of(&self, found: &[AdapterSummary]) -> RuntimeError {
        let wanted = match self {
            Self::Best => "a GPU".to_owned(),
            Self::Hardware => "a hardware GPU".to_owned(),
            Self::Named(name) => format!("a GPU called `{name}` or with that index"),
            Self::Same(same) => format!("the GPU `{}`", same.name),
        };
        let found = match found {
            [] => "none".to_owned(),
            _ => found.iter().map(|a| format!("[{}] {a}", a.index)).collect::<Vec<_>>().join("; "),
        };
        RuntimeError::NoAdapter { wanted, found }
    }
}

/// Describes an adapter that is at position `index` of the list.
pub(crate) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    AdapterSummary {
        index,
        name: info.name.clone(),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
            wgpu::DeviceType::Cpu => AdapterKind::Software,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => AdapterKind::Other,
        },
        vendor: info.vendor,
        units: vulkan::units(adapter),
        caps: Caps::of(adapter),
    }
}

/// The one wgpu instance of the process. Two instances would number their resources alike, so that a resource of one
/// could be mistaken for a resource of the other. Within one instance, a resource of another device is recognised and
/// refused.
static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Each device would compile shaders that validate indirect calls, of which there are none.
    descriptor.flags.remove(wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL);
    wgpu::Instance::new(descriptor)
});

/// Lists the adapters of all of wgpu's primary backends.
pub(crate) async fn enumerate() -> Vec<wgpu::Adapter> {
    INSTANCE.enumerate_adapters(wgpu::Backends::PRIMARY).await
}

/// Lists all adapters of this machine.
pub async fn adapters() -> Vec<AdapterSummary> {
    enumerate().await.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: AdapterKind) -> AdapterSummary {
        let caps = Caps::new(wgpu::Features::empty(), &wgpu::Limits::default());
        let (name, backend, driver) = (name.into(), "vulkan".into(), "Mesa 25".into());
        AdapterSummary { index, name, backend, driver, kind, vendor: 0, units: None, caps }
    }

    fn machine() -> Vec<AdapterSummary> {
        vec![
            adapter(0, "llvmpipe", AdapterKind::Software),
            adapter(1, "Iris", AdapterKind::Integrated),
            adapter(2, "GeForce", AdapterKind::Discrete),
        ]
    }

    #[test]
    fn hardware_comes_before_software() {
        assert_eq!(Select::Best.choose(&machine()), Ok(2));
        assert_eq!(Select::Best.choose(&machine()[..1]), Ok(0));
        assert_eq!(Select::Hardware.choose(&machine()[..2]), Ok(1));
    }

    #[test]
    fn only_a_general_choice_has_alternatives() {
        assert_eq!(Select::Best.candidates(&machine()), Ok(vec![2, 1, 0]));
        assert_eq!(Select::Hardware.candidates(&machine()), Ok(vec![2, 1]));
        assert_eq!(Select::Named("e".into()).candidates(&machine()), Ok(vec![2]));
        assert_eq!(Select::Same(machine()[1].clone()).candidates(&machine()), Ok(vec![1]));
    }

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(Select::Named("LLVM".into()).choose(&machine()), Ok(0));
        for second in ["1", " 1", "1 "] {
            assert_eq!(Select::Named(second.into()).choose(&machine()), Ok(1), "`{second}`");
        }
        let numbered = [adapter(0, "GeForce RTX 4090", AdapterKind::Discrete)];
        assert_eq!(Select::Named("4090".into()).choose(&numbered), Ok(0));
        // No index, a number in a driver's version, and nothing.
        let driver = AdapterSummary { driver: "Mesa 22.3.625".into(), ..numbered[0].clone() };
        for unknown in ["4", "9", "625", "", " "] {
            let chosen = Select::Named(unknown.into()).choose(std::slice::from_ref(&driver));
            assert!(chosen.is_err(), "`{unknown}` is taken for {driver}");
        }
        assert_eq!(Select::Named("mesa 22".into()).choose(&[driver]), Ok(0));
    }

    #[test]
    fn an_adapter_is_found_again_beside_its_twin() {
        let twins = [adapter(0, "GeForce", AdapterKind::Discrete), adapter(1, "GeForce", AdapterKind::Discrete)];
        assert_eq!(Select::Same(twins[1].clone()).choose(&twins), Ok(1));
        assert_eq!(
            Select::Same(machine()[0].clone()).choose(&machine()),
            Ok(0),
            "a specific adapter is taken even if others are better"
        );
        let moved = AdapterSummary { index: 7, ..machine()[1].clone() };
        assert_eq!(Select::Same(moved).choose(&machine()), Ok(1));
    }

    #[test]
    fn an_error_lists_the_adapters_that_were_found() {
        let error = Select::Named("Radeon".into()).choose(&machine()).expect_err("there is no Radeon").to_string();
        assert!(error.contains("Radeon") && error.contains("[1] Iris"), "{error}");
        let none = Select::Hardware.choose(&[]).expect_err("there is nothing").to_string();
        assert_eq!(none, "expected a hardware GPU, found none");
    }
}

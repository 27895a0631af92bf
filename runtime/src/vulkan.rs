//! What Vulkan offers beyond wgpu: a device without robust buffer access, the amount of free memory, and the number of
//! compute units.
//!
//! wgpu enables robust buffer access on every device it opens, even for modules that are compiled without checks. It is
//! expensive: compilers split the load of a vec4 into four checked loads.

use ash::ext::{memory_budget, robustness2};
use ash::{amd, arm, nv, vk};
use wgpu::hal::api::Vulkan;

/// Index of the queue family that wgpu uses on every device.
const FAMILY: u32 = 0;

/// Opens the adapter as [`wgpu::Adapter::request_device`] does, but without `robustBufferAccess` and the features of
/// `VK_EXT_robustness2`. Returns `None` if the adapter does not use Vulkan or anything fails; opening it through wgpu
/// then reports the reason.
#[expect(unsafe_code, reason = "robust access can be left out only on a device that is created by hand")]
pub(crate) fn open(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor<'_>,
) -> Option<(wgpu::Device, wgpu::Queue)> {
    // SAFETY: nothing that the adapter owns is destroyed here.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let (features, limits) = (descriptor.required_features, &descriptor.required_limits);
    let extensions = hal.required_device_extensions(features);
    // wgpu requests the features of an extension only if the extension is in this list.
    let plain: Vec<_> = extensions.iter().copied().filter(|name| *name != robustness2::NAME).collect();
    let mut enabled = hal.physical_device_features(&plain, features);
    let core = enabled.get_core().robust_buffer_access(false);
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(FAMILY).queue_priorities(&[1.0])];
    let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names);
    let info = enabled.add_to_device_create(info).enabled_features(&core);
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: everything that `info` points to outlives the call. It requests what wgpu itself would request on this
    // adapter, less the two robustness features, on which nothing depends.
    let raw = unsafe { instance.create_device(hal.raw_physical_device(), &info, None) }.ok()?;
    // SAFETY: the device was just created from this adapter, with these extensions and this queue family, and nobody
    // else holds it. It has all features that wgpu expects except robust access. Only modules with wgpu's checks rely
    // on that: `pipeline::module`, which compiles all modules of this crate, creates none of them on a device that was
    // opened here, and wgpu's internal modules have no checks.
    let opened =
        unsafe { hal.device_from_raw(raw, None, &extensions, features, limits, &descriptor.memory_hints, FAMILY, 0) };
    // SAFETY: the device is this adapter's, opened with the features and limits of the same descriptor.
    unsafe { adapter.create_device_from_hal(opened.ok()?, descriptor) }.ok()
}

/// Returns what [`Gpu::free_memory`](crate::Gpu::free_memory) does, on Vulkan.
#[expect(unsafe_code, reason = "wgpu does not say how much memory is free")]
pub(crate) fn free_memory(device: &wgpu::Device) -> Option<u64> {
    // SAFETY: nothing that the device owns is destroyed here.
    let hal = unsafe { device.as_hal::<Vulkan>() }?;
    // wgpu enables the extension where there is one, except on RADV.
    let instance = hal.shared_instance();
    let is_known = hal.enabled_device_extensions().contains(&memory_budget::NAME);
    if !is_known || instance.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    let mut budgets = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut found = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budgets);
    // SAFETY: the physical device is this instance's, which has the function since Vulkan 1.1, and the driver
    // supports the extension that the structure belongs to.
    unsafe {
        let physical = hal.raw_physical_device();
        instance.raw_instance().get_physical_device_memory_properties2(physical, &mut found);
    }
    let heaps = found.memory_properties;
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    let of_heaps = budgets.heap_budget.into_iter().zip(budgets.heap_usage);
    free_in(heaps.iter().zip(of_heaps).map(|(heap, (budget, used))| (*heap, budget, used)))
}

/// Returns what is free in the device's own memory, given all heaps with their budgets and used bytes. Besides its whole
/// memory, a device may list a small part of it that the host can see. A budget of 0 is one that the driver does not
/// know.
fn free_in(heaps: impl Iterator<Item = (vk::MemoryHeap, u64, u64)>) -> Option<u64> {
    let own = heaps.filter(|(heap, ..)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (_, budget, used) = own.max_by_key(|(heap, ..)| heap.size)?;
    (budget > 0).then(|| budget.saturating_sub(used))
}

/// Returns [`AdapterSummary::units`](crate::AdapterSummary::units) on Vulkan, where NVIDIA's, AMD's and Arm's drivers tell
/// it, each by an extension of its own.
#[expect(unsafe_code, reason = "wgpu does not say how many units there are")]
pub(crate) fn units(adapter: &wgpu::Adapter) -> Option<u32> {
    // SAFETY: nothing that the adapter owns is destroyed here.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let (instance, offers) = (hal.shared_instance(), hal.physical_device_capabilities());
    let mut nvidia = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
    let mut amd = vk::PhysicalDeviceShaderCoreProperties2AMD::default();
    let mut arm = vk::PhysicalDeviceShaderCoreBuiltinsPropertiesARM::default();
    let found = vk::PhysicalDeviceProperties2::default();
    let mut found = if offers.supports_extension(nv::shader_sm_builtins::NAME) {
        found.push_next(&mut nvidia)
    } else if offers.supports_extension(amd::shader_core_properties2::NAME) {
        found.push_next(&mut amd)
    } else if offers.supports_extension(arm::shader_core_builtins::NAME) {
        found.push_next(&mut arm)
    } else {
        return None;
    };
    if instance.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    // SAFETY: the physical device is this instance's, which has the function since Vulkan 1.1, and the driver
    // supports the extension that the structure belongs to.
    unsafe { instance.raw_instance().get_physical_device_properties2(hal.raw_physical_device(), &mut found) };
    // Those that were not asked for are still zero.
    Some(nvidia.shader_sm_count + amd.active_compute_unit_count + arm.shader_core_count).filter(|units| *units > 0)
}

#[cfg(test)]
mod tests {
    use super::free_in;
    use ash::vk::{MemoryHeap, MemoryHeapFlags};

    #[test]
    fn the_largest_of_the_devices_own_heaps_counts() {
        let heap = |size, flags| MemoryHeap { size, flags };
        let (own, small) = (heap(100, MemoryHeapFlags::DEVICE_LOCAL), heap(10, MemoryHeapFlags::DEVICE_LOCAL));
        let hosts = heap(1000, MemoryHeapFlags::empty());
        let free = |heaps: &[(MemoryHeap, u64, u64)]| free_in(heaps.iter().copied());
        assert_eq!(free(&[(small, 10, 0), (own, 100, 30), (hosts, 1000, 0)]), Some(70));
        assert_eq!(free(&[(own, 100, 95), (small, 10, 0)]), Some(5), "a part that the host sees is no further memory");
        assert_eq!(free(&[(own, 100, 100), (hosts, 1000, 0)]), Some(0), "full is not unknown");
        assert_eq!(free(&[(own, 90, 100)]), Some(0), "others took what was ours");
        assert_eq!(free(&[(own, 0, 0), (hosts, 1000, 0)]), None, "the driver does not know");
        assert_eq!(free(&[(hosts, 1000, 0)]), None, "the host's memory is no device's");
    }
}

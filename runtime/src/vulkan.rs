//! A Vulkan device whose driver does not watch every access to a buffer. wgpu asks for that on each device it opens, for
//! modules that it was told to trust too, and it is dear: compilers split a load of a vec4 into four that are checked.

use ash::{ext::robustness2, vk};
use wgpu::hal::api::Vulkan;

/// The family of queues that wgpu takes on every device.
const FAMILY: u32 = 0;

/// Opens the adapter as [`wgpu::Adapter::request_device`] does, but for `robustBufferAccess` and what `VK_EXT_robustness2`
/// adds to it. None if the adapter is not Vulkan's or anything fails: wgpu's own way then says what.
#[expect(unsafe_code, reason = "wgpu knows no other word against robust access than a device made by hand")]
pub(crate) fn open(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor<'_>,
) -> Option<(wgpu::Device, wgpu::Queue)> {
    // SAFETY: nothing that the adapter holds is destroyed here.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let (features, limits) = (descriptor.required_features, &descriptor.required_limits);
    let extensions = hal.required_device_extensions(features);
    // The features of an extension that is not among these are not asked for.
    let plain: Vec<_> = extensions.iter().copied().filter(|name| *name != robustness2::NAME).collect();
    let mut enabled = hal.physical_device_features(&plain, features);
    let core = enabled.get_core().robust_buffer_access(false);
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(FAMILY).queue_priorities(&[1.0])];
    let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names);
    let info = enabled.add_to_device_create(info).enabled_features(&core);
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: all that `info` points to outlives the call. It asks for what wgpu itself would ask for on this adapter, and
    // for less: nothing depends on the two features that are left out.
    let raw = unsafe { instance.create_device(hal.raw_physical_device(), &info, None) }.ok()?;
    // SAFETY: the device was made from this adapter, just now, with these extensions and this family of queues, and is
    // given away with nobody else holding it. It has the features that wgpu expects but for robust access, on which only
    // modules with wgpu's checks rely: `Gpu::module` makes none of those on a device that was opened here, and wgpu's own
    // have none.
    let opened =
        unsafe { hal.device_from_raw(raw, None, &extensions, features, limits, &descriptor.memory_hints, FAMILY, 0) };
    // SAFETY: the device is this adapter's, opened with the features and limits of the same descriptor.
    unsafe { adapter.create_device_from_hal(opened.ok()?, descriptor) }.ok()
}

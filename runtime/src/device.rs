//! Adapters, and the one device that is opened on one of them.

use crate::error::RuntimeError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What of an adapter matters to us, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Native 16-bit floats in shaders and storage.
    pub shader_f16: bool,
    /// Timestamps at the edges of a pass.
    pub timestamps: bool,
    /// Largest range of a buffer that can be bound, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations in a workgroup.
    pub max_invocations: u32,
    /// Storage buffers a shader may bind.
    pub max_storage_buffers: u32,
    /// Alignment of a uniform binding's offset, in bytes.
    pub uniform_alignment: u32,
}

impl Caps {
    fn new(features: wgpu::Features, limits: &wgpu::Limits) -> Self {
        Self {
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        }
    }
}

/// What stands behind an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU passed through to a virtual machine, or one the driver does not describe.
    Other,
    /// A driver that computes on the CPU: right, but slow.
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

/// An adapter found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Position in the list, usable as a name.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// What stands behind it.
    pub kind: AdapterKind,
    /// What it can do.
    pub caps: Caps,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.kind, self.backend, self.driver)
    }
}

/// Which adapter is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// Hardware before software, discrete before integrated.
    #[default]
    Best,
    /// Like `Best`, but never a software driver.
    Hardware,
    /// By position in the list, or by a part of name or driver, whatever the case of the letters.
    Named(String),
}

impl Select {
    /// The index of the adapter this choice takes, by a pure rule over the list.
    ///
    /// # Errors
    /// If none fits: the error lists what there is.
    pub fn choose(&self, found: &[AdapterSummary]) -> Result<usize, RuntimeError> {
        let best = |fits: &dyn Fn(&AdapterSummary) -> bool| {
            found.iter().filter(|a| fits(a)).min_by_key(|a| (a.kind, a.index)).map(|a| a.index)
        };
        let chosen = match self {
            Self::Best => best(&|_| true),
            Self::Hardware => best(&|a| a.kind != AdapterKind::Software),
            Self::Named(name) => match name.parse::<usize>() {
                Ok(index) => best(&|a| a.index == index),
                Err(_) => {
                    let name = name.to_lowercase();
                    best(&|a| a.name.to_lowercase().contains(&name) || a.driver.to_lowercase().contains(&name))
                }
            },
        };
        chosen.ok_or_else(|| RuntimeError::NoAdapter {
            wanted: match self {
                Self::Best => "any".to_owned(),
                Self::Hardware => "hardware".to_owned(),
                Self::Named(name) => name.clone(),
            },
            found: match found {
                [] => "none".to_owned(),
                _ => found.iter().map(|a| format!("[{}] {a}", a.index)).collect::<Vec<_>>().join("; "),
            },
        })
    }
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
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
        caps: Caps::new(adapter.features(), &adapter.limits()),
    }
}

async fn enumerate() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    instance.enumerate_adapters(wgpu::Backends::PRIMARY).await
}

/// Every adapter of this machine.
pub async fn adapters() -> Vec<AdapterSummary> {
    enumerate().await.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

/// What went wrong behind our back: errors outside of any scope, and the loss of the device.
#[derive(Debug, Default)]
struct Incidents {
    lost: Mutex<Option<String>>,
    uncaptured: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the device was asked for something that costs: a replayed plan must not move these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Buffers made.
    pub buffers: u64,
    /// Pipelines compiled.
    pub pipelines: u64,
}

/// An open device. Cheap to share by `Arc`; every fallible call gives a [`RuntimeError`] and never panics.
#[derive(Debug)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) pipelines: crate::pipeline::PipelineCache,
    pub(crate) buffers_made: AtomicU64,
    pub(crate) pipelines_made: AtomicU64,
    adapter: AdapterSummary,
    incidents: Arc<Incidents>,
}

impl Gpu {
    /// Opens the chosen adapter with all the limits it offers, and with 16-bit floats and timestamps where it has them.
    ///
    /// # Errors
    /// If no adapter fits, or the driver gives no device.
    pub async fn open(select: &Select) -> Result<Self, RuntimeError> {
        let all = enumerate().await;
        let found: Vec<AdapterSummary> = all.iter().enumerate().map(|(i, adapter)| summary(i, adapter)).collect();
        let index = select.choose(&found)?;
        let (adapter, chosen) = (&all[index], found[index].clone());
        let wanted = wgpu::Features::SHADER_F16 | wgpu::Features::TIMESTAMP_QUERY;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mobilediffusion"),
            required_features: adapter.features() & wanted,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| RuntimeError::NoDevice { adapter: chosen.name.clone(), reason: one_line(&e.to_string()) })?;
        let incidents = Arc::new(Incidents::default());
        let sink = Arc::clone(&incidents);
        device
            .on_uncaptured_error(Arc::new(move |error: wgpu::Error| locked(&sink.uncaptured).push(error.to_string())));
        let sink = Arc::clone(&incidents);
        device.set_device_lost_callback(move |reason, message| {
            *locked(&sink.lost) = Some(one_line(&format!("{reason:?} {message}")));
        });
        Ok(Self {
            device,
            queue,
            pipelines: crate::pipeline::PipelineCache::default(),
            buffers_made: AtomicU64::new(0),
            pipelines_made: AtomicU64::new(0),
            adapter: chosen,
            incidents,
        })
    }

    /// The adapter this device was opened on.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.adapter
    }

    /// What this device can do.
    pub fn caps(&self) -> &Caps {
        &self.adapter.caps
    }

    /// What was made on this device so far.
    pub fn counters(&self) -> Counters {
        Counters {
            buffers: self.buffers_made.load(Ordering::Relaxed),
            pipelines: self.pipelines_made.load(Ordering::Relaxed),
        }
    }

    /// Gives the device up, as a driver's reset would: every later call reports it as lost.
    pub fn destroy(&self) {
        self.device.destroy();
        *locked(&self.incidents.lost) = Some("destroyed on request".to_owned());
    }

    /// An error if the device was lost or complained outside of a scope since the last look.
    pub(crate) fn incident(&self, what: &str) -> Result<(), RuntimeError> {
        if let Some(reason) = locked(&self.incidents.lost).clone() {
            return Err(RuntimeError::Lost { reason });
        }
        match std::mem::take(&mut *locked(&self.incidents.uncaptured)).into_iter().next() {
            Some(message) => Err(RuntimeError::Validation { what: what.to_owned(), message }),
            None => Ok(()),
        }
    }

    /// Runs `create` so that what it provokes on the device comes back as an error that names `what`.
    pub(crate) fn scoped<T>(&self, what: &str, bytes: u64, create: impl FnOnce() -> T) -> Result<T, RuntimeError> {
        self.incident(what)?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = create();
        // Scopes are popped in reverse; natively the futures are ready at once.
        let refused = pollster::block_on(validation.pop());
        let failed = pollster::block_on(internal.pop());
        let starved = pollster::block_on(memory.pop());
        if starved.is_some() {
            return Err(RuntimeError::OutOfMemory { what: what.to_owned(), bytes });
        }
        if let Some(error) = refused.or(failed) {
            return Err(RuntimeError::Validation { what: what.to_owned(), message: error.to_string() });
        }
        self.incident(what)?;
        Ok(made)
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// If the device is lost, complained about a submission, or does not finish in ten minutes.
    pub fn wait(&self) -> Result<(), RuntimeError> {
        const LIMIT: Duration = Duration::from_secs(600);
        let start = Instant::now();
        loop {
            self.incident("a submission")?;
            let slice = wgpu::PollType::Wait { submission_index: None, timeout: Some(Duration::from_secs(5)) };
            // `Device::poll` panics when the driver reports a loss; that panic is an error like any other.
            match catch_unwind(AssertUnwindSafe(|| self.device.poll(slice))) {
                Ok(Ok(_)) => return self.incident("a submission"),
                Ok(Err(_)) if start.elapsed() < LIMIT => {}
                Ok(Err(_)) => return Err(RuntimeError::Timeout { seconds: LIMIT.as_secs() }),
                Err(_) => {
                    let reason = "the driver gave up while we waited".to_owned();
                    return Err(self.incident("a submission").err().unwrap_or(RuntimeError::Lost { reason }));
                }
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: AdapterKind) -> AdapterSummary {
        let caps = Caps::new(wgpu::Features::empty(), &wgpu::Limits::default());
        AdapterSummary { index, name: name.into(), backend: "vulkan".into(), driver: "Mesa 25".into(), kind, caps }
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
    fn names_and_numbers_are_understood() {
        assert_eq!(Select::Named("LLVM".into()).choose(&machine()), Ok(0));
        assert_eq!(Select::Named("1".into()).choose(&machine()), Ok(1));
    }

    #[test]
    fn what_was_found_is_listed() {
        let error = Select::Named("Radeon".into()).choose(&machine()).expect_err("there is no Radeon").to_string();
        assert!(error.contains("Radeon") && error.contains("[1] Iris"), "{error}");
        let none = Select::Hardware.choose(&[]).expect_err("there is nothing").to_string();
        assert_eq!(none, "no GPU adapter fits `hardware`; found: none");
    }
}

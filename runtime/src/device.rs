//! The one device that is opened on an adapter, and how what goes wrong on it becomes an error.

use crate::adapter::{self, AdapterSummary, Caps, Select};
use crate::error::RuntimeError;
use crate::pass::Submission;
use crate::pipeline::Pipelines;
use crate::pipeline_file::PipelineFile;
use crate::tally::Tally;
use crate::vulkan;
use futures_channel::oneshot;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What went wrong behind our back: errors outside of any scope, and the loss of the device.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    lost: Mutex<Option<String>>,
    uncaptured: Mutex<Vec<String>>,
}

/// What a mutex holds, even if a thread panicked over it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
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
    pub(crate) pipelines: Pipelines,
    pub(crate) pipeline_file: Option<PipelineFile>,
    pub(crate) shader_checks: bool,
    pub(crate) is_robust: bool,
    pub(crate) cache_folder: Option<PathBuf>,
    pub(crate) buffers_made: AtomicU64,
    /// Bytes written since the last wait for uploads.
    pub(crate) pending_upload: AtomicU64,
    pub(crate) pipelines_made: AtomicU64,
    pub(crate) adapter: AdapterSummary,
    pub(crate) incidents: Arc<Incidents>,
    pub(crate) tally: Tally,
}

/// Bytes of a block of memory that small buffers share.
const BLOCK: u64 = 4 << 20;

impl Gpu {
    /// Opens the chosen adapter with all the limits it offers, and with those features of ours that it has. Shaders are
    /// trusted to stay within their arrays and bindings, not to divide by zero and to end, which is for modules that are
    /// known and tested to do so: checks keep compilers from unrolling loops and cost every access.
    ///
    /// # Errors
    /// If no adapter fits, or the driver gives no device.
    pub async fn open(select: &Select) -> Result<Self, RuntimeError> {
        Self::open_either(select, false).await
    }

    /// The same, but shaders are watched as they run: an index beyond its array is one within, a division by zero gives
    /// something, and every loop ends.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_checked(select: &Select) -> Result<Self, RuntimeError> {
        Self::open_either(select, true).await
    }

    async fn open_either(select: &Select, shader_checks: bool) -> Result<Self, RuntimeError> {
        let all = adapter::enumerate().await;
        let found: Vec<AdapterSummary> = all.iter().enumerate().map(|(i, raw)| adapter::summary(i, raw)).collect();
        let mut refused = None;
        for index in select.candidates(&found)? {
            match Self::open_on(&all[index], found[index].clone(), shader_checks).await {
                Ok(opened) => return Ok(opened),
                // What the best adapter says is what whoever wanted it reads.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.expect("there are candidates"))
    }

    async fn open_on(raw: &wgpu::Adapter, chosen: AdapterSummary, shader_checks: bool) -> Result<Self, RuntimeError> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mobilediffusion"),
            required_features: raw.features() & adapter::FEATURES,
            required_limits: raw.limits(),
            // Weights and arenas are large: blocks for several of them would stay half empty. What does not fit into the
            // smallest block that there is gets memory of its own.
            memory_hints: wgpu::MemoryHints::Manual { suballocated_device_memory_block_size: BLOCK..BLOCK },
            experimental_features: experimental_features(),
            ..Default::default()
        };
        let trusting = if shader_checks { None } else { vulkan::open(raw, &descriptor) };
        let is_robust = trusting.is_none();
        let opened = match trusting {
            Some(opened) => Ok(opened),
            None => raw.request_device(&descriptor).await,
        };
        let (device, queue) = opened
            .map_err(|e| RuntimeError::NoDevice { adapter: chosen.name.clone(), reason: one_line(&e.to_string()) })?;
        let opened = Self {
            incidents: Incidents::watch(&device),
            tally: Tally::new(&device),
            device,
            queue,
            pipelines: Pipelines::default(),
            pipeline_file: None,
            shader_checks,
            is_robust,
            cache_folder: None,
            buffers_made: AtomicU64::new(0),
            pending_upload: AtomicU64::new(0),
            pipelines_made: AtomicU64::new(0),
            adapter: chosen,
        };
        Ok(opened.keep_working_matrices())
    }

    /// A new device on the same adapter, for one that was lost: with the same file of pipelines and the same word on
    /// checks, and nothing else.
    ///
    /// # Errors
    /// If the adapter is gone, or the driver gives no device.
    pub async fn recreate(&self) -> Result<Self, RuntimeError> {
        let fresh = Self::open_either(&Select::Same(self.adapter.clone()), self.shader_checks).await?;
        Ok(match &self.cache_folder {
            Some(folder) => fresh.with_pipeline_cache(folder),
            None => fresh,
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

    /// Whether the driver may be watching every access to a buffer. On Vulkan it does so on a device with checks alone;
    /// elsewhere that is its own affair.
    pub fn is_robust(&self) -> bool {
        self.is_robust
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
        if let Some(loss) = self.incidents.loss() {
            return Err(loss);
        }
        match std::mem::take(&mut *locked(&self.incidents.uncaptured)).into_iter().next() {
            Some(message) => Err(RuntimeError::Validation { what: what.to_owned(), message }),
            None => Ok(()),
        }
    }

    /// Runs `create` so that what it provokes on the device comes back as an error that names `what`. Scopes belong to
    /// the thread that opens them: threads do not see each other's errors, nor wait for each other.
    pub(crate) fn scoped<T>(&self, what: &str, bytes: u64, create: impl FnOnce() -> T) -> Result<T, RuntimeError> {
        self.incident(what)?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = catch_unwind(AssertUnwindSafe(create));
        // Scopes are popped in reverse; natively the futures are ready at once.
        let refused = pollster::block_on(validation.pop());
        let failed = pollster::block_on(internal.pop());
        let starved = pollster::block_on(memory.pop());
        let made = made.map_err(|_| self.gave_up(what))?;
        if starved.is_some() {
            return Err(RuntimeError::OutOfMemory { what: what.to_owned(), bytes });
        }
        if let Some(error) = refused.or(failed) {
            return Err(RuntimeError::Validation { what: what.to_owned(), message: error.to_string() });
        }
        self.incident(what)?;
        Ok(made)
    }

    /// Where wgpu panics there is no device to go on with: the panic becomes the loss that every later call reports.
    fn gave_up(&self, what: &str) -> RuntimeError {
        self.incidents.lose(format!("the driver gave up at `{what}`"))
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// If the device is lost, complained about a submission, or does not finish in ten minutes.
    pub fn wait(&self) -> Result<(), RuntimeError> {
        self.wait_until(None)
    }

    /// Waits until a submission, and whatever was submitted before it, is done.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for(&self, submission: &Submission) -> Result<(), RuntimeError> {
        self.wait_until(Some(submission))
    }

    fn wait_until(&self, last: Option<&Submission>) -> Result<(), RuntimeError> {
        const LIMIT: Duration = Duration::from_secs(600);
        let start = Instant::now();
        loop {
            self.incident("a submission")?;
            let submission_index = last.map(|submission| submission.0.clone());
            let slice = wgpu::PollType::Wait { submission_index, timeout: Some(Duration::from_secs(5)) };
            // `Device::poll` panics when the driver reports a loss; that panic is an error like any other.
            match catch_unwind(AssertUnwindSafe(|| self.device.poll(slice))) {
                Ok(Ok(_)) => return self.incident("a submission"),
                Ok(Err(_)) if start.elapsed() < LIMIT => {}
                // Nobody waits a second time for a device that hangs.
                Ok(Err(_)) => {
                    return Err(self.incidents.lose(format!("it did not finish within {} s", LIMIT.as_secs())));
                }
                Err(_) => return Err(self.gave_up("a submission")),
            }
        }
    }
}

impl Gpu {
    /// Resolves when everything submitted so far is done. A thread waits for it, so that no executor has to.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), and if there is no thread to be had.
    pub async fn finished(self: &Arc<Self>) -> Result<(), RuntimeError> {
        self.done(None).await
    }

    /// Resolves when a submission, and whatever was submitted before it, is done.
    ///
    /// # Errors
    /// As [`finished`](Self::finished).
    pub async fn finished_for(self: &Arc<Self>, submission: &Submission) -> Result<(), RuntimeError> {
        self.done(Some(submission.clone())).await
    }

    async fn done(self: &Arc<Self>, last: Option<Submission>) -> Result<(), RuntimeError> {
        let (send, done) = oneshot::channel();
        let gpu = Arc::clone(self);
        let wait = move || {
            // The receiver is gone only if nobody wants to know any more.
            let _ = send.send(gpu.wait_until(last.as_ref()));
        };
        let refused = |message: String| RuntimeError::Validation { what: "a waiting thread".to_owned(), message };
        std::thread::Builder::new().name("gpu".to_owned()).spawn(wait).map_err(|error| refused(error.to_string()))?;
        done.await.unwrap_or_else(|_| Err(refused("it ended early".to_owned())))
    }
}

/// Leave to ask for cooperative matrices, the one feature of ours that wgpu calls experimental.
#[expect(unsafe_code, reason = "wgpu has no other way to its cooperative matrices")]
fn experimental_features() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu warns that such a feature, used wrongly, may be undefined behaviour: it does not check that a matrix
    // lies within its array, nor that a whole subgroup takes part. Our modules load and store matrices in workgroup
    // memory, at places that are sizes of the tile, or in a buffer made for them, in control flow that naga finds uniform.
    // tests/kernels.rs runs each of them on Mesa's driver between fences, tests/shaders.rs counts their memory, and
    // `keep_working_matrices` looks at a product on every device that is opened (wgpu #8805: what naga says to drivers
    // about memory that matrices share is not all that Vulkan asks for).
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

impl Incidents {
    fn watch(device: &wgpu::Device) -> Arc<Self> {
        let incidents = Arc::new(Self::default());
        let sink = Arc::clone(&incidents);
        device
            .on_uncaptured_error(Arc::new(move |error: wgpu::Error| locked(&sink.uncaptured).push(error.to_string())));
        let sink = Arc::clone(&incidents);
        device.set_device_lost_callback(move |reason, message| {
            *locked(&sink.lost) = Some(one_line(&format!("{reason:?} {message}")));
        });
        incidents
    }

    /// Makes it lost, for this reason if there was none before.
    pub(crate) fn lose(&self, reason: String) -> RuntimeError {
        RuntimeError::Lost { reason: locked(&self.lost).get_or_insert(reason).clone() }
    }

    /// The loss of the device as an error, if it is lost.
    pub(crate) fn loss(&self) -> Option<RuntimeError> {
        locked(&self.lost).clone().map(|reason| RuntimeError::Lost { reason })
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

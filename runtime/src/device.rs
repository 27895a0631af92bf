//! The open device: opening, re-opening, waiting, and the translation of failures into errors.

use crate::adapter::{self, AdapterSummary, Select};
use crate::caps::{self, Caps};
use crate::error::RuntimeError;
use crate::incidents::{Incidents, locked, one_line, panic_message};
use crate::matrix_check::{RefusedMatrix, experimental_features};
use crate::pass::Submission;
use crate::pipeline::Pipelines;
use crate::pipeline_file::PipelineFile;
use crate::tally::Tally;
use crate::vulkan;
use futures_channel::oneshot;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Numbers of expensive operations on a device. Replaying dispatches does not change them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Number of buffers created.
    pub buffers: u64,
    /// Number of pipelines compiled.
    pub pipelines: u64,
}

/// An open device. It can be shared between threads in an `Arc`. Failures on the device are returned as a
/// [`RuntimeError`], also where wgpu reports them by a panic.
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
    /// Number of bytes written since the last wait for uploads.
    pub(crate) pending_upload: AtomicU64,
    pub(crate) pipelines_made: AtomicU64,
    pub(crate) adapter: AdapterSummary,
    pub(crate) refused_matrices: Vec<RefusedMatrix>,
    pub(crate) incidents: Arc<Incidents>,
    pub(crate) tally: Tally,
}

/// Size in bytes of the memory blocks that small buffers share.
const BLOCK: u64 = 4 << 20;

impl Gpu {
    /// Opens a device on the chosen adapter, with all limits of the adapter and the optional features that this crate
    /// uses. If [`Select::Best`] or [`Select::Hardware`] is asked for and an adapter cannot be opened, the next best is
    /// tried.
    ///
    /// Shaders run without runtime checks on this device, since the checks keep compilers from unrolling loops and slow
    /// down every memory access. Every shader must therefore honour the contract stated at
    /// [`pipeline`](Self::pipeline).
    ///
    /// # Errors
    /// [`RuntimeError::NoAdapter`] if no adapter fits, or [`RuntimeError::NoDevice`] if none could be opened, with the
    /// reason of the best one.
    pub async fn open(select: &Select) -> Result<Self, RuntimeError> {
        Self::open_either(select, false).await
    }

    /// Opens a device as [`open`](Self::open) does, but with runtime checks in all shaders: an out-of-bounds access
    /// stays within its array or binding or has no effect, an integer division by zero has a defined result, and every
    /// loop ends. Loads and stores of cooperative matrices are not checked.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open).
    pub async fn open_checked(select: &Select) -> Result<Self, RuntimeError> {
        Self::open_either(select, true).await
    }

    async fn open_either(select: &Select, shader_checks: bool) -> Result<Self, RuntimeError> {
        let all = adapter::enumerate().await;
        let found: Vec<AdapterSummary> = all.iter().enumerate().map(|(i, raw)| adapter::summary(i, raw)).collect();
        let candidates = select.candidates(&found)?;
        first_opened(candidates, |index| Self::open_on(&all[index], found[index].clone(), shader_checks)).await
    }

    /// Opens a device with the matrix units that pass a trial, or without any if the trial loses the device.
    pub(crate) async fn open_on(
        raw: &wgpu::Adapter,
        chosen: AdapterSummary,
        shader_checks: bool,
    ) -> Result<Self, RuntimeError> {
        if let Some(lack) = chosen.caps.below_portable() {
            return Err(RuntimeError::NoDevice { adapter: chosen.name, reason: lack });
        }
        let features = caps::features(&chosen.caps);
        let opened = Self::open_with(raw, chosen.clone(), shader_checks, features).await?;
        let mut opened = opened.keep_working_matrices();
        if opened.incidents.loss().is_none() {
            return Ok(opened);
        }
        let mut refused_matrices = std::mem::take(&mut opened.refused_matrices);
        let others = opened.caps().matrices.iter().filter(|shape| shape.is_tried());
        let reason = "the trial of another shape lost the device".to_owned();
        refused_matrices.extend(others.map(|shape| RefusedMatrix { shape: *shape, reason: reason.clone() }));
        drop(opened);
        let (caps, plain) = caps::without_matrices(&chosen.caps);
        let plain = Self::open_with(raw, AdapterSummary { caps, ..chosen }, shader_checks, plain).await?;
        Ok(Self { refused_matrices, ..plain })
    }

    /// Opens a device with those of `features` that the adapter has.
    async fn open_with(
        raw: &wgpu::Adapter,
        chosen: AdapterSummary,
        shader_checks: bool,
        features: wgpu::Features,
    ) -> Result<Self, RuntimeError> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mobilediffusion"),
            required_features: raw.features() & features,
            required_limits: raw.limits(),
            // Weights and arenas are large, and blocks shared by several of them would stay half empty. A buffer that
            // does not fit into a block of the smallest size gets an allocation of its own.
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
        Ok(Self {
            incidents: Incidents::watch(&device),
            tally: Tally::new(&device, shader_checks),
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
            refused_matrices: Vec::new(),
        })
    }

    /// Opens a new device on the same adapter, to replace one that was lost. The new device has the same setting for
    /// shader checks and the same cache folder. Buffers, pipelines and dispatches are not carried over.
    ///
    /// # Errors
    /// [`RuntimeError::NoAdapter`] if the adapter is gone, or [`RuntimeError::NoDevice`] if it cannot be opened.
    pub async fn recreate(&self) -> Result<Self, RuntimeError> {
        let fresh = Self::open_either(&Select::Same(self.adapter.clone()), self.shader_checks).await?;
        Ok(match &self.cache_folder {
            Some(folder) => fresh.with_pipeline_cache(folder),
            None => fresh,
        })
    }

    /// Returns the adapter on which this device was opened.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.adapter
    }

    /// Returns the capabilities and limits of this device.
    pub fn caps(&self) -> &Caps {
        &self.adapter.caps
    }

    /// Returns the matrix shapes that the adapter lists and this device does not use, because its trial of them failed
    /// when it was opened.
    pub fn refused_matrices(&self) -> &[RefusedMatrix] {
        &self.refused_matrices
    }

    /// Returns whether the driver may check the bounds of every buffer access (robust buffer access). On Vulkan a
    /// device from [`open`](Self::open) has these checks switched off, unless that failed; on other backends they are
    /// up to the driver, and this is always true.
    pub fn is_robust(&self) -> bool {
        self.is_robust
    }

    /// Returns how many buffers and pipelines were made on this device so far.
    pub fn counters(&self) -> Counters {
        Counters {
            buffers: self.buffers_made.load(Ordering::Relaxed),
            pipelines: self.pipelines_made.load(Ordering::Relaxed),
        }
    }

    /// Destroys the device, as a reset by the driver would. Every later call returns [`RuntimeError::Lost`].
    pub fn destroy(&self) {
        self.device.destroy();
        *locked(&self.incidents.lost) = Some("destroyed on request".to_owned());
    }

    /// Returns an error if the device is lost, or if an error outside of any scope was reported since the last call.
    pub(crate) fn incident(&self, what: &str) -> Result<(), RuntimeError> {
        if let Some(loss) = self.incidents.loss() {
            return Err(loss);
        }
        match std::mem::take(&mut *locked(&self.incidents.uncaptured)).into_iter().next() {
            Some(message) => Err(RuntimeError::Validation { what: what.to_owned(), message }),
            None => Ok(()),
        }
    }

    /// Runs `create` and returns errors that it provokes on the device, with the name `what` and, if memory runs out,
    /// the size in bytes, and errors outside of any scope.
    pub(crate) fn scoped<T>(
        &self,
        what: &str,
        bytes: Option<u64>,
        create: impl FnOnce() -> T,
    ) -> Result<T, RuntimeError> {
        self.incident(what)?;
        let made = self.caught(what, bytes, create)?;
        self.incident(what)?;
        Ok(made)
    }

    /// Runs `submit`, which submits a pass, as [`scoped`](Self::scoped) does. The host's count of `passes` grows if the
    /// submission was not refused, since the device counts the pass from then on.
    pub(crate) fn counted<T>(
        &self,
        what: &str,
        passes: &mut u32,
        submit: impl FnOnce() -> T,
    ) -> Result<T, RuntimeError> {
        self.incident(what)?;
        let submitted = self.caught(what, None, submit)?;
        *passes = passes.wrapping_add(1);
        self.incident(what)?;
        Ok(submitted)
    }

    /// Runs `create` and returns errors that it provokes. Error scopes belong to the thread that opens them, so threads
    /// neither see each other's errors nor wait for each other.
    pub(crate) fn caught<T>(
        &self,
        what: &str,
        bytes: Option<u64>,
        create: impl FnOnce() -> T,
    ) -> Result<T, RuntimeError> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = catch_unwind(AssertUnwindSafe(create));
        // Scopes are popped in reverse order. On native platforms the futures are ready at once.
        let refused = pollster::block_on(validation.pop());
        let failed = pollster::block_on(internal.pop());
        let starved = pollster::block_on(memory.pop());
        let made = made.map_err(|panic| self.gave_up(what, &*panic))?;
        if starved.is_some() {
            return Err(RuntimeError::OutOfMemory { what: what.to_owned(), bytes });
        }
        if let Some(error) = refused.or(failed) {
            return Err(RuntimeError::Validation { what: what.to_owned(), message: error.to_string() });
        }
        Ok(made)
    }

    /// Turns a panic of wgpu into the loss of the device, since nothing can be relied on after it.
    fn gave_up(&self, what: &str, panic: &(dyn Any + Send)) -> RuntimeError {
        self.incidents.lose(format!("wgpu panicked at `{what}`: {}", panic_message(panic)))
    }

    /// Blocks until everything submitted so far is done.
    ///
    /// # Errors
    /// [`RuntimeError::Lost`] if the device is lost or does not finish within ten minutes, or
    /// [`RuntimeError::Validation`] if it reported an error about a submission.
    pub fn wait(&self) -> Result<(), RuntimeError> {
        self.wait_until(None)
    }

    /// Blocks until a submission, and everything submitted before it, is done.
    ///
    /// # Errors
    /// The errors of [`wait`](Self::wait), or [`RuntimeError::Validation`] if the submission was made on another
    /// device.
    pub fn wait_for(&self, submission: &Submission) -> Result<(), RuntimeError> {
        self.wait_until(Some(submission))
    }

    fn wait_until(&self, last: Option<&Submission>) -> Result<(), RuntimeError> {
        const LIMIT: Duration = Duration::from_secs(600);
        let start = Instant::now();
        let refused = |message: String| RuntimeError::Validation { what: "a submission".to_owned(), message };
        loop {
            self.incident("a submission")?;
            // wgpu numbers the submissions of every device from one, so that it would take one for another.
            if last.is_some_and(|submission| !Arc::ptr_eq(&submission.device, &self.incidents)) {
                return Err(refused("it was made on another device and cannot be waited for on this one".to_owned()));
            }
            let submission_index = last.map(|submission| submission.index.clone());
            let slice = wgpu::PollType::Wait { submission_index, timeout: Some(Duration::from_secs(5)) };
            // `Device::poll` panics when the driver reports a loss.
            match catch_unwind(AssertUnwindSafe(|| self.device.poll(slice))) {
                Ok(Ok(_)) => return self.incident("a submission"),
                Ok(Err(wgpu::PollError::Timeout)) if start.elapsed() < LIMIT => {}
                // The device is marked as lost, so that later calls do not wait for it again.
                Ok(Err(wgpu::PollError::Timeout)) => {
                    return Err(self
                        .incidents
                        .lose(format!("it did not finish its work within {} s", LIMIT.as_secs())));
                }
                Ok(Err(error)) => return Err(refused(error.to_string())),
                Err(panic) => return Err(self.gave_up("a submission", &*panic)),
            }
        }
    }
}

impl Gpu {
    /// Resolves when everything submitted so far is done. A thread of its own waits for the device, so that the
    /// executor is not blocked.
    ///
    /// # Errors
    /// The errors of [`wait`](Self::wait), or [`RuntimeError::Thread`] if no thread can be started.
    pub async fn finished(self: &Arc<Self>) -> Result<(), RuntimeError> {
        self.done(None).await
    }

    /// Resolves when a submission, and everything submitted before it, is done. A thread of its own waits for the
    /// device, so that the executor is not blocked.
    ///
    /// # Errors
    /// The errors of [`finished`](Self::finished), or [`RuntimeError::Validation`] if the submission was made on another
    /// device.
    pub async fn finished_for(self: &Arc<Self>, submission: &Submission) -> Result<(), RuntimeError> {
        self.done(Some(submission.clone())).await
    }

    async fn done(self: &Arc<Self>, last: Option<Submission>) -> Result<(), RuntimeError> {
        let (send, done) = oneshot::channel();
        let gpu = Arc::clone(self);
        let wait = move || {
            // The receiver is gone if the future was dropped; then the result is not needed.
            let _ = send.send(gpu.wait_until(last.as_ref()));
        };
        let failed = |reason: String| RuntimeError::Thread { reason };
        std::thread::Builder::new().name("gpu".to_owned()).spawn(wait).map_err(|error| failed(error.to_string()))?;
        done.await.unwrap_or_else(|_| Err(failed("it ended before the device finished".to_owned())))
    }
}

/// Returns the first of the candidates that opens. If none does, the error is that of the first, which is the best: it is
/// the one worth reporting.
async fn first_opened<T, F: Future<Output = Result<T, RuntimeError>>>(
    candidates: Vec<usize>,
    open: impl Fn(usize) -> F,
) -> Result<T, RuntimeError> {
    let mut refused = None;
    for index in candidates {
        match open(index).await {
            Ok(opened) => return Ok(opened),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.expect("there are candidates"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries three adapters, of which those in `working` open. Returns what opened, or the error's adapter, and what was
    /// tried.
    fn open_one_of(working: &[usize]) -> (Result<usize, String>, Vec<usize>) {
        let tried = std::cell::RefCell::new(Vec::new());
        let opened = pollster::block_on(first_opened(vec![2, 0, 1], |index| {
            tried.borrow_mut().push(index);
            let refused = || RuntimeError::NoDevice { adapter: index.to_string(), reason: "it is broken".to_owned() };
            std::future::ready(if working.contains(&index) { Ok(index) } else { Err(refused()) })
        }));
        let named = |error| match error {
            RuntimeError::NoDevice { adapter, .. } => adapter,
            other => other.to_string(),
        };
        (opened.map_err(named), tried.into_inner())
    }

    #[test]
    fn the_next_adapter_is_tried_where_one_does_not_open() {
        assert_eq!(open_one_of(&[0, 1, 2]), (Ok(2), vec![2]), "the best one opens");
        assert_eq!(open_one_of(&[0, 1]), (Ok(0), vec![2, 0]), "the best one does not");
        assert_eq!(open_one_of(&[1]), (Ok(1), vec![2, 0, 1]), "only the last one does");
        assert_eq!(open_one_of(&[]), (Err("2".to_owned()), vec![2, 0, 1]), "the best one's error is reported");
    }
}

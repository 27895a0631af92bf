//! The pipeline: from a prompt to pictures.
//!
//! A [`Model`] is an open device with one set of weights. A [`Pipeline`] draws with a model: it makes the plans that
//! a [`Request`] needs, keeps them, and replays them for later requests of the same shape without allocating or
//! compiling anything.

mod memory;
mod options;
mod plans;
mod progress;
mod ready;
mod request;
mod run;
mod sampling;
mod shared;
mod source;

pub(crate) use memory::free as free_memory;
pub use options::{Cache, DeviceChoice, Floats, Opened, Options};
pub use progress::{Flow, OnPicture, OnProgress, Phase, Progress};
pub use request::{Init, MOST_PICTURES, Request, Settings, Truncated};
pub use shared::Model;
pub use source::{Loader, Source, WeightsFrom};

use crate::error::ModelError;
use crate::networks::Shape;
use crate::picture::Picture;
use mobilediffusion_graph::{Device, PlanSummary, Recording};
use plans::{Key, Plans};
use ready::{keys, ready};
use std::sync::Arc;

/// Draws pictures with a model. A pipeline can be sent to another thread, and several pipelines may share one model.
#[derive(Debug)]
pub struct Pipeline {
    model: Arc<Model>,
    plans: Plans,
    /// Generation of the device that the plans were made on.
    generation: u64,
}

/// Numbers of objects and bytes that exist so far. A request whose plans are ready changes none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Number of buffers created on the device by all pipelines of the model; 0 on the CPU device.
    pub buffers: u64,
    /// Number of kernels compiled by all pipelines of the model; 0 on the CPU device.
    pub kernels: u64,
    /// Number of plans that this pipeline keeps ready.
    pub plans: usize,
    /// Number of bytes of this pipeline's plans on the device.
    pub plan_bytes: u64,
    /// Number of bytes of weights on the device, shared by all pipelines of the model.
    pub weight_bytes: u64,
}

impl Pipeline {
    /// Checks the files of the weights that every picture needs (names, shapes, types), and opens the device.
    ///
    /// The values of weights are checked, and weights brought to the device and plans made, by the first request that
    /// needs them, or by [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// [`ModelError`] if the configuration or the weights are not valid, or the device cannot be opened.
    pub fn load(source: Source, options: Options) -> Result<Self, ModelError> {
        Ok(Self::over(Arc::new(Model::load(source, options)?)))
    }

    /// Returns another pipeline over a model that is already loaded.
    pub fn over(model: Arc<Model>) -> Self {
        let generation = model.generation();
        Self { model, plans: Plans::default(), generation }
    }

    /// Returns the model, for further pipelines over it.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Returns the settings that a request amounts to, with the model's own values where the request has none.
    ///
    /// # Errors
    /// [`ModelError`] if a value of the request is not valid; the error names it.
    pub fn settings(&self, request: &Request) -> Result<Settings, ModelError> {
        self.model.settings(request)
    }

    /// Returns how often the UNet is evaluated for each picture of a request: for all steps of its settings, and for fewer
    /// where a picture to begin from leaves less to be drawn.
    ///
    /// # Errors
    /// [`ModelError`] if a value of the request is not valid; the error names it.
    pub fn evaluations(&self, request: &Request) -> Result<usize, ModelError> {
        let evaluations = sampling::evaluations(self.model.schedule(), &self.settings(request)?, request.strength())?;
        Ok(evaluations.len())
    }

    /// Returns the numbers of objects and bytes that exist so far.
    pub fn counters(&self) -> Counters {
        let (buffers, kernels) = match self.model.device() {
            Device::Cpu(_) => (0, 0),
            Device::Gpu(gpu, _) => (gpu.counters().buffers, gpu.counters().pipelines),
        };
        let weight_bytes = self.model.resident_bytes();
        Counters { buffers, kernels, plans: self.plans.len(), plan_bytes: self.plans.bytes(), weight_bytes }
    }

    /// Returns the sizes of a request's plans, by network, for the types in which the device stores each.
    ///
    /// # Errors
    /// [`ModelError`] if a value of the request is not valid, or the files of a network are not, which are checked if
    /// no request has used them before.
    pub fn summaries(&self, request: &Request) -> Result<Vec<(&'static str, PlanSummary)>, ModelError> {
        let shape = self.settings(request)?.shape(self.model.config())?;
        let summary = |key: Key| {
            let recording = Recording::new(key.graph(self.model.config())?);
            Ok((key.network().title(), recording.summary(self.model.device_of(key.network())?.storage())?))
        };
        keys(self.model.config(), request, shape).into_iter().map(summary).collect()
    }

    /// Checks and loads the weights and makes the plans that a request needs, so that drawing starts at once.
    ///
    /// # Errors
    /// [`ModelError`] if a value of the request is not valid, the request does not fit into memory, weights are not
    /// valid, the device fails, or the caller asked to stop.
    pub fn prepare(&mut self, request: &Request, on_progress: OnProgress<'_>) -> Result<(), ModelError> {
        let shape = self.settings(request)?.shape(self.model.config())?;
        self.ready(request, shape, on_progress)
    }

    /// Draws the pictures of a request and returns them.
    ///
    /// `on_progress` is called at least once between two chunks of work and can stop the request.
    ///
    /// # Errors
    /// Fails in the cases of [`prepare`](Self::prepare), and with [`ModelError::NotFinite`] or [`ModelError::Flat`]
    /// if a result is not a picture.
    pub fn generate(&mut self, request: &Request, on_progress: OnProgress<'_>) -> Result<Vec<Picture>, ModelError> {
        pollster::block_on(self.generate_async(request, on_progress))
    }

    /// Draws the pictures of a request without blocking on the device: [`generate`](Self::generate) for an async
    /// executor.
    ///
    /// Weights are read and kernels compiled before the first yield. Where this must not hold up the executor, call
    /// [`prepare`](Self::prepare) on another thread first. The CPU device computes inside `poll`, so it needs a
    /// thread of its own.
    ///
    /// A future that is dropped midway ends the request, and the pipeline stays usable. A GPU still completes the work
    /// that was submitted, but no later request uses the results of a run that was cut short.
    ///
    /// # Errors
    /// Fails in the cases of [`generate`](Self::generate).
    pub async fn generate_async(
        &mut self,
        request: &Request,
        on_progress: OnProgress<'_>,
    ) -> Result<Vec<Picture>, ModelError> {
        let mut pictures = Vec::new();
        let mut keep = |_, picture| {
            pictures.push(picture);
            Flow::Continue
        };
        self.generate_each_async(request, on_progress, &mut keep).await?;
        Ok(pictures)
    }

    /// Draws the pictures of a request and passes each to `on_picture` as soon as it is drawn, without keeping any.
    ///
    /// # Errors
    /// Fails in the cases of [`generate`](Self::generate), and with [`ModelError::Stopped`] if `on_picture` asked to
    /// stop. Pictures that were passed on before the error are complete.
    pub fn generate_each(
        &mut self,
        request: &Request,
        on_progress: OnProgress<'_>,
        on_picture: OnPicture<'_>,
    ) -> Result<(), ModelError> {
        pollster::block_on(self.generate_each_async(request, on_progress, on_picture))
    }

    /// Draws the pictures of a request and passes each on without blocking on the device:
    /// [`generate_each`](Self::generate_each) for an async executor, with the notes of
    /// [`generate_async`](Self::generate_async).
    ///
    /// # Errors
    /// Fails in the cases of [`generate_each`](Self::generate_each).
    pub async fn generate_each_async(
        &mut self,
        request: &Request,
        on_progress: OnProgress<'_>,
        on_picture: OnPicture<'_>,
    ) -> Result<(), ModelError> {
        let settings = self.settings(request)?;
        let shape = settings.shape(self.model.config())?;
        self.ready(request, shape, on_progress)?;
        run::Run::new(&self.model, &mut self.plans, request, (&settings, shape), on_progress).pictures(on_picture).await
    }

    /// Frees this pipeline's plans, and the weights that no other pipeline has plans with or is about to draw with. The
    /// device stays open, and the next request makes everything again: for an application that is not drawing for a
    /// while.
    pub fn release(&mut self) {
        self.plans.clear();
        while self.model.release() {}
    }

    /// Opens the device again after it was lost: the same adapter, with weights from the same source. The next request
    /// checks and loads them and makes its plans anew. If the adapter is gone, load the model again.
    ///
    /// If another pipeline of the same model has already opened the device again, this pipeline uses that one.
    ///
    /// # Errors
    /// [`ModelError`] if the device is gone or cannot be opened, or the weights are no longer available.
    pub fn recover(&mut self) -> Result<(), ModelError> {
        pollster::block_on(self.recover_async())
    }

    /// Opens a lost device again without blocking on it: [`recover`](Self::recover) for an async executor.
    ///
    /// # Errors
    /// Fails in the cases of [`recover`](Self::recover).
    pub async fn recover_async(&mut self) -> Result<(), ModelError> {
        self.plans.clear();
        self.model.reopen(self.generation).await?;
        self.generation = self.model.generation();
        Ok(())
    }

    /// Checks and loads the weights and makes the plans of a request that are still missing.
    fn ready(&mut self, request: &Request, shape: Shape, on_progress: OnProgress<'_>) -> Result<(), ModelError> {
        if self.model.generation() != self.generation {
            self.plans.clear();
            self.generation = self.model.generation();
        }
        ready(&self.model, &mut self.plans, (request, shape), on_progress)
    }
}

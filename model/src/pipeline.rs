//! The pipeline: from a prompt to pictures.
//!
//! A [`Model`] is an open device with one set of weights. A [`Pipeline`] draws with a model: it makes the plans that
//! a [`Request`] needs, keeps them, and replays them for later requests of the same shape without allocating or
//! compiling anything.

mod memory;
mod options;
mod plans;
mod progress;
mod request;
mod run;
mod sampling;
mod shared;
mod source;

pub use options::{Cache, DeviceChoice, Floats, Opened, Options};
pub use progress::{Flow, OnPicture, OnProgress, Phase, Progress};
pub use request::{Init, MOST_PICTURES, Request, Settings, Truncated};
pub use shared::Model;
pub use source::{Source, WeightsFrom};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Decoder, Network, Shape};
use crate::picture::Picture;
use memory::{Ask, Need};
use mobilediffusion_graph::{Device, PlanSummary, Recording, compile_ahead};
use plans::{Key, Plans};
use progress::Reporter;
use shared::GoOn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Draws pictures with a model. A pipeline can be sent to another thread, and several pipelines may share one model.
#[derive(Debug)]
pub struct Pipeline {
    model: Arc<Model>,
    plans: Plans,
    /// Generation of the device that the plans were made on.
    generation: u64,
    /// Counts as one pipeline over the model.
    _over: Arc<()>,
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
        let over = model.count();
        Self { model, plans: Plans::default(), generation, _over: over }
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
            Ok((key.network().title(), recording.summary(self.model.device_of(key.network())?.storage())))
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
        self.ready(request, settings.shape(self.model.config())?, on_progress)?;
        run::Run::new(&self.model, &mut self.plans, request, &settings, on_progress)?.pictures(on_picture).await
    }

    /// Frees this pipeline's plans, and the weights unless another pipeline shares them. The device stays open, and the
    /// next request makes everything again: for an application that is not drawing for a while.
    pub fn release(&mut self) {
        self.plans.clear();
        while self.model.pipelines() == 1 && self.model.release(&[]) {}
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

    /// Loads the weights and makes the plans of a request that are still missing.
    fn ready(&mut self, request: &Request, shape: Shape, on_progress: OnProgress<'_>) -> Result<(), ModelError> {
        if self.model.generation() != self.generation {
            self.plans.clear();
            self.generation = self.model.generation();
        }
        let keys = keys(self.model.config(), request, shape);
        keys.iter().try_for_each(|key| self.model.weights(key.network()).map(drop))?;
        self.plans.touch(&keys);
        let pictures = request.batches().next().unwrap_or(1);
        let ask = Ask { model: &self.model, device: &self.model.device(), latent: shape.latent, pictures, keys: &keys };
        loop {
            let mut missing = Vec::new();
            for key in keys.iter().copied().filter(|key| !self.plans.has(*key)) {
                let recording = Recording::new(key.graph(self.model.config())?);
                missing.push((key, Need::of(&recording, &self.model.device_of(key.network())?), recording));
            }
            if missing.is_empty() {
                return Ok(());
            }
            let needs: Vec<(Key, Need)> = missing.iter().map(|(key, need, _)| (*key, *need)).collect();
            let needed = make_room(&self.model, &mut self.plans, &ask, &needs)?;
            match make(&self.model, &mut self.plans, missing, on_progress) {
                // A device that does not report its memory is tried again with fewer plans and weights on it, until
                // none are left to free.
                Err(error) if error.is_out_of_memory() && free_one(&self.model, &mut self.plans, &keys) => {}
                Err(error) if error.is_out_of_memory() => return Err(ask.too_much(needed, None)),
                made => return made,
            }
        }
    }
}

/// Returns the keys of a request's plans.
fn keys(config: &ModelConfig, request: &Request, shape: Shape) -> Vec<Key> {
    let mut sizes: Vec<usize> = request.batches().collect();
    sizes.dedup();
    let batches = sizes.into_iter().flat_map(|pictures| {
        let shape = Shape { pictures, ..shape };
        [Key::Denoise(shape), Key::Decode(Decoder::of(config), shape.latent, pictures)]
    });
    let encode = request.init.is_some().then_some(Key::Encode(shape.latent));
    std::iter::once(Key::Text).chain(batches).chain(encode).collect()
}

/// Frees the least recently used plan, or else weights that no needed plan uses, and returns whether there was
/// anything to free. Weights that other pipelines share are kept: removing them here would free nothing.
fn free_one(model: &Arc<Model>, plans: &mut Plans, needed: &[Key]) -> bool {
    let networks: Vec<Network> = needed.iter().map(|key| key.network()).collect();
    plans.evict(needed) || model.pipelines() == 1 && model.release(&networks)
}

/// Frees plans and weights until the missing plans fit into the limits of [`Options`] and the machine's memory.
/// Returns the number of bytes that everything takes then.
fn make_room(model: &Arc<Model>, plans: &mut Plans, ask: &Ask<'_>, needs: &[(Key, Need)]) -> Result<u64, ModelError> {
    ask.check_buffers(&needs.iter().map(|(_, need)| *need).collect::<Vec<_>>())?;
    let most_plans = model.options().plans.max(ask.keys.len());
    while plans.len() + needs.len() > most_plans && plans.evict(ask.keys) {}
    loop {
        let there = plans.bytes() + model.resident_bytes();
        let budget = match model.options().memory {
            Some(most) => Some(most),
            None => memory::free(ask.device).map(|free| free + there),
        };
        let needed = taken(model, plans, needs);
        match budget {
            Some(budget) if needed > budget => {
                if !free_one(model, plans, ask.keys) {
                    return Err(ask.too_much(needed, Some(budget)));
                }
            }
            _ => return Ok(needed),
        }
    }
}

/// Returns the number of bytes of all weights and plans that exist or are missing.
fn taken(model: &Model, plans: &Plans, missing: &[(Key, Need)]) -> u64 {
    let need = memory::together(missing.iter().map(|(key, need)| {
        let weights = need.weights.saturating_sub(model.resident(key.network()));
        (*key, Need { weights, ..*need })
    }));
    plans.bytes() + model.resident_bytes() + need.total()
}

/// Checks and loads the missing weights and makes the missing plans.
fn make(
    model: &Model,
    plans: &mut Plans,
    missing: Vec<(Key, Need, Recording)>,
    on_progress: OnProgress<'_>,
) -> Result<(), ModelError> {
    let mut reporter = Reporter { on_progress, picture: 0 };
    let steps = |(_, _, recording): &(Key, Need, Recording)| recording.nodes().len();
    let total: usize = missing.iter().map(steps).sum();
    let mut each = |bring: &dyn Fn(&(Key, Need, Recording), GoOn<'_>) -> Result<(), ModelError>| {
        missing.iter().enumerate().try_for_each(|(at, plan)| {
            // A network's weights count as much as the steps that use them.
            let (before, own) = (missing[..at].iter().map(steps).sum::<usize>(), steps(plan));
            let mut go_on =
                |phase, done: usize, of: usize| reporter.report(phase, (before + own * done / of.max(1), total), None);
            bring(plan, &mut go_on)
        })
    };
    // Nothing is brought to the device before all weights have been checked.
    let mut load = || {
        each(&|(key, ..), go_on| model.check_weights(key.network(), go_on))?;
        each(&|(key, need, recording), go_on| model.load_weights((key.network(), need.weights), recording, go_on))
    };
    let devices = missing.iter().map(|(key, ..)| model.device_of(key.network())).collect::<Result<Vec<_>, _>>()?;
    let loaded = AtomicBool::new(false);
    thread::scope(|scope| {
        let ahead = || {
            let each = missing.iter().zip(&devices);
            each.for_each(|((_, _, recording), device)| compile_ahead(recording, device, &loaded));
        };
        // Where no thread can be started, everything is compiled when the plans are made.
        drop(thread::Builder::new().spawn_scoped(scope, ahead));
        let result = load();
        loaded.store(true, Ordering::Relaxed);
        result
    })?;
    reporter.check(Phase::Load, (total, total), None)?;
    let mut before = 0;
    for (key, _, recording) in missing {
        let own = recording.nodes().len();
        let mut go_on = |phase, done, _| reporter.report(phase, (before + done, total), None);
        plans.add(key, model.session(key.network(), recording, &mut go_on)?);
        before += own;
    }
    Ok(())
}

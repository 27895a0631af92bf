//! The facade: from a prompt to pictures.
//!
//! A [`Model`] is an open device with one set of weights. A [`Pipeline`] draws with it: it makes plans for what a
//! [`Request`] needs, keeps them, and replays them for the next request of the same shape without making or compiling
//! anything.

mod memory;
mod options;
mod plans;
mod progress;
mod request;
mod run;
mod sampling;
mod shared;
mod source;

pub use options::{DeviceChoice, Floats, Options};
pub use progress::{Flow, OnPicture, OnProgress, Phase, Progress};
pub use request::{Init, MOST_PICTURES, Request, Settings, Truncated};
pub use shared::Model;
pub use source::{Source, WeightsFrom};

use crate::error::ModelError;
use crate::networks::Shape;
use crate::picture::Picture;
use memory::{Ask, Need};
use mobilediffusion_graph::{Device, PlanSummary, Recording};
use plans::{Key, Plans};
use source::Part;
use std::sync::Arc;

/// Draws pictures with a model. Can be sent to another thread; several may share a model.
#[derive(Debug)]
pub struct Pipeline {
    model: Arc<Model>,
    plans: Plans,
    /// The device that the plans lie on.
    generation: u64,
}

/// What was made so far: a request that was prepared moves none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Buffers on the device, by all pipelines of the model; 0 on the CPU device.
    pub buffers: u64,
    /// Compiled kernels, by all pipelines of the model; 0 on the CPU device.
    pub kernels: u64,
    /// Plans of this pipeline that are ready.
    pub plans: usize,
    /// Bytes of these plans on their device.
    pub plan_bytes: u64,
    /// Bytes of weights, of all pipelines of the model.
    pub weight_bytes: u64,
}

impl Pipeline {
    /// Checks names and shapes of the weights that every picture takes, and opens the device. Weights and plans are made by the first request
    /// that needs them, or by [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// If the configuration, the weights or the device do not do.
    pub fn load(source: Source, options: Options) -> Result<Self, ModelError> {
        Ok(Self::over(Arc::new(Model::load(source, options)?)))
    }

    /// Another pipeline over a model that is already there.
    pub fn over(model: Arc<Model>) -> Self {
        let generation = model.generation();
        Self { model, plans: Plans::default(), generation }
    }

    /// The model, for further pipelines over it.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What a request comes to with the model's own settings.
    ///
    /// # Errors
    /// If it does not make sense.
    pub fn settings(&self, request: &Request) -> Result<Settings, ModelError> {
        self.model.settings(request)
    }

    /// What was made so far.
    pub fn counters(&self) -> Counters {
        let (buffers, kernels) = match self.model.device() {
            Device::Cpu(_) => (0, 0),
            Device::Gpu(gpu, _) => (gpu.counters().buffers, gpu.counters().pipelines),
        };
        let weight_bytes = self.model.resident_bytes();
        Counters { buffers, kernels, plans: self.plans.len(), plan_bytes: self.plans.bytes(), weight_bytes }
    }

    /// The plans of a request as numbers, as its device stores floats.
    ///
    /// # Errors
    /// If the request does not make sense.
    pub fn summaries(&self, request: &Request) -> Result<Vec<(&'static str, PlanSummary)>, ModelError> {
        let shape = self.settings(request)?.shape(self.model.config())?;
        let storage = self.model.storage();
        let summary = |key: Key| {
            let recording = Recording::new(key.graph(self.model.config())?);
            Ok((key.part().title(), recording.summary(storage)))
        };
        keys(request, shape).into_iter().map(summary).collect()
    }

    /// Makes everything ready that a request needs.
    ///
    /// # Errors
    /// If the request does not make sense or does not fit into memory, a weight is refused, the device fails, or the
    /// caller said stop.
    pub fn prepare(&mut self, request: &Request, on_progress: OnProgress<'_>) -> Result<(), ModelError> {
        let shape = self.settings(request)?.shape(self.model.config())?;
        self.ready(request, shape, on_progress)
    }

    /// Draws the pictures of a request.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), and if a result is not finite or of one colour.
    pub fn generate(&mut self, request: &Request, on_progress: OnProgress<'_>) -> Result<Vec<Picture>, ModelError> {
        pollster::block_on(self.generate_async(request, on_progress))
    }

    /// [`generate`](Self::generate) for where nobody may wait for the device. Weights are read and kernels compiled before it
    /// first yields: [`prepare`](Self::prepare) on another thread beforehand, where a first picture must not hold one up. The
    /// CPU device computes whenever it is polled: there a thread of its own is for it.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
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

    /// [`generate`](Self::generate), but hands over each picture once it is drawn and keeps none.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and if `on_picture` said stop. What was handed over before is whole.
    pub fn generate_each(
        &mut self,
        request: &Request,
        on_progress: OnProgress<'_>,
        on_picture: OnPicture<'_>,
    ) -> Result<(), ModelError> {
        pollster::block_on(self.generate_each_async(request, on_progress, on_picture))
    }

    /// [`generate_each`](Self::generate_each) for where nobody may wait, as [`generate_async`](Self::generate_async).
    ///
    /// # Errors
    /// As [`generate_each`](Self::generate_each).
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

    /// Opens the device again after it was lost, with the same weights from the same place; if another pipeline of the
    /// model has done so, joins it. The next request makes its plans anew.
    ///
    /// # Errors
    /// If the device cannot be opened, or the weights are not there any more.
    pub fn recover(&mut self) -> Result<(), ModelError> {
        pollster::block_on(self.recover_async())
    }

    /// [`recover`](Self::recover) for where nobody may wait.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub async fn recover_async(&mut self) -> Result<(), ModelError> {
        self.plans.clear();
        self.model.reopen(self.generation).await?;
        self.generation = self.model.generation();
        Ok(())
    }

    /// Brings weights and makes plans, what of them is not there yet.
    fn ready(&mut self, request: &Request, shape: Shape, on_progress: OnProgress<'_>) -> Result<(), ModelError> {
        if self.model.generation() != self.generation {
            self.plans.clear();
            self.generation = self.model.generation();
        }
        let keys = keys(request, shape);
        keys.iter().try_for_each(|key| self.model.check(key.part()))?;
        self.plans.touch(&keys);
        let device = self.model.device();
        let ask = Ask { config: self.model.config(), device: &device, latent: shape.latent, keys: &keys };
        loop {
            let mut missing = Vec::new();
            for key in keys.iter().copied().filter(|key| !self.plans.has(*key)) {
                let recording = Recording::new(key.graph(self.model.config())?);
                missing.push((key, Need::of(&recording, &device), recording));
            }
            if missing.is_empty() {
                return Ok(());
            }
            let needs: Vec<(Key, Need)> = missing.iter().map(|(key, need, _)| (*key, *need)).collect();
            let needed = make_room(&self.model, &mut self.plans, &ask, &needs)?;
            match make(&self.model, &mut self.plans, missing, on_progress) {
                // A device that does not say how much memory it has is asked again with less on it, as long as there is less.
                Err(error) if error.is_out_of_memory() && give_back(&self.model, &mut self.plans, &keys) => {}
                Err(error) if error.is_out_of_memory() => return Err(ask.too_much(needed, None)),
                made => return made,
            }
        }
    }
}

/// The plans of a request.
fn keys(request: &Request, shape: Shape) -> Vec<Key> {
    let encode = request.init.is_some().then_some(Key::Encode(shape.latent));
    [Key::Text, Key::Denoise(shape), Key::Decode(shape.latent)].into_iter().chain(encode).collect()
}

/// Gives back the longest unused plan, or weights of a network that no plan takes any more, unless it is one of `needed`;
/// false if there is none. Of weights that others draw with, too, none would be freed.
fn give_back(model: &Arc<Model>, plans: &mut Plans, needed: &[Key]) -> bool {
    let parts: Vec<Part> = needed.iter().map(|key| key.part()).collect();
    plans.evict(needed) || Arc::strong_count(model) == 1 && model.release(&parts)
}

/// Gives plans and weights back until there is room for what is missing, by the model's own limits and by what the machine
/// has; then all takes so many bytes.
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
                if !give_back(model, plans, ask.keys) {
                    return Err(ask.too_much(needed, Some(budget)));
                }
            }
            _ => return Ok(needed),
        }
    }
}

/// Bytes of all weights and plans that are there, and of what is missing.
fn taken(model: &Model, plans: &Plans, missing: &[(Key, Need)]) -> u64 {
    let weights = |key: Key, need: Need| need.weights.saturating_sub(model.resident(key.part()));
    let missing: u64 = missing.iter().map(|(key, need)| weights(*key, *need) + need.plan).sum();
    plans.bytes() + model.resident_bytes() + missing
}

fn make(
    model: &Model,
    plans: &mut Plans,
    missing: Vec<(Key, Need, Recording)>,
    on_progress: OnProgress<'_>,
) -> Result<(), ModelError> {
    let mut tell = |phase, step, total| {
        let progress = Progress { phase, step, total, picture: 0, preview: None };
        on_progress(&progress) == Flow::Continue
    };
    let steps = |(_, _, recording): &(Key, Need, Recording)| recording.nodes.len();
    let total: usize = missing.iter().map(steps).sum();
    for (at, (key, need, recording)) in missing.iter().enumerate() {
        // Weights are counted in shares of the steps that take them.
        let (before, own) = (missing[..at].iter().map(steps).sum::<usize>(), recording.nodes.len());
        let mut go_on = |phase, done: usize, of: usize| tell(phase, before + own * done / of.max(1), total);
        model.bring((key.part(), need.weights), recording, &mut go_on)?;
    }
    if !tell(Phase::Load, total, total) {
        return Err(ModelError::Stopped);
    }
    let mut before = 0;
    for (key, _, recording) in missing {
        let own = recording.nodes.len();
        let mut go_on = |phase, done, _| tell(phase, before + done, total);
        plans.add(key, model.session(key.part(), recording, &mut go_on)?);
        before += own;
    }
    Ok(())
}

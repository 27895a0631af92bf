//! State that pipelines share: an open device and one set of weights on it.

use super::options::Options;
use super::progress::Phase;
use super::request::{Request, Settings, Truncated};
use super::source::{Part, Source};
use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::schedule::Schedule;
use crate::tokenizer::{Encoded, Tokenizer};
use mobilediffusion_graph::{Device, Recording, Session, WeightLoader, Weights};
use mobilediffusion_kernels::Storage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Model on a device. Any number of pipelines draw with it, on any threads, and its weights exist once.
#[derive(Debug)]
pub struct Model {
    source: Source,
    options: Options,
    schedule: Schedule,
    tokenizer: Tokenizer,
    opened: Mutex<Opened>,
}

/// State that is lost together with the device.
#[derive(Debug)]
struct Opened {
    device: Device,
    line: String,
    /// Number of times that the device was opened again.
    generation: u64,
    /// Weights of every network, by folder. They are brought to the device when a plan first needs them.
    weights: HashMap<&'static str, Arc<Weights>>,
    /// Number of bytes on the device, by network; two networks may share a folder.
    bytes: HashMap<Part, u64>,
}

impl Opened {
    /// Checks the files, then opens the device.
    async fn new(source: &Source, options: &Options, generation: u64) -> Result<Self, ModelError> {
        // Files are checked before a device is opened.
        let needed = source.needed().map(|part| source.part(part).map(|weights| (source.folder(part), weights)));
        let sources = needed.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (device, line) = options.open().await?;
        let weights = sources.into_iter().map(|(folder, source)| (folder, on_device(&device, source))).collect();
        Ok(Self { device, line, generation, weights, bytes: HashMap::new() })
    }
}

/// Callback for progress with the phase, the number of steps that are done and the total. It returns whether to go
/// on.
pub(super) type GoOn<'a> = &'a mut (dyn FnMut(Phase, usize, usize) -> bool + Send);

impl Model {
    /// Checks the weights that every picture needs (names, shapes, finite values), then opens the device.
    ///
    /// Weights that only some requests need, those of the VAE's encoder or of DDIM's UNet, are checked when a request
    /// first needs them.
    ///
    /// # Errors
    /// [`ModelError`] if the configuration or the weights are not valid, or the device cannot be opened.
    pub fn load(source: Source, options: Options) -> Result<Self, ModelError> {
        pollster::block_on(Self::load_async(source, options))
    }

    /// Loads a model without blocking on the device: [`load`](Self::load) for an async executor.
    ///
    /// Files are read, every value of them once, before the first yield. Where this must not hold up the executor,
    /// call it on another thread.
    ///
    /// # Errors
    /// Fails in the cases of [`load`](Self::load).
    pub async fn load_async(source: Source, options: Options) -> Result<Self, ModelError> {
        source.config.validate()?;
        let schedule = Schedule::new(&source.config.scheduler)?;
        // Building the tokenizer takes as long as opening a device.
        let tokenizer = std::thread::spawn(Tokenizer::clip);
        let opened = Mutex::new(Opened::new(&source, &options, 0).await?);
        let tokenizer = tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self { source, options, schedule, tokenizer, opened })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.source.config
    }

    /// Returns the settings that a request amounts to, with the model's own values where the request has none.
    ///
    /// # Errors
    /// [`ModelError`] if a value of the request is not valid; the error names it.
    pub fn settings(&self, request: &Request) -> Result<Settings, ModelError> {
        let settings = request.settings(self.config(), &self.schedule)?;
        let cut = |text: &str| {
            let left_out = self.encode(text)?.truncated;
            Ok::<_, ModelError>(left_out.map(|left_out| Truncated::of(text, left_out)))
        };
        let (truncated, negative_truncated) = (cut(&request.prompt)?, cut(&request.negative)?);
        Ok(Settings { truncated, negative_truncated, ..settings })
    }

    /// Describes the device, and the reason for its choice, in one line.
    pub fn device_line(&self) -> String {
        self.opened().line.clone()
    }

    /// Returns the types in which the device stores the tensors of the UNet that a sampler walks.
    ///
    /// # Errors
    /// [`ModelError`] if the UNet's files are not valid, which are checked if no request has used them before.
    pub fn storage(&self, sampler: Sampler) -> Result<Storage, ModelError> {
        Ok(self.device_of(Part::Unet(sampler))?.storage())
    }

    /// Returns the device.
    pub fn device(&self) -> Device {
        self.opened().device.clone()
    }

    /// Returns the device as it stores a network: matrices in 16 bits where the network's files have them so.
    pub(super) fn device_of(&self, part: Part) -> Result<Device, ModelError> {
        Ok(self.weights(part)?.device().clone())
    }

    /// Opens the device again if it is still the one of `generation`. Weights are read again from their source.
    pub(super) async fn reopen(&self, generation: u64) -> Result<(), ModelError> {
        if self.generation() != generation {
            return Ok(());
        }
        let reopened = Opened::new(&self.source, &self.options, generation + 1).await?;
        let mut opened = self.opened();
        if opened.generation == generation {
            *opened = reopened;
        }
        Ok(())
    }

    /// Returns the number of times that the device was opened again.
    pub(super) fn generation(&self) -> u64 {
        self.opened().generation
    }

    /// Returns the options.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the noise schedule.
    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Returns the token ids of a text, as many as the text encoder reads.
    pub(super) fn encode(&self, text: &str) -> Result<Encoded, ModelError> {
        self.tokenizer.encode(text, self.config().text_encoder.max_position_embeddings)
    }

    /// Returns the number of bytes of a network's weights on the device.
    pub(super) fn resident(&self, part: Part) -> u64 {
        self.opened().bytes.get(&part).copied().unwrap_or(0)
    }

    /// Returns the number of bytes of all weights on the device.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.opened().bytes.values().sum()
    }

    /// Opens and checks the weights of a network that not every picture needs.
    pub(super) fn check(&self, part: Part) -> Result<(), ModelError> {
        let folder = self.source.folder(part);
        if self.opened().weights.contains_key(folder) {
            return Ok(());
        }
        let source = self.source.part(part)?;
        let mut opened = self.opened();
        let weights = on_device(&opened.device, source);
        opened.weights.entry(folder).or_insert(weights);
        Ok(())
    }

    /// Frees the weights of a network that is not `needed`, and returns whether there was one. They are read again
    /// when a request needs them.
    pub(super) fn release(&self, needed: &[Part]) -> bool {
        let folders: Vec<&str> = needed.iter().map(|part| self.source.folder(*part)).collect();
        let mut opened = self.opened();
        let mut unneeded = opened.bytes.keys().map(|part| self.source.folder(*part)).filter(|f| !folders.contains(f));
        let Some(folder) = unneeded.next() else { return false };
        opened.bytes.retain(|part, _| self.source.folder(*part) != folder);
        opened.weights.remove(folder).is_some()
    }

    /// Brings the weights of a recording to the device. `bytes` is their size.
    pub(super) fn bring(
        &self,
        (part, bytes): (Part, u64),
        recording: &Recording,
        go_on: GoOn<'_>,
    ) -> Result<(), ModelError> {
        let weights = self.weights(part)?;
        let before = weights.bytes();
        let loaded = weights.load(recording, &mut |done, total| go_on(Phase::Load, done, total));
        let brought = weights.bytes() - before;
        let mut opened = self.opened();
        // The device may have been opened again in the meantime; then these weights belong to the lost one.
        if opened.weights.get(self.source.folder(part)).is_some_and(|now| Arc::ptr_eq(now, &weights)) {
            let there = opened.bytes.entry(part).or_default();
            // Weights that arrived before the caller asked to stop remain and take memory.
            *there = if loaded.is_ok() { bytes } else { *there + brought };
        }
        Ok(loaded?)
    }

    /// Makes a session over weights that are on the device.
    pub(super) fn session(&self, part: Part, recording: Recording, go_on: GoOn<'_>) -> Result<Session, ModelError> {
        let weights = self.weights(part)?;
        Ok(Session::new(recording, &weights, &mut |done, total| go_on(Phase::Compile, done, total))?)
    }

    /// Returns the weights of a network.
    fn weights(&self, part: Part) -> Result<Arc<Weights>, ModelError> {
        self.check(part)?;
        let opened = self.opened();
        Ok(Arc::clone(opened.weights.get(self.source.folder(part)).expect("just checked")))
    }

    /// Locks the state that is lost with the device.
    fn opened(&self) -> MutexGuard<'_, Opened> {
        // A thread that panicked has left the value whole: it is only ever replaced or added to.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns weights of a device, none of which are loaded yet.
fn on_device(device: &Device, source: Box<dyn WeightLoader + Send + Sync>) -> Arc<Weights> {
    Arc::new(Weights::new(device.clone(), source))
}

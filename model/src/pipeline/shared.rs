//! What pipelines share: an open device, and one set of weights on it.

use super::options::Options;
use super::progress::Phase;
use super::request::{Request, Settings, Truncated};
use super::source::{Part, Source};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::schedule::Schedule;
use crate::tokenizer::{Encoded, Tokenizer};
use mobilediffusion_graph::{Device, Recording, Session, WeightLoader, Weights};
use mobilediffusion_kernels::Storage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A model on a device. Any number of pipelines, on any threads, draw with it: its weights are there once.
#[derive(Debug)]
pub struct Model {
    source: Source,
    options: Options,
    schedule: Schedule,
    tokenizer: Tokenizer,
    opened: Mutex<Opened>,
}

/// What is lost with the device.
#[derive(Debug)]
struct Opened {
    device: Device,
    line: String,
    /// Counts the devices that were opened.
    generation: u64,
    /// The weights of every network, by folder. They are brought to the device when a plan first needs them. Each has a
    /// lock of its own, so that whoever hears of its progress may ask the model for anything else.
    weights: HashMap<&'static str, Arc<Mutex<Weights>>>,
    /// Bytes of those that are there, by network: two may share a folder.
    bytes: HashMap<Part, u64>,
}

impl Opened {
    async fn new(source: &Source, options: &Options, generation: u64) -> Result<Self, ModelError> {
        // Files are looked at before the device is.
        let needed = source.needed().map(|part| source.part(part).map(|weights| (source.folder(part), weights)));
        let sources = needed.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (device, line) = options.open().await?;
        let weights = sources.into_iter().map(|(folder, source)| (folder, on_device(&device, source))).collect();
        Ok(Self { device, line, generation, weights, bytes: HashMap::new() })
    }
}

/// Is asked whether to go on, with the phase, the steps done and those there are.
pub(super) type GoOn<'a> = &'a mut (dyn FnMut(Phase, usize, usize) -> bool + Send);

impl Model {
    /// Checks names and shapes of the weights that every picture takes, then opens the device. What only some take, the
    /// VAE's encoder or the UNet of DDIM, is checked when a request first needs it.
    ///
    /// # Errors
    /// If the configuration, the weights or the device do not do.
    pub fn load(source: Source, options: Options) -> Result<Self, ModelError> {
        pollster::block_on(Self::load_async(source, options))
    }

    /// [`load`](Self::load) for where nobody may wait for the device. Files are read, every value of them once, before it first
    /// yields: on another thread, where that must not hold one up.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub async fn load_async(source: Source, options: Options) -> Result<Self, ModelError> {
        source.config.validate()?;
        let schedule = Schedule::new(&source.config.scheduler)?;
        let opened = Mutex::new(Opened::new(&source, &options, 0).await?);
        let tokenizer = Tokenizer::clip()?;
        Ok(Self { source, options, schedule, tokenizer, opened })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.source.config
    }

    /// What a request comes to.
    ///
    /// # Errors
    /// If it does not make sense.
    pub fn settings(&self, request: &Request) -> Result<Settings, ModelError> {
        let settings = request.settings(self.config(), &self.schedule)?;
        let cut = |text: &str| {
            let left_out = self.encode(text)?.truncated;
            Ok::<_, ModelError>(left_out.map(|left_out| Truncated::of(text, left_out)))
        };
        let (truncated, negative_truncated) = (cut(&request.prompt)?, cut(&request.negative)?);
        Ok(Settings { truncated, negative_truncated, ..settings })
    }

    /// Which device is used and why, in one line.
    pub fn device_line(&self) -> String {
        self.opened().line.clone()
    }

    /// How the device stores tensors.
    pub fn storage(&self) -> Storage {
        self.device().storage()
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.opened().device.clone()
    }

    /// Opens the device again if it is still the one of `generation`; the weights are read anew from where they came.
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

    pub(super) fn generation(&self) -> u64 {
        self.opened().generation
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The ids of a text, as many as the text encoder reads.
    pub(super) fn encode(&self, text: &str) -> Result<Encoded, ModelError> {
        self.tokenizer.encode(text, self.config().text_encoder.max_position_embeddings)
    }

    /// Bytes of the weights of a network that are on the device.
    pub(super) fn resident(&self, part: Part) -> u64 {
        self.opened().bytes.get(&part).copied().unwrap_or(0)
    }

    /// Bytes of all weights that are on the device.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.opened().bytes.values().sum()
    }

    /// Opens and checks the weights of a network that not every picture takes.
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

    /// Gives the weights of a network back that is none of these; false if there are none. When it is needed again, they
    /// are read anew.
    pub(super) fn release(&self, needed: &[Part]) -> bool {
        let folders: Vec<&str> = needed.iter().map(|part| self.source.folder(*part)).collect();
        let mut opened = self.opened();
        let mut unneeded = opened.bytes.keys().map(|part| self.source.folder(*part)).filter(|f| !folders.contains(f));
        let Some(folder) = unneeded.next() else { return false };
        opened.bytes.retain(|part, _| self.source.folder(*part) != folder);
        opened.weights.remove(folder).is_some()
    }

    /// Brings the weights of a recording, `bytes` of them, to the device.
    pub(super) fn bring(
        &self,
        (part, bytes): (Part, u64),
        recording: &Recording,
        go_on: GoOn<'_>,
    ) -> Result<(), ModelError> {
        let weights = self.weights(part)?;
        let mut held = lock(&weights);
        let before = held.bytes();
        let loaded = held.load(recording, &mut |done, total| go_on(Phase::Load, done, total));
        let brought = held.bytes() - before;
        drop(held);
        let mut opened = self.opened();
        // Not if the device was opened anew in the meantime.
        if opened.weights.get(self.source.folder(part)).is_some_and(|now| Arc::ptr_eq(now, &weights)) {
            let there = opened.bytes.entry(part).or_default();
            // What came before somebody said stop stays, and takes room.
            *there = if loaded.is_ok() { bytes } else { *there + brought };
        }
        Ok(loaded?)
    }

    /// Makes a session over weights that are on the device.
    pub(super) fn session(&self, part: Part, recording: Recording, go_on: GoOn<'_>) -> Result<Session, ModelError> {
        let weights = self.weights(part)?;
        Ok(Session::new(recording, &mut lock(&weights), &mut |done, total| go_on(Phase::Compile, done, total))?)
    }

    /// The weights of a network.
    fn weights(&self, part: Part) -> Result<Arc<Mutex<Weights>>, ModelError> {
        self.check(part)?;
        let opened = self.opened();
        Ok(Arc::clone(opened.weights.get(self.source.folder(part)).expect("just checked")))
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        lock(&self.opened)
    }
}

/// Weights that a device has none of yet.
fn on_device(device: &Device, source: impl WeightLoader + Send + 'static) -> Arc<Mutex<Weights>> {
    Arc::new(Mutex::new(Weights::new(device.clone(), Box::new(source))))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked while holding it has left it whole: it is only ever replaced or added to.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

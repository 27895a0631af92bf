//! State that pipelines share: an open device and one set of weights on it.

use super::options::Options;
use super::progress::Phase;
use super::request::{Request, Settings, Truncated};
use super::source::{Loader, Source};
use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::Network;
use crate::schedule::Schedule;
use crate::tokenizer::{Encoded, Tokenizer};
use mobilediffusion_graph::{Device, Flow, Recording, Weights};
use mobilediffusion_kernels::Storage;
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

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
    /// Weights of every network, by folder. They are brought to the device when a plan first needs them. Plans, and
    /// requests that are being prepared, hold those that they use.
    weights: HashMap<&'static str, Arc<Weights>>,
}

impl Opened {
    /// Checks the files' headers, then opens the device that the options choose.
    async fn new(source: &Source, options: &Options) -> Result<Self, ModelError> {
        let sources = checked(source)?;
        let (device, line) = options.open().await?;
        Ok(Self::over(device, line, 0, sources))
    }

    /// Checks the files' headers, then opens a lost device again: the same adapter, with the same types.
    async fn again(source: &Source, (lost, line): (Device, String), generation: u64) -> Result<Self, ModelError> {
        let sources = checked(source)?;
        let device = match lost {
            Device::Cpu(weights) => Device::Cpu(weights),
            Device::Gpu(gpu, storage) => Device::Gpu(Arc::new(gpu.recreate().await?), storage),
        };
        Ok(Self::over(device, line, generation, sources))
    }

    fn over(device: Device, line: String, generation: u64, sources: Vec<(&'static str, Loader)>) -> Self {
        let weights = sources.into_iter().map(|(folder, source)| (folder, on_device(&device, source))).collect();
        Self { device, line, generation, weights }
    }
}

/// Opens the files that every picture needs, and checks their headers. Returns them with their folders.
fn checked(source: &Source) -> Result<Vec<(&'static str, Loader)>, ModelError> {
    let open = |network: Network| Ok((network.folder(&source.config), source.open(network)?));
    source.needed().into_iter().map(open).collect()
}

/// Callback for progress with the phase, the number of steps that are done and the total.
pub(super) type GoOn<'a> = &'a mut (dyn FnMut(Phase, usize, usize) -> Flow + Send);

impl Model {
    /// Checks the files of the weights that every picture needs (names, shapes, types), then opens the device.
    ///
    /// Files that only some requests need, those of the VAE's encoder or of DDIM's UNet, are checked when a request
    /// first needs them, as are the values of all weights.
    ///
    /// # Errors
    /// [`ModelError`] if the configuration or the weights are not valid, or the device cannot be opened.
    pub fn load(source: Source, options: Options) -> Result<Self, ModelError> {
        pollster::block_on(Self::load_async(source, options))
    }

    /// Loads a model without blocking on the device: [`load`](Self::load) for an async executor.
    ///
    /// # Errors
    /// Fails in the cases of [`load`](Self::load).
    pub async fn load_async(source: Source, options: Options) -> Result<Self, ModelError> {
        source.config.validate()?;
        let source = Source { weights: source.weights.absolute()?, ..source };
        start_threads()?;
        let schedule = Schedule::new(&source.config.scheduler)?;
        // Building the tokenizer takes as long as opening a device. It is built after it where no thread can be started.
        let tokenizer = thread::Builder::new().spawn(Tokenizer::clip);
        let opened = Mutex::new(Opened::new(&source, &options).await?);
        let tokenizer = match tokenizer {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            Err(_) => Tokenizer::clip()?,
        };
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
        let unet = Network::Unet(settings.sampler);
        if !self.opened().weights.contains_key(self.folder(unet)) {
            self.source.check_base(unet)?;
        }
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
        Ok(self.device_of(Network::Unet(sampler))?.storage())
    }

    /// Returns the device.
    pub fn device(&self) -> Device {
        self.opened().device.clone()
    }

    /// Returns the device as it stores a network: matrices in 16 bits where the network's files have them so.
    pub(super) fn device_of(&self, network: Network) -> Result<Device, ModelError> {
        Ok(self.weights(network)?.device().clone())
    }

    /// Opens the device again if it is still the one of `generation`. Weights are read again from their source.
    pub(super) async fn reopen(&self, generation: u64) -> Result<(), ModelError> {
        if self.generation() != generation {
            return Ok(());
        }
        let lost = (self.device(), self.device_line());
        let reopened = Opened::again(&self.source, lost, generation + 1).await?;
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

    /// Returns the number of bytes of those weights of a network's recording that are on the device.
    pub(super) fn resident(&self, network: Network, recording: &Recording) -> u64 {
        let weights = self.opened().weights.get(self.folder(network)).cloned();
        weights.map_or(0, |weights| weights.bytes_of(recording))
    }

    /// Returns the number of bytes of all weights on the device.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.opened().weights.values().map(|weights| weights.bytes()).sum()
    }

    /// Returns the weights of a network. Files that no request has used before are opened, and their headers checked.
    pub(super) fn weights(&self, network: Network) -> Result<Arc<Weights>, ModelError> {
        let folder = self.folder(network);
        if let Some(weights) = self.opened().weights.get(folder) {
            return Ok(Arc::clone(weights));
        }
        let source = self.source.open(network)?;
        let mut opened = self.opened();
        let weights = on_device(&opened.device, source);
        Ok(Arc::clone(opened.weights.entry(folder).or_insert(weights)))
    }

    /// Returns the folder of a network's weights.
    fn folder(&self, network: Network) -> &'static str {
        network.folder(self.config())
    }

    /// Frees the weights in a folder that no plan or request of any pipeline uses, and returns whether there were any.
    /// They are read again when a request needs them.
    pub(super) fn release(&self) -> bool {
        let mut opened = self.opened();
        let unused = |(_, weights): &(&&str, &Arc<Weights>)| Arc::strong_count(weights) == 1 && weights.bytes() > 0;
        let found = opened.weights.iter().find(unused).map(|(folder, _)| *folder);
        found.is_some_and(|folder| opened.weights.remove(folder).is_some())
    }

    /// Returns the number of bytes of the weights that [`release`](Self::release) could free without these `holders`.
    pub(super) fn unused_bytes(&self, holders: &[&Arc<Weights>]) -> u64 {
        let opened = self.opened();
        let unused = |weights: &&Arc<Weights>| {
            let held = holders.iter().filter(|holder| Arc::ptr_eq(holder, weights)).count();
            Arc::strong_count(weights) == 1 + held
        };
        opened.weights.values().filter(unused).map(|weights| weights.bytes()).sum()
    }

    /// Checks the values of a network's weights, unless that was done before.
    pub(super) fn check_weights(&self, network: Network, go_on: GoOn<'_>) -> Result<(), ModelError> {
        Ok(self.weights(network)?.check(&mut |done, total| go_on(Phase::Check, done, total))?)
    }

    /// Brings the weights of a recording to the device. Those that arrive before the caller asks to stop remain there.
    pub(super) fn load_weights(
        &self,
        network: Network,
        recording: &Recording,
        go_on: GoOn<'_>,
    ) -> Result<(), ModelError> {
        Ok(self.weights(network)?.load(recording, &mut |done, total| go_on(Phase::Load, done, total))?)
    }

    /// Locks the state that is lost with the device.
    fn opened(&self) -> MutexGuard<'_, Opened> {
        // A thread that panicked has left the value whole: it is only ever replaced or added to.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts rayon's threads, unless the application has done so. On first use they would panic where the system refuses
/// them.
fn start_threads() -> Result<(), ModelError> {
    // rayon starts its threads once, and remembers no failure: the second attempt is told that they run already.
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a cause, the error says that they run already.
        Err(error) if error.source().is_some() => Err(error.to_string()),
        _ => Ok(()),
    };
    STARTED.get_or_init(start).clone().map_err(|message| ModelError::Threads { message })
}

/// Returns weights of a device, none of which are loaded yet.
fn on_device(device: &Device, source: Loader) -> Arc<Weights> {
    Arc::new(Weights::new(device.clone(), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{DeviceChoice, WeightsFrom};
    use std::path::Path;

    #[test]
    fn weights_are_found_from_any_working_directory() {
        let relative = Path::new("checkpoints/mini");
        let whole = WeightsFrom::Directory(std::path::absolute(relative).expect("there is a working directory"));
        let source = Source::directory(relative).expect("tests run in the crate's folder");
        assert_eq!(source.weights, whole);
        let source = Source { weights: WeightsFrom::Directory(relative.to_owned()), ..source };
        let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
        assert_eq!(Model::load(source, options).expect("it loads").source.weights, whole);
        let here = WeightsFrom::Directory(std::env::current_dir().expect("there is one"));
        assert_eq!(WeightsFrom::Directory("".into()).absolute().expect("it is the working directory"), here);
    }
}

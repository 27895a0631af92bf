//! The facade: from a prompt to a picture.

use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{Decoder, Shape, decode_graph, denoise_graph, text_graph, vae_weights};
use crate::noise::Noise;
use crate::picture::Picture;
use crate::schedule::{MOST_ONE_STEP, Schedule};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::weights::{Checkpoint, Synthetic, WeightSource};
use mobilediffusion_graph::{Device, Graph, GraphError, PlanSummary, Recording, Session, Weights};
use mobilediffusion_kernels::Storage;
use mobilediffusion_runtime::{Gpu, Select};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a pipeline runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware GPU if there is one, else the CPU device.
    #[default]
    Auto,
    /// The CPU device.
    Cpu,
    /// The best GPU adapter, a software one if there is no other.
    Gpu,
    /// The adapter of this index, or whose name or driver contains this.
    Named(String),
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// A folder with `unet`, `decoder` and `text_encoder` in it.
    Directory(PathBuf),
    /// Made up from a seed: for measuring, not for looking at.
    Synthetic(u64),
}

/// A model: its configuration and its weights.
#[derive(Clone, Debug)]
pub struct Source {
    /// The networks.
    pub config: ModelConfig,
    /// Their weights.
    pub weights: WeightsFrom,
}

impl Source {
    /// The checkpoint that comes with the project: beside the executable in `checkpoints/tiny`, or in the sources it
    /// was built from.
    ///
    /// # Errors
    /// If it is in neither place, or does not read.
    pub fn bundled() -> Result<Self, ModelError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("checkpoints/tiny")));
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/tiny");
        Self::directory(&beside.filter(|path| path.is_dir()).unwrap_or(sources))
    }

    /// A checkpoint in a folder.
    ///
    /// # Errors
    /// If its configuration is missing or does not make sense.
    pub fn directory(path: &Path) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::load(path)?, weights: WeightsFrom::Directory(path.to_owned()) })
    }

    /// A preset with made-up weights.
    ///
    /// # Errors
    /// If there is no such preset.
    pub fn synthetic(preset: &str, seed: u64) -> Result<Self, ModelError> {
        Ok(Self { config: ModelConfig::preset(preset)?, weights: WeightsFrom::Synthetic(seed) })
    }

    /// The folder of the UNet for a sampler. A checkpoint whose own sampler is the one-step one may bring the UNet it was
    /// made from along, in `unet_base`: that one is for DDIM.
    fn unet_folder(&self, sampler: Sampler) -> &'static str {
        match (self.config.defaults.sampler, sampler) {
            (Sampler::OneStep, Sampler::Ddim) => "unet_base",
            _ => "unet",
        }
    }

    /// The weights of one part, after checking that they are what its graph needs.
    fn part(&self, name: &str, graph: &Graph) -> Result<Box<dyn WeightSource>, ModelError> {
        match &self.weights {
            WeightsFrom::Synthetic(seed) => Ok(Box::new(Synthetic { seed: *seed })),
            WeightsFrom::Directory(path) => {
                let checkpoint = Checkpoint::open(&path.join(name))?;
                // CLIP checkpoints come with and without the prefix.
                let checkpoint = match name {
                    "text_encoder" => checkpoint.with_optional_prefix("text_model."),
                    _ => checkpoint,
                };
                // The VAE's file holds both halves, whichever is run.
                match name {
                    "vae" => checkpoint.verify(&vae_weights(&self.config)?)?,
                    _ => checkpoint.verify(&graph.weights())?,
                }
                Ok(Box::new(checkpoint))
            }
        }
    }
}

/// How pictures are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where.
    pub device: DeviceChoice,
    /// Width of the picture in pixels, a multiple of 32.
    pub width: usize,
    /// Height of the picture in pixels, a multiple of 32.
    pub height: usize,
    /// Evaluations of the UNet; none for the sampler's own number.
    pub steps: Option<usize>,
    /// Strength of guidance, 1 for none; none for the sampler's own.
    pub guidance: Option<f32>,
}

/// DDIM's evaluations where neither the request nor the model says how many (the paper measures with 50; 20 look alike).
const DDIM_STEPS: usize = 20;

/// DDIM's guidance where neither the request nor the model says how strong (paper, section 4.1: about 3).
const DDIM_GUIDANCE: f32 = 3.0;

impl Options {
    /// The model's own size and settings, on the best device.
    pub fn new(config: &ModelConfig) -> Self {
        let size = config.defaults.image_size;
        Self { device: DeviceChoice::Auto, width: size, height: size, steps: None, guidance: None }
    }

    /// Sampler, steps and guidance. A one-step model samples by DDIM if more steps are asked for than it takes, or
    /// guidance.
    fn sampling(&self, config: &ModelConfig) -> (Sampler, usize, f32) {
        let own = &config.defaults;
        let beyond = self.steps.is_some_and(|steps| steps > MOST_ONE_STEP) || self.guidance.is_some_and(|g| g != 1.0);
        match own.sampler {
            Sampler::OneStep if beyond => {
                (Sampler::Ddim, self.steps.unwrap_or(DDIM_STEPS), self.guidance.unwrap_or(DDIM_GUIDANCE))
            }
            sampler => (sampler, self.steps.unwrap_or(own.steps), self.guidance.unwrap_or(own.guidance)),
        }
    }
}

/// What a pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading weights and making the plans ready.
    Load,
    /// Encoding the prompt.
    Encode,
    /// Evaluating the UNet.
    Denoise,
    /// Decoding the latent.
    Decode,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::Encode => "encode",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Steps of it that are done.
    pub step: usize,
    /// Steps it has.
    pub total: usize,
}

/// Hears of progress.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// A model made ready on a device for one size of picture and one sampler.
#[derive(Debug)]
pub struct Pipeline {
    config: ModelConfig,
    shape: Shape,
    guidance: f32,
    schedule: Schedule,
    tokenizer: Tokenizer,
    text: Session,
    denoise: Session,
    decode: Session,
    device_line: String,
}

impl Pipeline {
    /// Checks the model, loads it and makes its plans ready.
    ///
    /// # Errors
    /// If an option, the weights or the device do not do; nothing is allocated on a device before the weights' names
    /// and shapes are checked.
    pub fn load(source: Source, options: Options, on_progress: OnProgress<'_>) -> Result<Self, ModelError> {
        let config = source.config.clone();
        config.validate()?;
        let (sampler, steps, guidance) = options.sampling(&config);
        check_guidance(guidance)?;
        let shape = Shape::of(options.width, options.height, sampler, steps, guidance != 1.0)?;
        let schedule = Schedule::new(&config.scheduler)?;
        // Wrong step counts are found before anything is loaded.
        match sampler {
            Sampler::Ddim => schedule.ddim(steps, 0.0).map(drop)?,
            Sampler::OneStep => schedule.one_step(steps).map(drop)?,
        }
        let decoder = Decoder::of(&config);
        let graphs = [
            ("text_encoder", text_graph(&config, shape.batch())?),
            (source.unet_folder(sampler), denoise_graph(&config, &shape)?),
            (decoder.folder(), decode_graph(&config, &shape, decoder)?),
        ];
        let parts = graphs
            .into_iter()
            .map(|(name, graph)| Ok((source.part(name, &graph)?, Recording::new(graph))))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let (device, device_line) = open(&options.device)?;
        let total: usize = parts.iter().map(|(_, recording)| recording.nodes.len()).sum();
        let (mut sessions, mut before) = (Vec::new(), 0);
        for (weights, recording) in parts {
            let steps = recording.nodes.len();
            let mut weights = Weights::new(device.clone(), Box::new(weights));
            let mut report = |done, _| on_progress(Progress { phase: Phase::Load, step: before + done, total });
            sessions.push(Session::new(recording, &mut weights, &mut report)?);
            before += steps;
        }
        let [text, denoise, decode] = <[Session; 3]>::try_from(sessions).expect("three parts make three sessions");
        let tokenizer = Tokenizer::clip()?;
        Ok(Self { config, shape, guidance, schedule, tokenizer, text, denoise, decode, device_line })
    }

    /// Which device is used and why, in one line.
    pub fn device_line(&self) -> String {
        self.device_line.clone()
    }

    /// Evaluations of the UNet for a picture.
    pub fn steps(&self) -> usize {
        self.shape.steps
    }

    /// Strength of guidance, 1 for none.
    pub fn guidance(&self) -> f32 {
        self.guidance
    }

    /// The plans of text encoder, UNet and decoder as numbers, for f32 storage.
    pub fn plans(&self) -> [(&'static str, PlanSummary); 3] {
        let summary = |session: &Session| session.recording().summary(Storage::F32);
        [("text encoder", summary(&self.text)), ("unet", summary(&self.denoise)), ("decoder", summary(&self.decode))]
    }

    /// Draws one picture. The same prompt and seed give the same picture.
    ///
    /// # Errors
    /// If the device fails, or the network's result is not finite.
    pub fn generate(&mut self, prompt: &str, seed: u64, on_progress: OnProgress<'_>) -> Result<Picture, ModelError> {
        let encoded = self.encode(prompt, on_progress)?;
        let noise = Noise::new(seed).latent(self.latent_len());
        let latent = self.denoise(noise, seed, on_progress)?;
        let rgba = self.decode(&latent, on_progress)?;
        let (width, height) = (8 * self.shape.latent_width, 8 * self.shape.latent_height);
        Ok(Picture { width, height, rgba, truncated: encoded.truncated })
    }

    /// Values of one image's latent.
    pub fn latent_len(&self) -> usize {
        self.shape.latent_height * self.shape.latent_width * self.config.unet.in_channels()
    }

    fn encode(&mut self, prompt: &str, on_progress: OnProgress<'_>) -> Result<Encoded, ModelError> {
        let max_len = self.config.text_encoder.max_position_embeddings;
        let encoded = self.tokenizer.encode(prompt, max_len)?;
        let mut ids = match self.shape.guided {
            true => self.tokenizer.encode("", max_len)?.ids,
            false => Vec::new(),
        };
        ids.extend(&encoded.ids);
        self.text.write_u32("ids", &ids)?;
        run(&mut self.text, Phase::Encode, on_progress)?;
        let context = self.text.read("context")?;
        self.denoise.write("context", &context)?;
        Ok(encoded)
    }

    /// Runs the sampler from `noise`, one image's latent, and gives the clean latent.
    ///
    /// # Errors
    /// If the device fails, or the result is not finite.
    fn denoise(&mut self, noise: Vec<f32>, seed: u64, on_progress: OnProgress<'_>) -> Result<Vec<f32>, ModelError> {
        let (n, total) = (self.shape.batch(), self.shape.steps);
        self.denoise.write("latent", &noise.repeat(n))?;
        let steps: Vec<(usize, Vec<f32>)> = match self.shape.sampler {
            Sampler::Ddim => {
                let steps = self.schedule.ddim(total, 0.0)?.into_iter();
                let coefficients = |s: crate::schedule::DdimStep| {
                    vec![s.a_t, s.s_t, s.a_prev, s.direction, self.guidance, s.sigma, 0.0, 0.0]
                };
                steps.map(|s| (s.timestep, coefficients(s))).collect()
            }
            Sampler::OneStep => {
                let steps = self.schedule.one_step(total)?.into_iter();
                steps.map(|s| (s.timestep, vec![s.a, s.s, s.a_next, s.s_next])).collect()
            }
        };
        for (step, (timestep, coefficients)) in steps.into_iter().enumerate() {
            if step > 0 {
                self.denoise.feed_back("next", "latent")?;
            }
            if self.shape.sampler == Sampler::OneStep && total > 1 {
                let stream = u32::try_from(step + 1).expect("a handful of steps");
                let fresh = Noise::new(seed).stream(stream).latent(self.latent_len());
                self.denoise.write("noise", &fresh)?;
            }
            self.denoise.write("timestep", &vec![timestep as f32; n])?;
            self.denoise.write("coefficients", &coefficients)?;
            self.denoise.run(&mut |_, _| true)?;
            on_progress(Progress { phase: Phase::Denoise, step: step + 1, total });
        }
        let mut latent = self.denoise.read("next")?;
        latent.truncate(self.latent_len());
        if latent.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::NotFinite { what: "the latent after sampling" });
        }
        Ok(latent)
    }

    fn decode(&mut self, latent: &[f32], on_progress: OnProgress<'_>) -> Result<Vec<u8>, ModelError> {
        self.decode.write("latent", latent)?;
        run(&mut self.decode, Phase::Decode, on_progress)?;
        Ok(self.decode.read_u32("pixels")?.into_iter().flat_map(u32::to_le_bytes).collect())
    }
}

fn check_guidance(guidance: f32) -> Result<(), ModelError> {
    if (0.0..=100.0).contains(&guidance) {
        return Ok(());
    }
    let expected = "a number from 0 to 100".to_owned();
    Err(ModelError::Sampler { key: "guidance", expected, found: guidance.to_string() })
}

fn run(session: &mut Session, phase: Phase, on_progress: OnProgress<'_>) -> Result<(), GraphError> {
    let total = session.recording().nodes.len();
    session.run(&mut |step, total| {
        on_progress(Progress { phase, step, total });
        true
    })?;
    on_progress(Progress { phase, step: total, total });
    Ok(())
}

/// Opens the chosen device and says in one line which and why.
fn open(choice: &DeviceChoice) -> Result<(Device, String), ModelError> {
    let threads = rayon::current_num_threads();
    let select = match choice {
        DeviceChoice::Cpu => return Ok((Device::Cpu, format!("CPU, {threads} threads (as asked)"))),
        DeviceChoice::Auto => Select::Hardware,
        DeviceChoice::Gpu => Select::Best,
        DeviceChoice::Named(name) => Select::Named(name.clone()),
    };
    match pollster::block_on(Gpu::open(&select)).map(Gpu::with_user_cache) {
        Ok(gpu) => {
            let why = if *choice == DeviceChoice::Auto { "the best GPU" } else { "as asked" };
            let line = format!("{} ({why})", gpu.adapter());
            Ok((Device::Gpu(Arc::new(gpu), Storage::F32), line))
        }
        Err(_) if *choice == DeviceChoice::Auto => {
            Ok((Device::Cpu, format!("CPU, {threads} threads (there is no hardware GPU)")))
        }
        Err(error) => Err(error.into()),
    }
}

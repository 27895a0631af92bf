//! MobileDiffusion ([arXiv 2311.16567](https://arxiv.org/abs/2311.16567)): text to pictures on GPUs and CPUs.
//!
//! This is the crate for applications. It loads a model, draws pictures from prompts, and reads and writes picture
//! files. A small checkpoint comes with it:
//!
//! ```no_run
//! use mobilediffusion_model::{Flow, ModelError, Options, Pipeline, Request, Source};
//! use std::path::Path;
//!
//! fn main() -> Result<(), ModelError> {
//!     let mut pipeline = Pipeline::load(Source::bundled()?, Options::default())?;
//!     let pictures = pipeline.generate(&Request::new("red apple"), &mut |_| Flow::Continue)?;
//!     pictures[0].save_png(Path::new("apple.png"), &[])
//! }
//! ```
//!
//! * [`Source`] names the model: the bundled checkpoint, a folder, or a preset with synthetic weights.
//! * [`Options`] choose the device, the storage of floats and weights, and limits of memory.
//! * [`Request`] holds the prompt and everything else about the pictures: size, steps, guidance, seed, count, batch, a
//!   picture to begin from, previews. Fields that are `None` mean the model's own values.
//! * [`Pipeline`] draws. It keeps its plans, so a further request of the same shape allocates and compiles nothing.
//!   [`Pipeline::generate_each`] passes on each picture once it is drawn, and the methods that end in `_async` do not
//!   block on the device.
//! * [`Model`] is the device with the weights. Several pipelines share one, see [`Pipeline::over`].
//! * [`Pipeline::load`] reads the headers of the weights' files. [`Pipeline::prepare`], or the first request, reads
//!   the weights themselves, and says if some of them are not numbers.
//! * The callback of [`Progress`] returns [`Flow::Stop`] to stop a request; the pipeline can be used again.
//! * [`ModelError::DeviceLost`] reports a lost device, and [`Pipeline::recover`] opens it again.
//!
//! `examples/app.rs` uses most of this.
//!
//! The modules below the pipeline are public for tools and tests: [`config`] reads configuration files, [`networks`]
//! builds the graphs, [`weights`] reads checkpoints, and [`info`] counts parameters. The repository's `docs/model.md`
//! defines the model and names the source of every detail.

mod blocks;
pub mod config;
pub mod decoder;
mod error;
pub mod golden;
pub mod info;
mod json;
pub mod networks;
pub mod noise;
mod picture;
mod pipeline;
mod schedule;
mod text_encoder;
pub mod tokenizer;
pub mod unet;
mod vae;
pub mod weights;

pub use config::{ModelConfig, Sampler};
pub use error::{ModelError, WeightProblem};
pub use mobilediffusion_graph::{Device, GraphError, PlanSummary};
pub use mobilediffusion_kernels::{Storage, WeightType};
pub use mobilediffusion_runtime::{AdapterKind, AdapterSummary, RuntimeError, Select, adapters};
pub use picture::{Mask, Picture, Sheet};
pub use pipeline::{
    Cache, Counters, DeviceChoice, Floats, Flow, Init, Loader, MOST_PICTURES, Model, OnPicture, OnProgress, Opened,
    Options, Phase, Pipeline, Progress, Request, Settings, Source, Truncated, WeightsFrom,
};

//! MobileDiffusion: configuration, weights, text encoder, UNet, decoder, samplers, and the pipeline that joins them.

mod blocks;
pub mod config;
pub mod decoder;
pub mod error;
pub mod golden;
pub mod info;
pub mod networks;
pub mod noise;
pub mod picture;
pub mod pipeline;
pub mod schedule;
pub mod text_encoder;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

mod json;

pub use config::ModelConfig;
pub use error::ModelError;
pub use mobilediffusion_graph::{Device, GraphError, PlanSummary};
pub use mobilediffusion_kernels::{Storage, WeightType};
pub use mobilediffusion_runtime::{AdapterKind, AdapterSummary, RuntimeError, Select, adapters};
pub use picture::{Mask, Picture};
pub use pipeline::{
    Counters, DeviceChoice, Floats, Flow, Init, Model, OnPicture, OnProgress, Options, Phase, Pipeline, Progress,
    Request, Settings, Source, Truncated, WeightsFrom,
};

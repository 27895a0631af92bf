//! MobileDiffusion: its configuration, weights, prompt encoding, noise and samplers.

pub mod error;
pub mod noise;
pub mod tokenizer;
pub mod weights;

mod json;

pub use error::ModelError;

//! The plans a pipeline keeps ready, by what shapes them, the longest unused one first to go.

use super::source::Part;
use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{Decoder, Shape, decode_graph, denoise_graph, encode_graph, text_graph};
use mobilediffusion_graph::{Graph, Session};

/// What shapes a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// One prompt.
    Text,
    /// One evaluation and step: height and width of the latent, sampler, whether guided, whether fresh noise goes in.
    Denoise(usize, usize, Sampler, bool, bool),
    /// Height and width of the latent.
    Decode(usize, usize),
    /// Height and width of the latent.
    Encode(usize, usize),
}

impl Key {
    /// The plan of the UNet for a shape.
    pub(super) fn denoise(shape: &Shape) -> Self {
        Self::Denoise(shape.latent_height, shape.latent_width, shape.sampler, shape.guided, shape.takes_noise())
    }

    /// The plan of the decoder for a shape.
    pub(super) fn decode(shape: &Shape) -> Self {
        Self::Decode(shape.latent_height, shape.latent_width)
    }

    /// The plan of the encoder for a shape.
    pub(super) fn encode(shape: &Shape) -> Self {
        Self::Encode(shape.latent_height, shape.latent_width)
    }

    /// The same network for another shape.
    pub(super) fn of_shape(self, shape: &Shape) -> Self {
        match self {
            Self::Text => Self::Text,
            Self::Denoise(..) => Self::denoise(shape),
            Self::Decode(..) => Self::decode(shape),
            Self::Encode(..) => Self::encode(shape),
        }
    }

    /// Whose weights it takes.
    pub(super) fn part(self) -> Part {
        match self {
            Self::Text => Part::Text,
            Self::Denoise(_, _, sampler, ..) => Part::Unet(sampler),
            Self::Decode(..) => Part::Decoder,
            Self::Encode(..) => Part::Encoder,
        }
    }

    /// Its graph; `shape` is one that the key was made of.
    pub(super) fn graph(self, config: &ModelConfig, shape: &Shape) -> Result<Graph, ModelError> {
        Ok(match self {
            Self::Text => text_graph(config, 1)?,
            Self::Denoise(..) => denoise_graph(config, shape)?,
            Self::Decode(..) => decode_graph(config, shape, Decoder::of(config))?,
            Self::Encode(..) => encode_graph(config, shape)?,
        })
    }
}

/// A plan with its memory on the device.
#[derive(Debug)]
struct Plan {
    key: Key,
    session: Session,
}

/// The plans that are ready, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Plans(Vec<Plan>);

impl Plans {
    pub(super) fn has(&self, key: Key) -> bool {
        self.0.iter().any(|plan| plan.key == key)
    }

    /// Bytes of all plans.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|plan| plan.session.bytes()).sum()
    }

    pub(super) fn add(&mut self, key: Key, session: Session) {
        self.0.push(Plan { key, session });
    }

    /// Marks these as used last, in this order.
    pub(super) fn touch(&mut self, keys: &[Key]) {
        self.0.sort_by_key(|plan| keys.iter().position(|key| *key == plan.key).map_or(0, |at| at + 1));
    }

    /// Gives the memory of the longest unused plan back, unless it is one of `needed`; false if there is none.
    pub(super) fn evict(&mut self, needed: &[Key]) -> bool {
        let oldest = self.0.iter().position(|plan| !needed.contains(&plan.key));
        oldest.map(|at| self.0.remove(at)).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The session of a plan that was made ready before.
    pub(super) fn session(&mut self, key: Key) -> &mut Session {
        let plan = self.0.iter_mut().find(|plan| plan.key == key);
        &mut plan.expect("a request's plans are ready before it runs").session
    }
}

//! The plans a pipeline keeps ready, by what shapes them, the longest unused one first to go.

use super::source::Part;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Decoder, LatentSize, Shape, decode_graph, denoise_graph, encode_graph, text_graph};
use mobilediffusion_graph::{Graph, Session};

/// What shapes a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// One prompt.
    Text,
    /// One evaluation and step.
    Denoise(Shape),
    /// From a latent of this size.
    Decode(LatentSize),
    /// To a latent of this size.
    Encode(LatentSize),
}

impl Key {
    /// The same network for a latent of another size.
    pub(super) fn of_size(self, latent: LatentSize) -> Self {
        match self {
            Self::Text => Self::Text,
            Self::Denoise(shape) => Self::Denoise(Shape { latent, ..shape }),
            Self::Decode(_) => Self::Decode(latent),
            Self::Encode(_) => Self::Encode(latent),
        }
    }

    /// Whose weights it takes.
    pub(super) fn part(self) -> Part {
        match self {
            Self::Text => Part::Text,
            Self::Denoise(shape) => Part::Unet(shape.sampler),
            Self::Decode(_) => Part::Decoder,
            Self::Encode(_) => Part::Encoder,
        }
    }

    /// Its graph.
    pub(super) fn graph(self, config: &ModelConfig) -> Result<Graph, ModelError> {
        Ok(match self {
            Self::Text => text_graph(config, 1)?,
            Self::Denoise(shape) => denoise_graph(config, &shape)?,
            Self::Decode(size) => decode_graph(config, size, Decoder::of(config))?,
            Self::Encode(size) => encode_graph(config, size)?,
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

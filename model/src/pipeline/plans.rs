//! Plans that a pipeline keeps ready. The least recently used one is the first to be evicted.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Decoder, LatentSize, Network, Shape, decode_graph, denoise_graph, encode_graph, text_graph};
use mobilediffusion_graph::{Graph, Session, Weights};
use std::sync::Arc;

/// Everything that shapes a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Text encoder, for one prompt.
    Text,
    /// UNet evaluation and sampler step.
    Denoise(Shape),
    /// Decoder, for so many latents of this size.
    Decode(Decoder, LatentSize, usize),
    /// VAE encoder, for a latent of this size.
    Encode(LatentSize),
}

impl Key {
    /// Returns the key of the same network for a latent of another size.
    pub(super) fn of_size(self, latent: LatentSize) -> Self {
        match self {
            Self::Text => Self::Text,
            Self::Denoise(shape) => Self::Denoise(Shape { latent, ..shape }),
            Self::Decode(which, _, pictures) => Self::Decode(which, latent, pictures),
            Self::Encode(_) => Self::Encode(latent),
        }
    }

    /// Returns the key of the same network for one picture at a time.
    pub(super) fn of_one(self) -> Self {
        match self {
            Self::Denoise(shape) => Self::Denoise(Shape { pictures: 1, ..shape }),
            Self::Decode(which, latent, _) => Self::Decode(which, latent, 1),
            other => other,
        }
    }

    /// Returns the network whose weights the plan uses.
    pub(super) fn network(self) -> Network {
        match self {
            Self::Text => Network::Text,
            Self::Denoise(shape) => Network::Unet(shape.sampler),
            Self::Decode(which, ..) => Network::Decoder(which),
            Self::Encode(_) => Network::Encoder,
        }
    }

    /// Builds the graph.
    pub(super) fn graph(self, config: &ModelConfig) -> Result<Graph, ModelError> {
        match self {
            Self::Text => Ok(text_graph(config)?),
            Self::Denoise(shape) => Ok(denoise_graph(config, &shape)?),
            Self::Decode(which, size, pictures) => decode_graph(config, size, which, pictures),
            Self::Encode(size) => encode_graph(config, size),
        }
    }
}

/// Plan with its memory on the device.
#[derive(Debug)]
struct Plan {
    key: Key,
    session: Session,
    /// Weights of the network, which are not freed as long as a plan holds them.
    weights: Arc<Weights>,
    /// What inputs hold that were written by [`Plans::write_once`].
    held: Vec<Held>,
}

/// What an input of the UNet holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// `context`: these prompts, encoded.
    Prompts(Vec<String>),
    /// `timestep`: this timestep for every image.
    Timestep(usize),
}

impl Held {
    /// Returns the name of the input.
    fn input(&self) -> &'static str {
        match self {
            Self::Prompts(_) => "context",
            Self::Timestep(_) => "timestep",
        }
    }
}

/// Plans that are ready, the most recently used one last.
#[derive(Debug, Default)]
pub(super) struct Plans(Vec<Plan>);

impl Plans {
    /// Whether a plan is ready.
    pub(super) fn has(&self, key: Key) -> bool {
        self.0.iter().any(|plan| plan.key == key)
    }

    /// Returns the number of bytes of all plans.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|plan| plan.session.bytes()).sum()
    }

    /// Returns the number of bytes and the weights of the plans that are not `needed`.
    pub(super) fn unneeded(&self, needed: &[Key]) -> (u64, Vec<&Arc<Weights>>) {
        let unneeded = || self.0.iter().filter(|plan| !needed.contains(&plan.key));
        (unneeded().map(|plan| plan.session.bytes()).sum(), unneeded().map(|plan| &plan.weights).collect())
    }

    /// Adds a plan as the most recently used one.
    pub(super) fn add(&mut self, key: Key, session: Session, weights: Arc<Weights>) {
        self.0.push(Plan { key, session, weights, held: Vec::new() });
    }

    /// Marks plans as the most recently used ones, in the order of `keys`.
    pub(super) fn touch(&mut self, keys: &[Key]) {
        self.0.sort_by_key(|plan| keys.iter().position(|key| *key == plan.key).map_or(0, |at| at + 1));
    }

    /// Frees the least recently used plan that is not `needed`, and returns whether there was one.
    pub(super) fn evict(&mut self, needed: &[Key]) -> bool {
        let oldest = self.0.iter().position(|plan| !needed.contains(&plan.key));
        oldest.map(|at| self.0.remove(at)).is_some()
    }

    /// Returns the number of plans.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Frees all plans.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the session of a plan that is ready.
    pub(super) fn session(&mut self, key: Key) -> &mut Session {
        &mut self.plan(key).session
    }

    /// Whether an input of a plan that is ready holds this.
    pub(super) fn holds(&self, key: Key, what: &Held) -> bool {
        self.0.iter().any(|plan| plan.key == key && plan.held.contains(what))
    }

    /// Writes an input of a plan unless it [holds](Self::holds) this already: steps that depend on it alone are then not
    /// run again. Such an input is written in no other way.
    pub(super) fn write_once(&mut self, key: Key, what: Held, values: &[f32]) -> Result<(), ModelError> {
        if !self.holds(key, &what) {
            let Plan { session, held, .. } = self.plan(key);
            held.retain(|held| held.input() != what.input());
            session.write(what.input(), values)?;
            held.push(what);
        }
        Ok(())
    }

    fn plan(&mut self, key: Key) -> &mut Plan {
        let plan = self.0.iter_mut().find(|plan| plan.key == key);
        plan.expect("a request's plans are ready before it runs")
    }
}

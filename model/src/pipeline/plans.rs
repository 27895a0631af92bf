//! Plans that a pipeline keeps ready. The least recently used one is the first to be evicted.

use crate::config::{ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{LatentSize, Network, Shape};
use mobilediffusion_graph::{Graph, Session, Weights};
use std::sync::Arc;

/// Everything that shapes a plan: a network, and those parts of a shape that matter to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    network: Network,
    /// What does not matter to the network has one value in all its keys.
    shape: Shape,
}

impl Key {
    /// Returns the key of a network for the pictures of `shape`.
    pub(super) fn new(network: Network, shape: Shape) -> Self {
        let (sampler, latent) = (Sampler::OneStep, LatentSize { height: 0, width: 0 });
        let any = Shape { latent, sampler, guided: false, takes_noise: false, pictures: 1 };
        let shape = match network {
            Network::Text => any,
            Network::Unet(sampler) => Shape { sampler, ..shape },
            Network::Decoder(_) => Shape { latent: shape.latent, pictures: shape.pictures, ..any },
            Network::Encoder => Shape { latent: shape.latent, ..any },
        };
        Self { network, shape }
    }

    /// Returns the key of the same network for a latent of another size.
    pub(super) fn of_size(self, latent: LatentSize) -> Self {
        Self::new(self.network, Shape { latent, ..self.shape })
    }

    /// Returns the key of the same network for one picture at a time.
    pub(super) fn of_one(self) -> Self {
        Self::new(self.network, Shape { pictures: 1, ..self.shape })
    }

    /// Returns the network whose weights the plan uses.
    pub(super) fn network(self) -> Network {
        self.network
    }

    /// Builds the graph.
    pub(super) fn graph(self, config: &ModelConfig) -> Result<Graph, ModelError> {
        self.network.graph(config, &self.shape)
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

//! Preparation of a request: room in memory, weights on the device, and plans.

use super::memory::{self, Ask};
use super::plans::{Key, Plans};
use super::progress::{OnProgress, Phase, Reporter};
use super::request::Request;
use super::shared::{GoOn, Model};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Decoder, Network, Shape};
use mobilediffusion_graph::{Device, Need, Recording, Session, compile_ahead};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Returns the keys of a request's plans.
pub(super) fn keys(config: &ModelConfig, request: &Request, shape: Shape) -> Vec<Key> {
    let mut sizes: Vec<usize> = request.batches().collect();
    sizes.dedup();
    let batches = sizes.into_iter().flat_map(|pictures| {
        let shape = Shape { pictures, ..shape };
        [Network::Unet(shape.sampler), Network::Decoder(Decoder::of(config))].map(|network| Key::new(network, shape))
    });
    let encode = request.init.is_some().then_some(Key::new(Network::Encoder, shape));
    std::iter::once(Key::new(Network::Text, shape)).chain(batches).chain(encode).collect()
}

/// Makes all plans of a request that are missing.
///
/// # Errors
/// [`ModelError`] if the request does not fit into memory, weights are not valid, the device fails, or the caller asked
/// to stop.
pub(super) fn ready(
    model: &Model,
    plans: &mut Plans,
    (request, shape): (&Request, Shape),
    on_progress: OnProgress<'_>,
) -> Result<(), ModelError> {
    let keys = keys(model.config(), request, shape);
    // No pipeline frees weights that are held.
    let _held = keys.iter().map(|key| model.weights(key.network())).collect::<Result<Vec<_>, _>>()?;
    plans.touch(&keys);
    let pictures = request.batches().next().unwrap_or(1);
    let ask = Ask { model, device: &model.device(), latent: shape.latent, pictures, keys: &keys };
    Preparation { ask, plans, reporter: Reporter { on_progress, picture: 0 } }.run()
}

/// Plan that is missing.
struct Missing {
    key: Key,
    /// Device as it stores the plan's network.
    device: Device,
    need: Need,
    recording: Recording,
}

impl Missing {
    fn new(model: &Model, key: Key) -> Result<Self, ModelError> {
        let (recording, device) = (Recording::new(key.graph(model.config())?), model.device_of(key.network())?);
        Ok(Self { key, need: recording.need(&device), device, recording })
    }

    /// Returns the number of steps.
    fn steps(&self) -> usize {
        self.recording.nodes().len()
    }

    /// Returns the number of steps of all plans.
    fn steps_of(plans: &[Self]) -> usize {
        plans.iter().map(Self::steps).sum()
    }
}

/// Preparation in progress.
struct Preparation<'a> {
    ask: Ask<'a>,
    plans: &'a mut Plans,
    reporter: Reporter<'a>,
}

impl Preparation<'_> {
    fn run(mut self) -> Result<(), ModelError> {
        loop {
            let missing = self.ask.keys.iter().filter(|key| !self.plans.has(**key));
            let missing: Vec<Missing> =
                missing.map(|key| Missing::new(self.ask.model, *key)).collect::<Result<_, _>>()?;
            if missing.is_empty() {
                return Ok(());
            }
            let needed = self.make_room(&missing)?;
            match self.load(&missing).and_then(|()| self.compile(missing)) {
                // Where too little was known of the device's memory, it is tried again with fewer plans and weights on
                // it, until none are left to free.
                Err(error) if error.is_out_of_memory() && self.free_one() => {}
                Err(error) if error.is_out_of_memory() => return Err(self.ask.too_much(needed, None)),
                made => return made,
            }
        }
    }

    /// Frees the least recently used plan, or else weights that nobody uses, and returns whether there was anything to
    /// free.
    fn free_one(&mut self) -> bool {
        self.plans.evict(self.ask.keys) || self.ask.model.release()
    }

    /// Frees plans and weights until the missing plans fit into the limits of [`Options`](super::Options) and the
    /// machine's memory. Returns the number of bytes that everything takes then. Nothing is freed for a request that
    /// would not fit even so.
    fn make_room(&mut self, missing: &[Missing]) -> Result<u64, ModelError> {
        let Ask { model, device, keys, .. } = self.ask;
        self.ask.check_buffers(missing.iter().map(|plan| plan.need))?;
        let there = self.plans.bytes() + model.resident_bytes();
        // Asked for before anything is freed, as it may take a while until that is seen.
        let free = || memory::free(device).map(|free| free + there);
        let budget = model.options().memory.or_else(free);
        let (plans, weights) = self.plans.unneeded(keys);
        // Other pipelines may change what is there at any time.
        let least = there.saturating_sub(plans + model.unused_bytes(&weights)) + additional(model, missing);
        if let Some(budget) = budget.filter(|budget| least > *budget) {
            return Err(self.ask.too_much(least, Some(budget)));
        }
        let most_plans = model.options().plans.max(keys.len());
        while self.plans.len() + missing.len() > most_plans && self.plans.evict(keys) {}
        loop {
            let needed = self.plans.bytes() + model.resident_bytes() + additional(model, missing);
            match budget.filter(|budget| needed > *budget) {
                None => return Ok(needed),
                Some(budget) if !self.free_one() => return Err(self.ask.too_much(needed, Some(budget))),
                Some(_) => {}
            }
        }
    }

    /// Checks and loads the weights of the missing plans, and compiles their kernels meanwhile.
    fn load(&mut self, missing: &[Missing]) -> Result<(), ModelError> {
        let (model, loaded) = (self.ask.model, AtomicBool::new(false));
        thread::scope(|scope| {
            let ahead = || missing.iter().for_each(|plan| compile_ahead(&plan.recording, &plan.device, &loaded));
            // Where no thread can be started, everything is compiled when the plans are made.
            drop(thread::Builder::new().spawn_scoped(scope, ahead));
            // Nothing is brought to the device before all weights have been checked.
            let checked = self.each(missing, |plan, go_on| model.check_weights(plan.key.network(), go_on));
            let result = checked.and_then(|()| {
                self.each(missing, |plan, go_on| model.load_weights(plan.key.network(), &plan.recording, go_on))
            });
            loaded.store(true, Ordering::Relaxed);
            result
        })?;
        let total = Missing::steps_of(missing);
        self.reporter.check(Phase::Load, (total, total))
    }

    /// Does something with the weights of each plan. In the progress of all, the weights of a plan count as much as its
    /// steps.
    fn each(
        &mut self,
        missing: &[Missing],
        bring: impl Fn(&Missing, GoOn<'_>) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let (mut before, total) = (0, Missing::steps_of(missing));
        missing.iter().try_for_each(|plan| {
            let own = plan.steps();
            bring(plan, &mut |phase, done, of| self.reporter.report(phase, (before + own * done / of.max(1), total)))?;
            before += own;
            Ok(())
        })
    }

    /// Makes the missing plans, whose weights are on the device.
    fn compile(&mut self, missing: Vec<Missing>) -> Result<(), ModelError> {
        let (mut before, total) = (0, Missing::steps_of(&missing));
        for Missing { key, recording, .. } in missing {
            let own = recording.nodes().len();
            let mut go_on = |done, _| self.reporter.report(Phase::Compile, (before + done, total));
            let weights = self.ask.model.weights(key.network())?;
            self.plans.add(key, Session::new_with(recording, &weights, &mut go_on)?, weights);
            before += own;
        }
        Ok(())
    }
}

/// Returns the number of bytes that missing plans take in addition to what is there.
fn additional(model: &Model, missing: &[Missing]) -> u64 {
    let need = |plan: &Missing| {
        let weights = plan.need.weights.saturating_sub(model.resident(plan.key.network(), &plan.recording));
        (plan.key, Need { weights, ..plan.need })
    };
    memory::together(missing.iter().map(need)).total()
}

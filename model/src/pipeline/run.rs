//! Execution of one request with plans that are ready, from its prompts to its pictures.

use super::plans::{Key, Plans};
use super::progress::{Flow, OnPicture, OnProgress, Phase, Progress};
use super::request::{Init, Request, Settings};
use super::sampling::{Evaluation, evaluations};
use super::shared::Model;
use crate::config::PIXELS_PER_LATENT;
use crate::error::ModelError;
use crate::networks::{LatentSize, Shape};
use crate::noise::Noise;
use crate::picture::{Mask, Picture};

/// Reports progress for the current picture.
struct Voice<'a> {
    on_progress: OnProgress<'a>,
    picture: usize,
}

impl Voice<'_> {
    /// Reports progress and returns whether to go on.
    fn say(&mut self, phase: Phase, (step, total): (usize, usize), preview: Option<Picture>) -> bool {
        let progress = Progress { phase, step, total, picture: self.picture, preview };
        (self.on_progress)(&progress) == Flow::Continue
    }

    /// Reports progress, with an error if the caller asked to stop.
    fn tell(&mut self, phase: Phase, steps: (usize, usize), preview: Option<Picture>) -> Result<(), ModelError> {
        if self.say(phase, steps, preview) { Ok(()) } else { Err(ModelError::Stopped) }
    }
}

/// Encoded initial picture.
struct Known {
    /// Latent of the picture.
    latent: Vec<f32>,
    /// Elements of the latent that are drawn anew; `None` for all.
    redrawn: Option<Vec<bool>>,
}

impl Known {
    /// Replaces the elements of `drawn` that are kept by those of `known`, which has the right amount of noise.
    fn keep(&self, drawn: &mut [f32], known: &[f32]) {
        let Some(redrawn) = &self.redrawn else { return };
        for ((value, known), _) in drawn.iter_mut().zip(known).zip(redrawn).filter(|(_, redrawn)| !**redrawn) {
            *value = *known;
        }
    }
}

/// Request in execution.
pub(super) struct Run<'a> {
    model: &'a Model,
    plans: &'a mut Plans,
    request: &'a Request,
    settings: &'a Settings,
    shape: Shape,
    voice: Voice<'a>,
}

impl<'a> Run<'a> {
    /// Starts a request.
    pub(super) fn new(
        model: &'a Model,
        plans: &'a mut Plans,
        request: &'a Request,
        settings: &'a Settings,
        on_progress: OnProgress<'a>,
    ) -> Result<Self, ModelError> {
        let voice = Voice { on_progress, picture: 0 };
        Ok(Self { model, plans, request, settings, shape: settings.shape(model.config())?, voice })
    }

    /// Draws all pictures.
    pub(super) async fn pictures(mut self, on_picture: OnPicture<'_>) -> Result<(), ModelError> {
        self.text().await?;
        let known = match &self.request.init {
            Some(init) => Some(self.known(init).await?),
            None => None,
        };
        for picture in 0..self.request.count {
            self.voice.picture = picture;
            let seed = self.request.seed.wrapping_add(picture as u64);
            let latent = self.denoise(seed, known.as_ref()).await?;
            let mut drawn = self.decode(&latent, None).await?;
            self.paste(&mut drawn);
            // A picture that began from one of a single colour may have a single colour too.
            if drawn.is_flat() && self.request.init.is_none() {
                return Err(ModelError::Flat);
            }
            if on_picture(picture, drawn) == Flow::Stop {
                return Err(ModelError::Stopped);
            }
        }
        Ok(())
    }

    /// Encodes the prompts and passes them to the UNet's plan, unless it has them from its last request. With guidance, the
    /// negative prompt comes first.
    async fn text(&mut self) -> Result<(), ModelError> {
        let prompts = [self.request.negative.as_str(), self.request.prompt.as_str()];
        let prompts = if self.shape.guided { &prompts[..] } else { &prompts[1..] };
        let key = Key::Denoise(self.shape);
        let what = format!("{prompts:?}");
        if self.plans.holds(key, "context", &what) {
            return self.voice.tell(Phase::Text, (1, 1), None);
        }
        let mut context = Vec::new();
        for (done, prompt) in prompts.iter().enumerate() {
            let ids = self.model.encode(prompt)?.ids;
            self.plans.session(Key::Text).write_u32("ids", &ids)?;
            self.run(Key::Text, Phase::Text, (done, prompts.len())).await?;
            context.extend(self.plans.session(Key::Text).read_async("context").await?);
        }
        self.plans.write_once(key, ("context", &what), &context)
    }

    /// Encodes the initial picture.
    async fn known(&mut self, init: &Init) -> Result<Known, ModelError> {
        let latent = self.encode(&init.picture).await?;
        let redrawn = init.mask.as_ref().map(|mask| redrawn(mask, latent.len()));
        Ok(Known { latent, redrawn })
    }

    /// Returns the latent of a picture.
    async fn encode(&mut self, picture: &Picture) -> Result<Vec<f32>, ModelError> {
        let key = Key::Encode(self.shape.latent);
        let pixels = picture.rgba.chunks_exact(4).flat_map(|pixel| &pixel[..3]);
        let image: Vec<f32> = pixels.map(|value| f32::from(*value) / 127.5 - 1.0).collect();
        self.plans.session(key).write("image", &image)?;
        self.run(key, Phase::Encode, (0, 1)).await?;
        Ok(self.plans.session(key).read_async("latent").await?)
    }

    /// Samples a clean latent, from noise or from the known picture with noise.
    async fn denoise(&mut self, seed: u64, known: Option<&Known>) -> Result<Vec<f32>, ModelError> {
        let strength = self.request.init.as_ref().map_or(1.0, |init| init.strength);
        let steps = evaluations(self.model.schedule(), self.settings, strength)?;
        let noise = Noise::new(seed).latent(self.latent_len());
        let mut latent = beginning(known, steps.first(), &noise, strength);
        let total = steps.len();
        let mut on_device = false;
        for (done, step) in steps.iter().enumerate() {
            let fresh = step.fresh.map(|stream| Noise::new(seed).stream(stream).latent(noise.len()));
            let shown = self.request.preview_every.is_some_and(|every| (done + 1) % every == 0 && done + 1 < total);
            let read = shown || known.is_some_and(|known| known.redrawn.is_some()) || done + 1 == total;
            self.place(&mut latent, on_device, shown).await?;
            self.evaluate(step, fresh.as_deref(), (done, total)).await?;
            on_device = !read;
            let mut preview = None;
            if read {
                let next = self.next().await?;
                if shown {
                    let predicted = step.predicted(&latent, &next, fresh.as_deref());
                    preview = Some(self.decode(&predicted, Some((done, total))).await?);
                }
                latent = next;
                if let Some(known) = known {
                    let again = step.next.mix(&known.latent, fresh.as_deref().unwrap_or(&noise));
                    known.keep(&mut latent, &again);
                }
            }
            self.voice.tell(Phase::Denoise, (done + 1, total), preview)?;
        }
        if latent.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::NotFinite { what: "the latent after sampling" });
        }
        Ok(latent)
    }

    /// Passes the latent to the UNet, from the host or from where the last evaluation left it on the device. With
    /// `needed`, also reads it back to the host.
    async fn place(&mut self, latent: &mut Vec<f32>, on_device: bool, needed: bool) -> Result<(), ModelError> {
        if on_device && needed {
            *latent = self.next().await?;
        }
        let batch = self.shape.batch();
        let session = self.plans.session(Key::Denoise(self.shape));
        match on_device {
            true => session.feed_back("next", "latent")?,
            false => session.write("latent", &latent.repeat(batch))?,
        }
        Ok(())
    }

    /// Runs one evaluation of the UNet and the sampler's step.
    async fn evaluate(
        &mut self,
        step: &Evaluation,
        fresh: Option<&[f32]>,
        steps: (usize, usize),
    ) -> Result<(), ModelError> {
        let key = Key::Denoise(self.shape);
        let session = self.plans.session(key);
        if let Some(fresh) = fresh {
            session.write("noise", fresh)?;
        }
        session.write("coefficients", &step.coefficients)?;
        let timesteps = vec![step.timestep as f32; self.shape.batch()];
        self.plans.write_once(key, ("timestep", &step.timestep.to_string()), &timesteps)?;
        let session = self.plans.session(key);
        Ok(session.run_ahead(&mut |_, _| self.voice.say(Phase::Denoise, steps, None)).await?)
    }

    /// Returns the latent after an evaluation: one of the two equal halves that guidance makes.
    async fn next(&mut self) -> Result<Vec<f32>, ModelError> {
        let mut latent = self.plans.session(Key::Denoise(self.shape)).read_async("next").await?;
        latent.truncate(self.latent_len());
        Ok(latent)
    }

    /// Returns the number of elements of a latent.
    fn latent_len(&self) -> usize {
        let LatentSize { height, width } = self.shape.latent;
        height * width * self.model.config().unet.in_channels()
    }

    /// Decodes a latent to pixels: the picture, or a preview after some of the evaluations. A preview reports the
    /// progress of the evaluations, not its own.
    async fn decode(&mut self, latent: &[f32], preview: Option<(usize, usize)>) -> Result<Picture, ModelError> {
        let key = Key::Decode(self.shape.latent);
        self.plans.session(key).write("latent", latent)?;
        match preview {
            None => self.run(key, Phase::Decode, (0, 1)).await?,
            Some(steps) => {
                let voice = &mut self.voice;
                self.plans.session(key).run_async(&mut |_, _| voice.say(Phase::Denoise, steps, None)).await?;
            }
        }
        let pixels = self.plans.session(key).read_async("pixels").await?;
        let rgba: Vec<u8> = pixels.into_iter().flat_map(|bits| bits.to_bits().to_le_bytes()).collect();
        // The kernel writes transparent pixels where its input is not a number.
        if rgba.iter().skip(3).step_by(4).any(|alpha| *alpha != 255) {
            return Err(ModelError::NotFinite { what: "the decoder's picture" });
        }
        let (width, height) = (self.settings.width, self.settings.height);
        Ok(Picture { width, height, rgba })
    }

    /// Runs a network, as number `done` of `of` equal runs.
    async fn run(&mut self, key: Key, phase: Phase, (done, of): (usize, usize)) -> Result<(), ModelError> {
        let steps = self.plans.session(key).recording().nodes.len();
        let voice = &mut self.voice;
        let mut go_on = |step, total: usize| voice.say(phase, (done * steps + step, of * steps.max(total)), None);
        self.plans.session(key).run_async(&mut go_on).await?;
        self.voice.tell(phase, ((done + 1) * steps, of * steps), None)
    }

    /// Copies the initial picture back, byte by byte, where the mask does not reach.
    fn paste(&self, drawn: &mut Picture) {
        let Some(Init { picture, mask: Some(mask), .. }) = &self.request.init else { return };
        let pixels = drawn.rgba.chunks_exact_mut(4).zip(picture.rgba.chunks_exact(4));
        for ((drawn, known), share) in pixels.zip(&mask.values) {
            let share = u32::from(*share);
            for (value, known) in drawn.iter_mut().zip(known) {
                *value = ((u32::from(*value) * share + u32::from(*known) * (255 - share) + 127) / 255) as u8;
            }
        }
    }
}

/// Returns the latent that sampling begins from. With a strength of 1 the initial picture matters only where a mask
/// keeps it.
fn beginning(known: Option<&Known>, first: Option<&Evaluation>, noise: &[f32], strength: f32) -> Vec<f32> {
    let (Some(known), Some(first)) = (known, first) else {
        return known.map_or_else(|| noise.to_vec(), |known| known.latent.clone());
    };
    let noisy = first.now.mix(&known.latent, noise);
    if strength < 1.0 {
        return noisy;
    }
    let mut latent = noise.to_vec();
    known.keep(&mut latent, &noisy);
    latent
}

/// Returns which of the `len` elements of a latent lie under a mask: those with any pixel that is drawn anew.
fn redrawn(mask: &Mask, len: usize) -> Vec<bool> {
    let width = mask.width / PIXELS_PER_LATENT;
    let mut cells = vec![false; width * mask.height / PIXELS_PER_LATENT];
    for (at, _) in mask.values.iter().enumerate().filter(|(_, value)| **value > 0) {
        cells[at / mask.width / PIXELS_PER_LATENT * width + at % mask.width / PIXELS_PER_LATENT] = true;
    }
    let channels = len / cells.len();
    cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, channels)).collect()
}

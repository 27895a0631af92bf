//! Execution of one request with plans that are ready, from its prompts to its pictures.

use super::plans::{Held, Key, Plans};
use super::progress::{OnPicture, OnProgress, Phase, Reporter, unless_stopped};
use super::request::{Init, Request, Settings};
use super::sampling::{Evaluation, evaluations};
use super::shared::Model;
use crate::config::PIXELS_PER_LATENT;
use crate::error::ModelError;
use crate::networks::{Decoder, LatentSize, Network, Shape};
use crate::noise::Noise;
use crate::picture::{Mask, Picture};

/// Encoded initial picture, repeated for the pictures that are drawn at once.
struct Known {
    /// Latents of the picture.
    latent: Vec<f32>,
    /// Elements of the latents that are drawn anew; `None` for all.
    redrawn: Option<Vec<bool>>,
}

impl Known {
    /// Returns the picture for `pictures` of those that are drawn at once.
    fn times(&self, pictures: usize) -> Self {
        let redrawn = self.redrawn.as_ref().map(|redrawn| redrawn.repeat(pictures));
        Self { latent: self.latent.repeat(pictures), redrawn }
    }

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
    /// Shape of the pictures that are drawn at once.
    shape: Shape,
    reporter: Reporter<'a>,
}

impl<'a> Run<'a> {
    /// Starts a request of this shape.
    pub(super) fn new(
        model: &'a Model,
        plans: &'a mut Plans,
        request: &'a Request,
        (settings, shape): (&'a Settings, Shape),
        on_progress: OnProgress<'a>,
    ) -> Self {
        let reporter = Reporter { on_progress, picture: 0 };
        Self { model, plans, request, settings, shape, reporter }
    }

    /// Returns the key of a network's plan.
    fn key(&self, network: Network) -> Key {
        Key::new(network, self.shape)
    }

    /// Returns the key of the UNet's plan.
    fn unet(&self) -> Key {
        self.key(Network::Unet(self.shape.sampler))
    }

    /// Draws all pictures.
    pub(super) async fn pictures(mut self, on_picture: OnPicture<'_>) -> Result<(), ModelError> {
        let (mut known, mut encoded) = (None, Vec::new());
        for pictures in self.request.batches() {
            // Batches of one size have one plan, which keeps the encoded prompts.
            if self.reporter.picture == 0 || pictures != self.shape.pictures {
                self.shape.pictures = pictures;
                self.text(&mut encoded).await?;
            }
            if let (None, Some(init)) = (&known, &self.request.init) {
                known = Some(self.known(init).await?);
            }
            let latent = self.denoise(known.as_ref().map(|known| known.times(pictures))).await?;
            for mut drawn in self.decode(&latent, None).await? {
                if let Some(Init { picture, mask: Some(mask), .. }) = &self.request.init {
                    paste(&mut drawn, picture, mask);
                }
                // A picture that began from one of a single colour may have a single colour too.
                if drawn.is_flat() && self.request.init.is_none() {
                    return Err(ModelError::Flat);
                }
                unless_stopped(on_picture(self.reporter.picture, drawn))?;
                self.reporter.picture += 1;
            }
        }
        Ok(())
    }

    /// Encodes the prompts, unless they are `encoded`, and passes them to the UNet's plan, unless it has them from its last
    /// run. With guidance, the negative prompt comes first.
    async fn text(&mut self, encoded: &mut Vec<Vec<f32>>) -> Result<(), ModelError> {
        let prompts = [self.request.negative.as_str(), self.request.prompt.as_str()];
        let prompts = if self.shape.guided { &prompts[..] } else { &prompts[1..] };
        let key = self.unet();
        let held = Held::Prompts(prompts.iter().map(|prompt| (*prompt).to_owned()).collect());
        if self.plans.holds(key, &held) {
            return self.reporter.check(Phase::Text, (1, 1));
        }
        for (done, prompt) in prompts.iter().enumerate().skip(encoded.len()) {
            let ids = self.model.encode(prompt)?.ids;
            let text = self.key(Network::Text);
            self.plans.session(text).write_u32("ids", &ids)?;
            self.run(text, Phase::Text, (done, prompts.len())).await?;
            encoded.push(self.plans.session(text).read_async("context").await?);
        }
        let context: Vec<f32> = encoded.iter().flat_map(|prompt| prompt.repeat(self.shape.pictures)).collect();
        self.plans.write_once(key, held, &context)
    }

    /// Encodes the initial picture.
    async fn known(&mut self, init: &Init) -> Result<Known, ModelError> {
        let latent = self.encode(&init.picture).await?;
        let redrawn = init.mask.as_ref().map(|mask| redrawn(mask, latent.len()));
        Ok(Known { latent, redrawn })
    }

    /// Returns the latent of a picture.
    async fn encode(&mut self, picture: &Picture) -> Result<Vec<f32>, ModelError> {
        let key = self.key(Network::Encoder);
        let image: Vec<f32> = picture.rgb().flatten().map(|value| f32::from(value) / 127.5 - 1.0).collect();
        self.plans.session(key).write("image", &image)?;
        self.run(key, Phase::Encode, (0, 1)).await?;
        Ok(self.plans.session(key).read_async("latent").await?)
    }

    /// Samples clean latents, from noise or from the known picture with noise.
    async fn denoise(&mut self, known: Option<Known>) -> Result<Vec<f32>, ModelError> {
        let known = known.as_ref();
        let strength = self.request.strength();
        let steps = evaluations(self.model.schedule(), self.settings, strength)?;
        let noise = self.noise(|noise, len| noise.latent(len));
        let mut latent = beginning(known, steps.first(), &noise, strength);
        let total = steps.len();
        let mut on_device = false;
        for (done, evaluation) in steps.iter().enumerate() {
            let fresh = evaluation.fresh.map(|stream| self.noise(|noise, len| noise.stream(stream).latent(len)));
            let shown = self.request.preview_every.is_some_and(|every| (done + 1) % every == 0 && done + 1 < total);
            let read = shown || known.is_some_and(|known| known.redrawn.is_some()) || done + 1 == total;
            self.place(&mut latent, on_device, shown).await?;
            self.evaluate(evaluation, fresh.as_deref(), (done, total)).await?;
            on_device = !read;
            let mut previews = Vec::new();
            if read {
                let next = self.next().await?;
                if shown {
                    let predicted = evaluation.predicted(&latent, &next, fresh.as_deref());
                    previews = self.decode(&predicted, Some((done, total))).await?;
                }
                latent = next;
                if let Some(known) = known {
                    let again = evaluation.step.next().mix(&known.latent, fresh.as_deref().unwrap_or(&noise));
                    known.keep(&mut latent, &again);
                }
            }
            self.show(previews, (done + 1, total))?;
        }
        if latent.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::NotFinite { what: "the latent after sampling" });
        }
        Ok(latent)
    }

    /// Returns what `draw` makes of every picture's noise and the length of a latent, one after the other.
    fn noise(&self, draw: impl Fn(Noise, usize) -> Vec<f32>) -> Vec<f32> {
        let first = self.request.seed.wrapping_add(self.reporter.picture as u64);
        let seeds = (0..self.shape.pictures as u64).map(|picture| first.wrapping_add(picture));
        seeds.flat_map(|seed| draw(Noise::new(seed), self.latent_len())).collect()
    }

    /// Reports that evaluations are done, with a preview of each picture if there are any.
    fn show(&mut self, previews: Vec<Picture>, steps: (usize, usize)) -> Result<(), ModelError> {
        if previews.is_empty() {
            return self.reporter.check(Phase::Denoise, steps);
        }
        previews.into_iter().enumerate().try_for_each(|(at, preview)| self.reporter.preview(steps, at, preview))
    }

    /// Passes the latents to the UNet, from the host or from where the last evaluation left it on the device. With
    /// `needed`, also reads it back to the host.
    async fn place(&mut self, latent: &mut Vec<f32>, on_device: bool, needed: bool) -> Result<(), ModelError> {
        if on_device && needed {
            *latent = self.next().await?;
        }
        let halves = self.shape.batch() / self.shape.pictures;
        let session = self.plans.session(self.unet());
        match on_device {
            true => session.feed_back("next", "latent")?,
            false => session.write("latent", &latent.repeat(halves))?,
        }
        Ok(())
    }

    /// Runs one evaluation of the UNet and the sampler's step.
    async fn evaluate(
        &mut self,
        evaluation: &Evaluation,
        fresh: Option<&[f32]>,
        steps: (usize, usize),
    ) -> Result<(), ModelError> {
        let key = self.unet();
        let session = self.plans.session(key);
        if let Some(fresh) = fresh {
            session.write("noise", fresh)?;
        }
        session.write("coefficients", &evaluation.coefficients)?;
        let timesteps = vec![evaluation.step.timestep as f32; self.shape.batch()];
        self.plans.write_once(key, Held::Timestep(evaluation.step.timestep), &timesteps)?;
        let session = self.plans.session(key);
        Ok(session.run_ahead(&mut |_, _| self.reporter.report(Phase::Denoise, steps)).await?)
    }

    /// Returns the latents after an evaluation: one of the two equal halves that guidance makes.
    async fn next(&mut self) -> Result<Vec<f32>, ModelError> {
        let mut latent = self.plans.session(self.unet()).read_async("next").await?;
        latent.truncate(self.shape.pictures * self.latent_len());
        Ok(latent)
    }

    /// Returns the number of elements of a latent.
    fn latent_len(&self) -> usize {
        let LatentSize { height, width } = self.shape.latent;
        height * width * self.model.config().unet.in_channels()
    }

    /// Decodes latents to pixels: the pictures, or previews after some of the evaluations. Previews report the progress of
    /// the evaluations, not their own.
    async fn decode(&mut self, latent: &[f32], preview: Option<(usize, usize)>) -> Result<Vec<Picture>, ModelError> {
        let key = self.key(Network::Decoder(Decoder::of(self.model.config())));
        self.plans.session(key).write("latent", latent)?;
        match preview {
            None => self.run(key, Phase::Decode, (0, 1)).await?,
            Some(steps) => {
                let reporter = &mut self.reporter;
                self.plans.session(key).run_async(&mut |_, _| reporter.report(Phase::Denoise, steps)).await?;
            }
        }
        let pixels = self.plans.session(key).read_async("pixels").await?;
        let rgba: Vec<u8> = pixels.into_iter().flat_map(|bits| bits.to_bits().to_le_bytes()).collect();
        // The kernel writes transparent pixels where its input is not a number.
        if rgba.iter().skip(3).step_by(4).any(|alpha| *alpha != 255) {
            return Err(ModelError::NotFinite { what: "the decoder's picture" });
        }
        let (width, height) = (self.settings.width, self.settings.height);
        let pictures = rgba.chunks_exact(4 * width * height);
        Ok(pictures.map(|rgba| Picture { width, height, rgba: rgba.to_vec() }).collect())
    }

    /// Runs a network, as number `done` of `of` equal runs.
    async fn run(&mut self, key: Key, phase: Phase, (done, of): (usize, usize)) -> Result<(), ModelError> {
        let steps = self.plans.session(key).recording().nodes().len();
        let reporter = &mut self.reporter;
        let mut go_on = |step, total: usize| reporter.report(phase, (done * steps + step, of * steps.max(total)));
        self.plans.session(key).run_async(&mut go_on).await?;
        self.reporter.check(phase, ((done + 1) * steps, of * steps))
    }
}

/// Copies the initial picture back, byte by byte, where the mask does not reach. Its transparent pixels are white, as
/// they are to the encoder.
fn paste(drawn: &mut Picture, initial: &Picture, mask: &Mask) {
    let pixels = drawn.rgba.as_chunks_mut::<4>().0.iter_mut().zip(initial.rgb());
    for ((drawn, known), share) in pixels.zip(&mask.values) {
        let share = u32::from(*share);
        for (value, known) in drawn.iter_mut().zip(known) {
            *value = ((u32::from(*value) * share + u32::from(known) * (255 - share) + 127) / 255) as u8;
        }
    }
}

/// Returns the latent that sampling begins from. With a strength of 1 the initial picture matters only where a mask
/// keeps it.
fn beginning(known: Option<&Known>, first: Option<&Evaluation>, noise: &[f32], strength: f32) -> Vec<f32> {
    let (Some(known), Some(first)) = (known, first) else {
        return known.map_or_else(|| noise.to_vec(), |known| known.latent.clone());
    };
    let noisy = first.step.now.mix(&known.latent, noise);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_pixel_under_the_mask_draws_its_part_of_the_latent_anew() {
        // Two by three elements of the latent, in two channels.
        let (width, height) = (2 * PIXELS_PER_LATENT, 3 * PIXELS_PER_LATENT);
        for cell in 0..6 {
            let (x, y) = (cell % 2 * PIXELS_PER_LATENT, cell / 2 * PIXELS_PER_LATENT);
            // The first and the last pixel.
            for end in [0, PIXELS_PER_LATENT - 1] {
                let mut values = vec![0; width * height];
                values[(y + end) * width + x + end] = 1;
                let found = redrawn(&Mask { width, height, values }, 12);
                let expected: Vec<bool> = (0..12).map(|element| element / 2 == cell).collect();
                assert_eq!(found, expected, "element {cell}, pixel {end}");
            }
        }
    }

    #[test]
    fn a_pasted_picture_is_opaque_and_transparent_pixels_are_white() {
        let picture = |rgba: [u8; 4]| Picture { width: 3, height: 1, rgba: rgba.repeat(3) };
        let mask = Mask { width: 3, height: 1, values: vec![0, 128, 255] };
        for (initial, [kept, mixed]) in [([9, 9, 9, 255], [9, 55]), ([9, 9, 9, 0], [255, 177])] {
            let mut drawn = picture([100, 100, 100, 255]);
            paste(&mut drawn, &picture(initial), &mask);
            let expected = [kept, mixed, 100].map(|grey| [grey, grey, grey, 255]);
            assert_eq!(drawn.rgba, expected.as_flattened(), "{initial:?}");
        }
    }
}

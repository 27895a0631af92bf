//! Requests, and the settings that they amount to with a model's own values.

use crate::config::{GUIDANCE, ModelConfig, Sampler};
use crate::error::ModelError;
use crate::networks::{LatentSize, Shape, VAE};
use crate::picture::{Mask, Picture};
use crate::schedule::{MOST_ONE_STEP, Schedule};

/// Largest number of pictures in a request. [`Pipeline::generate`](crate::Pipeline::generate) keeps all of them until
/// the last one is drawn.
pub const MOST_PICTURES: usize = 1000;

/// Default strength for an initial picture: its layout stays, its look changes.
const STRENGTH: f32 = 0.6;

/// Request for pictures. [`Request::new`] leaves everything but the prompt to the model; set fields to change that.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Text to draw. Text that does not fit into the model's tokens is left out, see [`Settings::truncated`].
    pub prompt: String,
    /// Negative prompt: text to avoid, cut like the prompt. It needs guidance, so a one-step model uses DDIM for it.
    pub negative: String,
    /// Width in pixels, a multiple of [`ModelConfig::size_multiple`]; `None` for the model's default.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of [`ModelConfig::size_multiple`]; `None` for the model's default.
    pub height: Option<usize>,
    /// Number of UNet evaluations; `None` for the sampler's default.
    ///
    /// A one-step model takes 1 to 4 steps. For more it uses DDIM with guidance, and whatever else needs DDIM needs
    /// more than 4.
    pub steps: Option<usize>,
    /// Guidance scale, 0 to 100, where 1 means no guidance; `None` for the sampler's default.
    pub guidance: Option<f32>,
    /// Share of fresh noise between DDIM's steps, from 0 for none to 1; `None` means 0. A one-step model uses DDIM
    /// for a positive value.
    pub eta: Option<f64>,
    /// Seed of the first picture; later pictures count up. The same seed gives the same bytes on the same device.
    pub seed: u64,
    /// Number of pictures, 1 to [`MOST_PICTURES`].
    pub count: usize,
    /// Largest number of pictures that are drawn at once, 1 to [`MOST_PICTURES`]. With 1, the pictures are drawn one after another in
    /// the memory of one, and each has the bytes that its seed gives alone. With more, they take more memory, small ones
    /// take less time each, and each may differ from that picture by rounding.
    pub batch: usize,
    /// Picture to begin from.
    pub init: Option<Init>,
    /// Number of evaluations between two previews; `None` for no previews. Errors call it `preview-every`, as the command
    /// line does.
    pub preview_every: Option<usize>,
}

impl Request {
    /// Returns a request for one picture of `prompt` with the model's defaults and seed 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: String::new(),
            width: None,
            height: None,
            steps: None,
            guidance: None,
            eta: None,
            seed: 0,
            count: 1,
            batch: 1,
            init: None,
            preview_every: None,
        }
    }
}

/// Initial picture, of exactly the size that is drawn, which [`Pipeline::settings`](crate::Pipeline::settings) returns.
/// [`Picture::fill`] scales and crops one to it, as the command line does.
#[derive(Clone, Debug, PartialEq)]
pub struct Init {
    /// Picture to begin from.
    pub picture: Picture,
    /// How much of the picture is drawn anew, 0 to 1. A strength of 0 only encodes and decodes the picture; 1 ignores
    /// it, except where a mask keeps it.
    pub strength: f32,
    /// Part of the picture to draw anew; `None` for all of it. The rest keeps its bytes.
    pub mask: Option<Mask>,
}

impl Init {
    /// Returns an initial picture that is drawn anew with a strength of 0.6, so that its layout stays.
    pub fn new(picture: Picture) -> Self {
        Self { picture, strength: STRENGTH, mask: None }
    }

    /// Returns an initial picture of which the masked part is drawn from pure noise and the rest is kept.
    pub fn masked(picture: Picture, mask: Mask) -> Self {
        Self { picture, strength: 1.0, mask: Some(mask) }
    }
}

/// Settings that a request amounts to with a model's own values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Sampler.
    pub sampler: Sampler,
    /// Number of UNet evaluations from pure noise to a picture. An initial picture with a strength below 1 needs
    /// fewer with DDIM.
    pub steps: usize,
    /// Guidance scale; 1 means no guidance.
    pub guidance: f32,
    /// Share of fresh noise between DDIM's steps.
    pub eta: f64,
    /// Part of the prompt that was left out; `None` if it fits.
    pub truncated: Option<Truncated>,
    /// Part of the negative prompt that was left out; `None` if it fits.
    pub negative_truncated: Option<Truncated>,
}

/// Place where a prompt was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Last words that the model reads.
    pub kept: String,
    /// Text that was left out, as it was written.
    pub left_out: String,
}

impl Truncated {
    /// Describes the cut in a prompt that ends with `left_out`.
    pub(super) fn of(prompt: &str, left_out: String) -> Self {
        const WORDS: usize = 4;
        let read = prompt.strip_suffix(left_out.as_str()).unwrap_or(prompt).trim_end();
        let start = read.rmatch_indices(char::is_whitespace).nth(WORDS - 1).map_or(0, |(at, space)| at + space.len());
        Self { kept: read[start..].to_owned(), left_out }
    }
}

impl Settings {
    /// Returns the shape of the graphs for one picture at a time.
    pub(super) fn shape(&self, config: &ModelConfig) -> Result<Shape, ModelError> {
        let takes_noise = match self.sampler {
            Sampler::Ddim => self.eta > 0.0,
            Sampler::OneStep => self.steps > 1,
        };
        let guided = self.guidance != 1.0;
        Ok(Shape { guided, takes_noise, ..Shape::of(config, self.width, self.height, self.sampler)? })
    }
}

impl Request {
    /// Checks the request against a configuration, without reading weights or opening a device.
    ///
    /// # Errors
    /// [`ModelError`] if the configuration is not valid or a pipeline would refuse the request; the error names the
    /// value.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        self.shape(config).map(drop)
    }

    /// Returns the shape of the graphs that draw one picture of the request, without reading weights or opening a device.
    ///
    /// # Errors
    /// Fails in the cases of [`check`](Self::check).
    pub fn shape(&self, config: &ModelConfig) -> Result<Shape, ModelError> {
        config.validate()?;
        self.settings(config, &Schedule::new(&config.scheduler)?)?.shape(config)
    }

    /// Checks the sides and the number of pictures against the limits of all models, for use before a model is known.
    ///
    /// # Errors
    /// [`ModelError::Request`] if `width`, `height`, `batch` or `count` is above its limit.
    pub fn check_extent(&self) -> Result<(), ModelError> {
        for (key, side) in [("width", self.width), ("height", self.height)] {
            side.map_or(Ok(()), |side| LatentSize::check_side(key, side))?;
        }
        match [("batch", self.batch), ("count", self.count)].into_iter().find(|(_, number)| *number > MOST_PICTURES) {
            Some((key, found)) => Err(ModelError::request(key, format!("at most {MOST_PICTURES} pictures"), found)),
            None => Ok(()),
        }
    }

    /// Returns how many pictures are drawn at once, in turn: as few batches as possible, of sizes that differ by one at
    /// most. The largest come first.
    pub fn batches(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.count;
        let batches = count.div_ceil(self.batch.max(1));
        (0..batches).map(move |at| count / batches + usize::from(at < count % batches))
    }

    /// Returns the share of the walk from noise to a picture that is drawn.
    pub(super) fn strength(&self) -> f32 {
        self.init.as_ref().map_or(1.0, |init| init.strength)
    }

    /// Returns the settings of this request for a model, without the cuts in the prompts.
    pub(super) fn settings(&self, config: &ModelConfig, schedule: &Schedule) -> Result<Settings, ModelError> {
        self.check_extent()?;
        let own = config.defaults.image_size;
        let (width, height) = (self.width.unwrap_or(own), self.height.unwrap_or(own));
        let (sampler, steps, guidance) = self.sampling(config);
        let eta = self.eta.unwrap_or(0.0);
        let settings =
            Settings { width, height, sampler, steps, guidance, eta, truncated: None, negative_truncated: None };
        settings.shape(config)?;
        if sampler != config.defaults.sampler && steps <= MOST_ONE_STEP {
            // So few DDIM steps leave noise in the picture, and a user of a one-step model hardly means them.
            let expected = format!("more than {MOST_ONE_STEP} with guidance, a negative prompt or an eta");
            return Err(ModelError::request("steps", expected, steps));
        }
        if self.init.is_some() && config.vae.is_none() {
            return Err(ModelError::NoPart { part: VAE });
        }
        self.check_values(&settings)?;
        match sampler {
            Sampler::Ddim => schedule.ddim(steps, eta).map(drop)?,
            Sampler::OneStep => schedule.one_step(steps).map(drop)?,
        }
        Ok(settings)
    }

    /// Returns sampler, number of steps and guidance. A one-step model uses DDIM for more steps than it takes, for
    /// guidance, and for noise between the steps.
    fn sampling(&self, config: &ModelConfig) -> (Sampler, usize, f32) {
        let own = &config.defaults;
        let guided = self.guidance.is_some_and(|g| g != 1.0) || !self.negative.is_empty();
        let noisy = self.eta.is_some_and(|eta| eta != 0.0);
        let beyond = self.steps.is_some_and(|steps| steps > MOST_ONE_STEP) || guided || noisy;
        match own.sampler {
            Sampler::OneStep if beyond => {
                let ddim = own.ddim.unwrap_or_default();
                (Sampler::Ddim, self.steps.unwrap_or(ddim.steps), self.guidance.unwrap_or(ddim.guidance))
            }
            sampler => (sampler, self.steps.unwrap_or(own.steps), self.guidance.unwrap_or(own.guidance)),
        }
    }

    /// Checks the values that do not depend on the schedule.
    fn check_values(&self, settings: &Settings) -> Result<(), ModelError> {
        let guidance = settings.guidance;
        if !GUIDANCE.contains(&guidance) {
            return Err(ModelError::request("guidance", "a number from 0 to 100", guidance));
        }
        if guidance == 1.0 && !self.negative.is_empty() {
            return Err(ModelError::request("guidance", "a number other than 1 for a negative prompt", guidance));
        }
        if settings.steps == 0 {
            return Err(ModelError::request("steps", "at least 1 step", 0));
        }
        for (key, pictures) in [("batch", self.batch), ("count", self.count)] {
            if pictures == 0 {
                return Err(ModelError::request(key, "at least 1 picture", 0));
            }
        }
        if self.preview_every == Some(0) {
            return Err(ModelError::request("preview-every", "an interval of at least 1 step", 0));
        }
        let Some(init) = &self.init else { return Ok(()) };
        if !(0.0..=1.0).contains(&init.strength) {
            return Err(ModelError::request("strength", "a number from 0 to 1", init.strength));
        }
        let size = |width, height| format!("{width}x{height} pixels");
        let expected = size(settings.width, settings.height);
        let found = size(init.picture.width, init.picture.height);
        if found != expected {
            return Err(ModelError::request("init", expected, found));
        }
        let pixels = settings.width * settings.height;
        let values = |name, expected: usize, found: usize| {
            if found == expected { Ok(()) } else { Err(ModelError::request(name, format!("{expected} values"), found)) }
        };
        values("init", 4 * pixels, init.picture.rgba.len())?;
        let Some(mask) = &init.mask else { return Ok(()) };
        if size(mask.width, mask.height) != expected {
            return Err(ModelError::request("mask", expected, size(mask.width, mask.height)));
        }
        values("mask", pixels, mask.values.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DdimDefaults;

    fn settings(request: &Request) -> Result<Settings, ModelError> {
        let config = ModelConfig::preset("mini").expect("there is a preset");
        let schedule = Schedule::new(&config.scheduler).expect("the schedule is valid");
        request.settings(&config, &schedule)
    }

    #[test]
    fn a_one_step_model_samples_by_ddim_for_what_one_step_cannot() {
        let sampler = |request: Request| settings(&request).map(|s| (s.sampler, s.steps, s.guidance)).expect("valid");
        let plain = Request::new("sun");
        assert_eq!(sampler(plain.clone()), (Sampler::OneStep, 1, 1.0));
        assert_eq!(sampler(Request { steps: Some(4), ..plain.clone() }), (Sampler::OneStep, 4, 1.0));
        assert_eq!(sampler(Request { steps: Some(5), ..plain.clone() }), (Sampler::Ddim, 5, 3.0));
        assert_eq!(sampler(Request { guidance: Some(2.0), ..plain.clone() }), (Sampler::Ddim, 20, 2.0));
        assert_eq!(sampler(Request { eta: Some(0.5), ..plain.clone() }), (Sampler::Ddim, 20, 3.0));
        assert_eq!(sampler(Request { eta: Some(0.0), ..plain.clone() }).0, Sampler::OneStep);
        for eta in [-0.1, 1.5, f64::NAN] {
            assert!(settings(&Request { eta: Some(eta), ..plain.clone() }).is_err(), "{eta}");
        }
        let negative = Request { negative: "moon".into(), ..plain };
        assert_eq!(sampler(negative.clone()), (Sampler::Ddim, 20, 3.0));
        assert_eq!(sampler(Request { steps: Some(5), ..negative.clone() }), (Sampler::Ddim, 5, 3.0));
        for steps in [0, 1, 4] {
            let error = settings(&Request { steps: Some(steps), ..negative.clone() }).expect_err("too few for DDIM");
            assert!(error.to_string().starts_with("steps: expected more than 4 with"), "{error}");
        }
    }

    #[test]
    fn the_shape_is_the_one_of_the_sampler_that_draws() {
        let shape = |steps: usize, request: Request| {
            let mut config = ModelConfig::preset("mini").expect("there is a preset");
            config.defaults.steps = steps;
            let Shape { sampler, guided, takes_noise, .. } = request.shape(&config).expect("valid");
            (sampler, guided, takes_noise)
        };
        let plain = Request::new("sun");
        assert_eq!(shape(1, plain.clone()), (Sampler::OneStep, false, false), "one step has no noise after it");
        assert_eq!(shape(2, plain.clone()), (Sampler::OneStep, false, true));
        for steps in [1, 2] {
            assert_eq!(shape(steps, Request { guidance: Some(1.0), ..plain.clone() }).0, Sampler::OneStep);
            let guided = shape(steps, Request { guidance: Some(3.0), ..plain.clone() });
            assert_eq!(guided, (Sampler::Ddim, true, false), "guidance needs DDIM, with the model's own steps of DDIM");
        }
        assert_eq!(shape(1, Request { eta: Some(0.5), ..plain.clone() }), (Sampler::Ddim, true, true));
    }

    #[test]
    fn the_models_file_holds_the_defaults_of_ddim() {
        let mut config = ModelConfig::preset("mini").expect("there is a preset");
        let schedule = Schedule::new(&config.scheduler).expect("the schedule is valid");
        let guided = Request { negative: "moon".into(), ..Request::new("sun") };
        for (ddim, expected) in [(Some(DdimDefaults { steps: 8, guidance: 2.0 }), (8, 2.0)), (None, (20, 3.0))] {
            config.defaults.ddim = ddim;
            let settings = guided.settings(&config, &schedule).expect("valid");
            assert_eq!((settings.steps, settings.guidance), expected);
        }
    }

    #[test]
    fn a_picture_to_begin_from_needs_an_encoder() {
        let mut config = ModelConfig::preset("mini").expect("there is a preset");
        config.vae = None;
        let picture = Picture { width: 64, height: 64, rgba: vec![255; 4 * 64 * 64] };
        let request = Request { init: Some(Init::new(picture)), ..Request::new("sun") };
        let schedule = Schedule::new(&config.scheduler).expect("the schedule is valid");
        let refused = request.settings(&config, &schedule);
        assert!(matches!(refused, Err(ModelError::NoPart { part: "vae" })), "{refused:?}");
    }

    #[test]
    fn a_cut_is_shown_with_the_words_before_it() {
        let cut = |prompt: &str, left_out: &str| Truncated::of(prompt, left_out.to_owned()).kept;
        assert_eq!(cut("one two three four five six seven", "six seven"), "two three four five");
        assert_eq!(cut("one two three", "three"), "one two");
        assert_eq!(cut("onetwothree", "three"), "onetwo");
        assert_eq!(cut("\u{5d0} \u{1f34e}\u{2003}c d e f", "f"), "\u{1f34e}\u{2003}c d e");
    }

    #[test]
    fn pictures_are_divided_into_batches_of_nearly_one_size() {
        let of = |count, batch| Request { count, batch, ..Request::new("sun") }.batches().collect::<Vec<_>>();
        assert_eq!((of(3, 1), of(1, 4), of(4, 4)), (vec![1; 3], vec![1], vec![4]));
        assert_eq!((of(9, 4), of(10, 4), of(5, 4)), (vec![3; 3], vec![4, 3, 3], vec![3, 2]));
        assert_eq!(of(7, usize::MAX), [7]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let plain = Request::new("sun");
        let picture = |side: usize| Picture { width: side, height: side, rgba: vec![255; 4 * side * side] };
        let wrong = [
            ("width", Request { width: Some(50), ..plain.clone() }),
            ("height", Request { height: Some(0), ..plain.clone() }),
            ("width", Request { width: Some(1 << 40), ..plain.clone() }),
            ("steps", Request { steps: Some(0), ..plain.clone() }),
            ("guidance", Request { guidance: Some(f32::NAN), ..plain.clone() }),
            ("guidance", Request { guidance: Some(1.0), negative: "moon".into(), ..plain.clone() }),
            ("count", Request { count: 0, ..plain.clone() }),
            ("batch", Request { batch: 0, ..plain.clone() }),
            ("batch", Request { batch: MOST_PICTURES + 1, ..plain.clone() }),
            ("preview-every", Request { preview_every: Some(0), ..plain.clone() }),
            ("init", Request { init: Some(Init::new(picture(32))), ..plain.clone() }),
            ("strength", Request { init: Some(Init { strength: 1.5, ..Init::new(picture(64)) }), ..plain.clone() }),
            ("mask", Request { init: Some(Init::masked(picture(64), Mask::of(&picture(32)))), ..plain }),
        ];
        for (key, request) in wrong {
            let error = settings(&request).expect_err(key).to_string();
            assert!(error.contains(key) && error.contains("expected") && error.contains("found"), "{key}: {error}");
        }
    }
}

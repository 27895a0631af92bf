//! `generate`: draws pictures of a prompt and writes them to files.

use crate::Failure;
use crate::args::{Generate, of_size};
use crate::device::{Floats, weights_name};
use crate::output::{Outputs, check_file, preview_name};
use crate::terminal::{Clock, note, printable, result};
use mobilediffusion_kernels::Storage;
use mobilediffusion_model::{
    Flow, Init, Mask, ModelError, Options, Picture, Pipeline, Progress, Request, Settings, Truncated, WeightType,
    WeightsFrom,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &Generate) -> Result<(), Failure> {
    let mut request = request(args);
    let named = |error| if args.size.is_some() { of_size(error) } else { error };
    request.check_extent().map_err(named)?;
    let mut outputs = Outputs::new(args)?;
    let source = args.source()?;
    request.check(&source.config).map_err(named)?;
    let own = source.config.defaults.clone();
    if let Some(path) = &args.init {
        let side = |asked: Option<usize>| asked.unwrap_or(own.image_size);
        request.init = Some(init(args, path, (side(request.width), side(request.height)))?);
        request.check(&source.config).map_err(named)?;
    }

    let mut clock = Clock::start();
    let (floats, weights) = (Floats::or_auto(args.dtype), args.weights_dtype);
    let options = Options { device: args.device.clone(), floats, weights, ..Options::default() };
    let mut pipeline = Pipeline::load(source, options)?;
    let settings = pipeline.settings(&request)?;
    outputs.begin(args, &settings, pipeline.evaluations(&request)?)?;
    let device = pipeline.model().device_line();
    note(&format!("device: {device}"));
    note(&format!("model: {}, {}, seed {}", own.name, described(&settings), args.seed));
    if matches!(args.weights, Some(WeightsFrom::Synthetic(_))) {
        note("note: the weights are synthetic, so the picture is meaningless");
    }
    for (what, cut) in [("prompt", &settings.truncated), ("negative prompt", &settings.negative_truncated)] {
        let Some(cut) = cut else { continue };
        let (kept, left_out) = (shortened(&cut.kept), shortened(&cut.left_out));
        note(&format!("warning: the {what} is too long: read up to {kept}, left out: {left_out}"));
    }

    let storage = pipeline.model().storage(settings.sampler)?;
    let model = match &args.weights {
        Some(WeightsFrom::Synthetic(seed)) => format!("{}, synthetic weights of seed {seed}", own.name),
        Some(WeightsFrom::Directory(folder)) => format!("{}, weights of {}", own.name, name(folder)),
        None => own.name,
    };
    let facts = facts(args, (&model, &device, storage), (&request, &settings));
    let mut previews = Previews { args, facts: &facts, written: Vec::new(), failure: None };
    let drawn = draw((&mut pipeline, &request), &mut clock, (&mut outputs, &mut previews));
    let files = outputs.written();
    if !files.is_empty() {
        note(&format!("wrote {} ({})", listed(files), clock.times()));
    }
    drawn?;
    if args.json {
        let mut all = report(&previews, files, &settings);
        all["seconds"] = json!(clock.seconds());
        all["weight_bytes"] = pipeline.counters().weight_bytes.into();
        result(&serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

/// Returns what `--json` prints of the files and the request.
fn report(previews: &Previews<'_>, files: &[(PathBuf, u64)], settings: &Settings) -> Value {
    let Previews { args, facts, written, .. } = previews;
    let file = |(path, seed): &(PathBuf, u64)| json!({"path": path.to_string_lossy(), "seed": seed});
    let files: Vec<Value> = files.iter().map(file).collect();
    let mut facts: Map<_, _> = facts.iter().map(|(key, value)| (key.to_lowercase(), fact(key, value))).collect();
    facts.remove("size");
    facts.extend([("width", settings.width), ("height", settings.height)].map(|(key, side)| (key.into(), side.into())));
    facts.insert("seed".into(), args.seed.into());
    let left_out = |cut: &Option<Truncated>| cut.as_ref().map(|cut| cut.left_out.clone());
    let (left_out, negative) = (left_out(&settings.truncated), left_out(&settings.negative_truncated));
    let previews: Vec<_> = written.iter().map(|path| path.to_string_lossy()).collect();
    json!({"files": files, "previews": previews, "count": args.count, "batch": args.batch, "settings": facts,
        "left_out": left_out, "left_out_of_negative": negative})
}

/// Returns what `--json` prints of a text of a file.
fn fact(key: &str, value: &str) -> Value {
    const NUMBERS: [&str; 4] = ["Steps", "Guidance", "Eta", "Strength"];
    let number = NUMBERS.contains(&key).then(|| serde_json::from_str(value).ok()).flatten();
    number.unwrap_or_else(|| value.into())
}

/// Draws the pictures, and writes each as soon as it is finished or all of them as one sheet.
fn draw(
    (pipeline, request): (&mut Pipeline, &Request),
    clock: &mut Clock,
    (outputs, previews): (&mut Outputs, &mut Previews<'_>),
) -> Result<(), ModelError> {
    let facts = previews.facts;
    let mut hear = |progress: &Progress| {
        clock.tick(progress);
        previews.hear(progress)
    };
    let mut unwritten = None;
    let batches: Vec<usize> = request.batches().flat_map(|size| std::iter::repeat_n(size, size)).collect();
    let drawn = pipeline.generate_each(request, &mut hear, &mut |at, picture| {
        unwritten = outputs.take((picture, batches[at]), facts).err();
        if unwritten.is_none() { Flow::Continue } else { Flow::Stop }
    });
    clock.stop();
    match (drawn, previews.failure.take().or(unwritten)) {
        // The run was stopped because a file could not be written: that is the error to report.
        (Err(ModelError::Stopped), Some(failure)) => Err(failure),
        (drawn, _) => drawn.and_then(|()| outputs.finish(facts)),
    }
}

/// Builds the request from the arguments, without the initial picture.
fn request(args: &Generate) -> Request {
    Request {
        negative: args.negative.clone(),
        width: args.size.or(args.width),
        height: args.size.or(args.height),
        steps: args.steps,
        guidance: args.guidance,
        eta: args.eta,
        seed: args.seed,
        count: args.count,
        batch: args.batch,
        preview_every: args.preview.is_some().then_some(args.preview_every),
        ..Request::new(&args.prompt)
    }
}

/// Reads the initial picture and its mask, scaled and cropped to the size of the result.
fn init(args: &Generate, path: &Path, (width, height): (usize, usize)) -> Result<Init, Failure> {
    let size = |picture: &Picture| format!("{}x{}", picture.width, picture.height);
    let picture = Picture::open(path)?;
    let marks = args.mask.as_deref().map(|path| Ok::<_, ModelError>((path, Picture::open(path)?))).transpose()?;
    let (found, wanted) = (size(&picture), format!("{width}x{height}"));
    if let Some((path, marks)) = marks.as_ref().filter(|(_, marks)| size(marks) != found) {
        let line = format!("{}: expected {found} pixels, the size of --init, found {}", path.display(), size(marks));
        return Err(line.into());
    }
    if found != wanted {
        note(&format!("note: {} is scaled and cropped from {found} to {wanted} pixels", path.display()));
    }
    // The pipeline refuses a side of zero later, together with all other invalid sizes.
    let fill = |picture: Picture| picture.fill(width.max(1), height.max(1));
    let mut init = match marks {
        None => Init::new(fill(picture)),
        Some((_, marks)) => Init::masked(fill(picture), Mask::of(&fill(marks))),
    };
    init.strength = args.strength.unwrap_or(init.strength);
    Ok(init)
}

/// Writer of previews, called for every chunk of progress.
struct Previews<'a> {
    args: &'a Generate,
    facts: &'a [(&'static str, String)],
    written: Vec<PathBuf>,
    failure: Option<ModelError>,
}

impl Previews<'_> {
    /// Writes the preview that `progress` holds, if any. Stops the run if that fails.
    fn hear(&mut self, progress: &Progress) -> Flow {
        let (Some(folder), Some(preview)) = (&self.args.preview, &progress.preview) else { return Flow::Continue };
        let seed = self.args.seed.wrapping_add(progress.picture as u64);
        let path = folder.join(preview_name(seed, progress.step));
        let done = check_file(&path, self.args.force).and_then(|()| {
            let mut facts = self.facts.to_vec();
            facts.extend([("Seed", seed.to_string()), ("Preview", format!("{} of {}", progress.step, progress.total))]);
            preview.save_png(&path, &facts)
        });
        match done {
            Ok(()) => {
                self.written.push(path);
                Flow::Continue
            }
            Err(failure) => {
                self.failure = Some(failure);
                Flow::Stop
            }
        }
    }
}

/// Describes the settings in one line.
pub(crate) fn described(settings: &Settings) -> String {
    let Settings { width, height, steps, guidance, .. } = settings;
    let plural = if *steps == 1 { "" } else { "s" };
    format!("{width}x{height} pixels, {steps} step{plural}, guidance {guidance}")
}

/// Collects the texts to store in each file: everything needed to draw the picture again, except seed and batch.
fn facts(
    args: &Generate,
    (model, device, storage): (&str, &str, Storage),
    (request, settings): (&Request, &Settings),
) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Description", args.prompt.clone())];
    facts.extend((!args.negative.is_empty()).then(|| ("Negative", args.negative.clone())));
    facts.extend([
        ("Software", concat!("mobilediffusion ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("Model", model.to_owned()),
        ("Size", format!("{}x{}", settings.width, settings.height)),
        ("Sampler", settings.sampler.to_string()),
        ("Steps", settings.steps.to_string()),
        ("Guidance", settings.guidance.to_string()),
    ]);
    facts.extend((settings.eta != 0.0).then(|| ("Eta", settings.eta.to_string())));
    facts.extend(args.init.as_deref().map(|path| ("Init", name(path))));
    facts.extend(request.init.as_ref().map(|init| ("Strength", init.strength.to_string())));
    facts.extend(args.mask.as_deref().map(|path| ("Mask", name(path))));
    let floats = Floats::of(storage).name();
    let weights = match storage.weights {
        WeightType::Floats => floats,
        other => weights_name(other),
    };
    let stored = [("Floats", floats.to_owned()), ("Weights", weights.to_owned())];
    facts.extend([("Device", device.to_owned())].into_iter().chain(stored));
    facts
}

/// Returns the last part of a path, for texts that are passed on with a picture.
fn name(path: &Path) -> String {
    // `.` and `..` have names too.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().or(whole.file_name()).unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Lists files for a message: `a`, `a and b`, or `a to z, 26 files`.
fn listed(files: &[(PathBuf, u64)]) -> String {
    let names: Vec<String> = files.iter().map(|(path, _)| path.display().to_string()).collect();
    match names.as_slice() {
        [first, .., last] if names.len() > 2 => format!("{first} to {last}, {} files", names.len()),
        _ => names.join(" and "),
    }
}

/// Quotes the beginning of a text, with its length if it is cut.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    let text = text.trim();
    let all = text.chars().count();
    if all <= SHOWN {
        return format!("`{}`", printable(text));
    }
    format!("`{}...` ({all} characters)", printable(&text.chars().take(SHOWN).collect::<String>()))
}

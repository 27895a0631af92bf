//! `generate`: a prompt becomes a file.

use crate::Failure;
use crate::args::Generate;
use crate::terminal::{Clock, note};
use mobilediffusion_model::{Options, Phase, Pipeline, WeightsFrom};
use std::fs;
use std::path::Path;

pub(crate) fn run(args: &Generate) -> Result<(), Failure> {
    // The library takes an empty text (it is what guidance compares with); a person who types one has made a mistake.
    if args.prompt.trim().is_empty() {
        return Err("the prompt is empty, expected a few words that say what to draw".into());
    }
    check_output(&args.output)?;
    let source = args.source()?;
    let defaults = source.config.defaults.clone();
    let synthetic = matches!(source.weights, WeightsFrom::Synthetic(_));
    let mut options = Options::new(&source.config);
    options.device = args.device.clone();
    options.width = args.size.unwrap_or(options.width);
    options.height = args.size.unwrap_or(options.height);
    options.steps = args.steps;
    options.guidance = args.guidance;
    let (width, height) = (options.width, options.height);

    let mut clock = Clock::start();
    let mut pipeline = Pipeline::load(source, options, &mut |progress| clock.tick(progress))?;
    clock.pause(Phase::Load);
    let (steps, guidance) = (pipeline.steps(), pipeline.guidance());
    note(&format!("device: {}", pipeline.device_line()));
    let plural = if steps == 1 { "" } else { "s" };
    note(&format!(
        "model: {}, {width}x{height} pixels, {steps} step{plural}, guidance {guidance}, seed {}",
        defaults.name, args.seed
    ));
    if synthetic {
        note("note: the weights are synthetic, so the picture means nothing");
    }

    let picture = pipeline.generate(&args.prompt, args.seed, &mut |progress| clock.tick(progress))?;
    clock.pause(Phase::Decode);
    if let Some(rest) = &picture.truncated {
        note(&format!("warning: the prompt is too long, left out: {}", shortened(rest)));
    }
    let text = [
        ("Description", args.prompt.clone()),
        ("Software", concat!("mobilediffusion ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("Model", defaults.name),
        ("Seed", args.seed.to_string()),
        ("Steps", steps.to_string()),
        ("Guidance", guidance.to_string()),
    ];
    picture.save_png(&args.output, &text)?;
    note(&format!("wrote {} ({})", args.output.display(), clock.times()));
    Ok(())
}

/// Refuses a file that could not be written in the end, before any work is done for it.
fn check_output(path: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(format!("cannot write {}: {why}", path.display()).into());
    let Some(name) = path.file_name() else { return refuse("it does not name a file") };
    if path.is_dir() {
        return refuse("it is a folder");
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return refuse(&format!("there is no folder {}", folder.display()));
    }
    let mut probe = name.to_owned();
    probe.push(format!(".{}.probe", std::process::id()));
    let probe = folder.join(probe);
    match fs::File::create_new(&probe).and_then(|_| fs::remove_file(&probe)) {
        Ok(()) => Ok(()),
        Err(error) => refuse(&error.to_string()),
    }
}

/// The beginning of a text, and how long it is if that is not all.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 60;
    let text = text.trim();
    let all = text.chars().count();
    if all <= SHOWN {
        return format!("`{text}`");
    }
    format!("`{}...` ({all} characters)", text.chars().take(SHOWN).collect::<String>().replace('\n', " "))
}

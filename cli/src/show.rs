//! `show`: prints the texts that `generate` stored in a picture's file.

use crate::Failure;
use crate::args::Show;
use crate::terminal::{printable, result};
use mobilediffusion_model::Picture;
use serde_json::{Map, Value};

pub(crate) fn run(args: &Show) -> Result<(), Failure> {
    let texts = Picture::texts(&args.file)?;
    if texts.is_empty() {
        return Err(format!(
            "{}: expected a file that `generate` wrote, found a picture without texts",
            args.file.display()
        )
        .into());
    }
    if args.json {
        let all: Map<String, Value> = texts.into_iter().map(|(key, value)| (key, value.into())).collect();
        return Ok(result(&serde_json::to_string_pretty(&all)?)?);
    }
    for (key, value) in texts {
        result(&format!("{}: {}", printable(&key), printable(&value)))?;
    }
    Ok(())
}

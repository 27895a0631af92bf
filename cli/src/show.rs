//! `show`: prints the texts that `generate` stored in a picture's file.

use crate::Failure;
use crate::args::Show;
use crate::terminal::{printable, result};
use mobilediffusion_model::Picture;
use serde_json::map::Entry;
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
        return Ok(result(&serde_json::to_string_pretty(&as_object(texts))?)?);
    }
    for (key, value) in texts {
        result(&format!("{}: {}", printable(&key), printable(&value)))?;
    }
    Ok(())
}

/// Returns the texts by their keys. A key may be there several times in files of other programs, and then has a list.
fn as_object(texts: Vec<(String, String)>) -> Map<String, Value> {
    let mut all = Map::new();
    for (key, value) in texts {
        match all.entry(key) {
            Entry::Vacant(place) => {
                place.insert(value.into());
            }
            Entry::Occupied(mut place) => match place.get_mut() {
                Value::Array(values) => values.push(value.into()),
                first => *first = Value::Array(vec![first.take(), value.into()]),
            },
        }
    }
    all
}

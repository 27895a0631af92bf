//! Draws the sixteen prompts of the bundled checkpoint's contact sheet with seed 0, each once.
//!
//!     cargo run --release -p mobilediffusion-model --example contact_sheet -- OUT.png

mod sheet;

use mobilediffusion_model::{Flow, ModelError, Options, Picture, Pipeline, Request, Source};
use sheet::PROMPTS;
use std::path::PathBuf;

/// Number of pictures in a row.
const COLUMNS: usize = 8;
/// Edge of the square that each pixel becomes, so that small pictures can be looked at.
const ZOOM: usize = 2;

fn main() -> Result<(), ModelError> {
    let path = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("contact-sheet.png"), PathBuf::from);
    let mut pipeline = Pipeline::load(Source::bundled()?, Options::default())?;
    let mut pictures = Vec::new();
    for prompt in PROMPTS {
        pictures.extend(pipeline.generate(&Request::new(prompt), &mut |_| Flow::Continue)?);
    }
    side_by_side(&pictures).save_png(&path, &[("Prompts", PROMPTS.join("; ")), ("Seed", "0".to_owned())])
}

/// Arranges pictures of one size side by side and enlarges them.
fn side_by_side(pictures: &[Picture]) -> Picture {
    let (cell_width, cell_height) = (pictures[0].width * ZOOM, pictures[0].height * ZOOM);
    let (width, height) = (COLUMNS * cell_width, pictures.len().div_ceil(COLUMNS) * cell_height);
    let mut rgba = vec![255; 4 * width * height];
    for (pixel, out) in rgba.chunks_exact_mut(4).enumerate() {
        let (x, y) = (pixel % width, pixel / width);
        let Some(picture) = pictures.get(y / cell_height * COLUMNS + x / cell_width) else { continue };
        let at = y % cell_height / ZOOM * picture.width + x % cell_width / ZOOM;
        out.copy_from_slice(&picture.rgba[4 * at..4 * at + 4]);
    }
    Picture { width, height, rgba }
}

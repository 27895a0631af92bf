//! A finished picture, and its file.

use crate::error::ModelError;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// Pixels, and what was cut off the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue and alpha of every pixel, row by row.
    pub rgba: Vec<u8>,
    /// The part of the prompt that did not fit.
    pub truncated: Option<String>,
}

impl Picture {
    /// Writes a PNG with `text` chunks. The file appears whole or not at all: it is written beside `path` and renamed.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn save_png(&self, path: &Path, text: &[(&str, String)]) -> Result<(), ModelError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let partial = path.with_file_name(name);
        let written = self.encode(&partial, text).and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|source| {
            // The first error is the one to report; a leftover that cannot be removed either adds nothing to it.
            let _ = std::fs::remove_file(&partial);
            ModelError::Output { path: PathBuf::from(path), source }
        })
    }

    fn encode(&self, path: &Path, text: &[(&str, String)]) -> io::Result<()> {
        let side = |pixels: usize| u32::try_from(pixels).map_err(io::Error::other);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in text {
            encoder.add_itxt_chunk((*key).to_owned(), value.clone()).map_err(io::Error::other)?;
        }
        let mut writer = encoder.write_header().map_err(io::Error::other)?;
        writer.write_image_data(&self.rgba).map_err(io::Error::other)?;
        writer.finish().map_err(io::Error::other)
    }
}

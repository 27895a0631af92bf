//! Where pictures go: names, what must not be overwritten, and the files themselves.

use crate::args::Generate;
use mobilediffusion_model::{ModelError, Picture};
use std::fs;
use std::io;
use std::path::{Path, PathBuf, is_separator};

/// The files of a run, all of which can be written.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// Path and the seed of its picture, or the first seed of a sheet.
    files: Vec<(PathBuf, u64)>,
    /// Those that were written.
    written: usize,
    /// The pictures of a sheet, if that is what is wanted, until all are there.
    sheet: Option<Vec<Picture>>,
}

fn refuse(path: &Path, why: impl Into<String>) -> ModelError {
    ModelError::Output { path: path.to_owned(), source: io::Error::other(why.into()) }
}

impl Outputs {
    /// Names the files, and refuses what could not be written in the end before any work is done for it.
    pub(crate) fn new(args: &Generate) -> Result<Self, ModelError> {
        let files: Vec<(PathBuf, u64)> = match args.count {
            0 | 1 => vec![(args.output.clone(), args.seed)],
            _ if args.grid => vec![(args.output.clone(), args.seed)],
            count => (0..count as u64).map(|i| numbered(&args.output, args.seed.wrapping_add(i))).collect(),
        };
        for (path, _) in &files {
            check(path, args.force)?;
        }
        if let Some(folder) = &args.preview
            && (files.iter().any(|(path, _)| path == folder) || folder.exists() && !folder.is_dir())
        {
            return Err(refuse(folder, "expected a folder for previews, found a file"));
        }
        Ok(Self { files, written: 0, sheet: args.grid.then(Vec::new) })
    }

    /// Makes the folder for previews, once it is known that there is something to draw.
    pub(crate) fn make_folder(args: &Generate) -> Result<(), ModelError> {
        let Some(folder) = &args.preview else { return Ok(()) };
        fs::create_dir_all(folder).map_err(|error| refuse(folder, error.to_string()))
    }

    /// Writes a picture with `facts` in its file, or keeps it for the sheet.
    pub(crate) fn take(&mut self, picture: Picture, facts: &[(&'static str, String)]) -> Result<(), ModelError> {
        match &mut self.sheet {
            Some(pictures) => {
                pictures.push(picture);
                Ok(())
            }
            None => self.save(&picture, facts.to_vec()),
        }
    }

    /// Writes the sheet, once all pictures are there.
    pub(crate) fn finish(&mut self, facts: &[(&'static str, String)]) -> Result<(), ModelError> {
        let Some(pictures) = self.sheet.take() else { return Ok(()) };
        let mut facts = facts.to_vec();
        facts.push(("Count", pictures.len().to_string()));
        self.save(&Picture::sheet(&pictures), facts)
    }

    fn save(&mut self, picture: &Picture, mut facts: Vec<(&'static str, String)>) -> Result<(), ModelError> {
        let (path, seed) = &self.files[self.written];
        facts.push(("Seed", seed.to_string()));
        picture.save_png(path, &facts)?;
        self.written += 1;
        Ok(())
    }

    /// The files that were written, with their seeds.
    pub(crate) fn written(&self) -> &[(PathBuf, u64)] {
        &self.files[..self.written]
    }
}

/// `apple.png` becomes `apple-7.png`.
fn numbered(path: &Path, seed: u64) -> (PathBuf, u64) {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{seed}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    (path.with_file_name(name), seed)
}

/// Whether nothing stands in the way of a file.
pub(crate) fn check_file(path: &Path, force: bool) -> Result<(), ModelError> {
    Picture::check_place(path)?;
    if !force && path.exists() {
        return Err(refuse(path, "it is there already, `--force` overwrites it"));
    }
    Ok(())
}

fn check(path: &Path, force: bool) -> Result<(), ModelError> {
    let ends_open = path.as_os_str().as_encoded_bytes().last().is_some_and(|end| is_separator(char::from(*end)));
    let Some(name) = path.file_name().filter(|_| !ends_open) else {
        return Err(refuse(path, "it does not name a file"));
    };
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Err(refuse(path, "expected a name that ends in .png"));
    }
    check_file(path, force)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(refuse(path, format!("there is no folder {}", folder.display())));
    }
    let mut probe = name.to_owned();
    probe.push(format!(".{}.probe", std::process::id()));
    let probe = folder.join(probe);
    let tried = fs::File::create_new(&probe).and_then(|_| fs::remove_file(&probe));
    tried.map_err(|source| ModelError::Output { path: path.to_owned(), source })
}

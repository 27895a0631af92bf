//! Output files: their names, the checks before any work is done, and writing the pictures of `generate`.

use crate::args::Generate;
use crate::terminal::note;
use mobilediffusion_model::{ModelError, Picture, Settings, Sheet};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf, is_separator};

/// Output files of one run, checked to be writable.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// Path of each file with the seed of its picture; for a sheet, the first seed.
    files: Vec<(PathBuf, u64)>,
    /// Number of files written so far.
    written: usize,
    /// Largest number of pictures that are drawn at once.
    batch: usize,
    /// Sheet of all pictures; `None` if every picture gets its own file.
    sheet: Option<Sheet>,
    /// Whether files may be overwritten that other runs wrote.
    force: bool,
}

fn refuse(path: &Path, why: impl Into<String>) -> ModelError {
    ModelError::Output { path: path.to_owned(), error: io::Error::other(why.into()) }
}

impl Outputs {
    /// Names the files and checks that each can be written, so that no work is done for a file that cannot.
    pub(crate) fn new(args: &Generate) -> Result<Self, ModelError> {
        check_name(&args.output)?;
        let files: Vec<(PathBuf, u64)> = match args.count {
            0 | 1 => vec![(args.output.clone(), args.seed)],
            _ if args.grid => vec![(args.output.clone(), args.seed)],
            count => (0..count as u64).map(|i| numbered(&args.output, args.seed.wrapping_add(i))).collect(),
        };
        for (path, _) in &files {
            check_file(path, args.force)?;
            check_folder(path)?;
        }
        if let Some(folder) = &args.preview {
            check_preview_folder(folder, &files)?;
        }
        Ok(Self { files, written: 0, batch: args.batch.min(args.count), sheet: None, force: args.force })
    }

    /// Checks the files of previews, and makes their folder and the sheet, if they are asked for. Called once the
    /// request is known to be valid. `evaluations` is the number of evaluations that each picture takes.
    pub(crate) fn begin(&mut self, args: &Generate, settings: &Settings, evaluations: usize) -> Result<(), ModelError> {
        let folder = args.preview.as_deref().filter(|_| args.preview_every < evaluations);
        if let Some(folder) = folder {
            self.check_previews(args, folder, evaluations)?;
        }
        if args.grid {
            self.sheet = Some(Sheet::new(args.count, settings.width, settings.height)?);
        }
        match folder {
            Some(folder) => fs::create_dir_all(folder).map_err(|error| refuse(folder, error.to_string()))?,
            None if args.preview.is_some() => note("note: there are too few steps for a preview"),
            None => {}
        }
        Ok(())
    }

    /// Refuses previews that would be written over files that exist, or that the finished pictures would overwrite.
    fn check_previews(&self, args: &Generate, folder: &Path, evaluations: usize) -> Result<(), ModelError> {
        let pictures: HashSet<PathBuf> = self.files.iter().map(|(path, _)| resolved(path)).collect();
        let place = resolved(folder);
        for picture in 0..args.count {
            for step in (args.preview_every..evaluations).step_by(args.preview_every) {
                let name = preview_name(args.seed.wrapping_add(picture as u64), step);
                check_file(&folder.join(&name), self.force)?;
                if pictures.contains(&place.join(&name)) {
                    return Err(refuse(&folder.join(&name), "expected different files for a preview and a picture"));
                }
            }
        }
        Ok(())
    }

    /// Writes a picture with `facts` as text in its file, or copies it to the sheet. `batch` is the number of pictures that
    /// were drawn at once with it.
    pub(crate) fn take(
        &mut self,
        (picture, batch): (Picture, usize),
        facts: &[(&'static str, String)],
    ) -> Result<(), ModelError> {
        match &mut self.sheet {
            Some(sheet) => {
                sheet.place(&picture);
                Ok(())
            }
            None => {
                let mut facts = facts.to_vec();
                facts.extend((batch > 1).then(|| ("Batch", batch.to_string())));
                self.save(&picture, facts)
            }
        }
    }

    /// Writes the sheet, if there is one. Called after the last picture.
    pub(crate) fn finish(&mut self, facts: &[(&'static str, String)]) -> Result<(), ModelError> {
        let Some(sheet) = self.sheet.take() else { return Ok(()) };
        let mut facts = facts.to_vec();
        facts.extend((self.batch > 1).then(|| ("Batch", self.batch.to_string())));
        facts.push(("Count", sheet.placed().to_string()));
        self.save(&sheet.into_picture(), facts)
    }

    fn save(&mut self, picture: &Picture, mut facts: Vec<(&'static str, String)>) -> Result<(), ModelError> {
        let (path, seed) = &self.files[self.written];
        facts.push(("Seed", seed.to_string()));
        // Drawing may take long: another program may have written the file meanwhile.
        check_file(path, self.force)?;
        picture.save_png(path, &facts)?;
        self.written += 1;
        Ok(())
    }

    /// Returns the files written so far, with their seeds.
    pub(crate) fn written(&self) -> &[(PathBuf, u64)] {
        &self.files[..self.written]
    }
}

/// Returns `path` with the seed before its extension: `apple.png` becomes `apple-7.png`.
fn numbered(path: &Path, seed: u64) -> (PathBuf, u64) {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{seed}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    (path.with_file_name(name), seed)
}

/// Returns the name of the preview of a picture after a step.
pub(crate) fn preview_name(seed: u64, step: usize) -> String {
    format!("{seed}-{step:03}.png")
}

/// Returns the path by which the system knows a file or folder, which need not exist, nor need all folders above it.
fn resolved(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real = whole.ancestors().find_map(|there| Some((there.canonicalize().ok()?, whole.strip_prefix(there).ok()?)));
    let Some((mut found, rest)) = real else { return whole };
    for part in rest.components() {
        // Nothing of the rest exists, so none of it is a link.
        if part == Component::ParentDir {
            found.pop();
        } else {
            found.push(part);
        }
    }
    found
}

/// Refuses a folder for previews that is a file, or will be one or lie below one when the pictures are written.
fn check_preview_folder(folder: &Path, files: &[(PathBuf, u64)]) -> Result<(), ModelError> {
    let place = resolved(folder);
    if folder.exists() && !folder.is_dir() || files.iter().any(|(path, _)| resolved(path) == place) {
        return Err(refuse(folder, "expected a folder for previews, found a file"));
    }
    match files.iter().find(|(path, _)| place.starts_with(resolved(path))) {
        Some((path, _)) => {
            Err(refuse(folder, format!("expected a folder for previews, found one below the file {}", path.display())))
        }
        None => Ok(()),
    }
}

/// Checks that a file can be created at `path`, or overwritten if `force` is set.
pub(crate) fn check_file(path: &Path, force: bool) -> Result<(), ModelError> {
    Picture::check_place(path)?;
    if !force && path.exists() {
        return Err(refuse(path, "it is there already; `--force` overwrites it"));
    }
    Ok(())
}

/// Checks that `path` names a PNG file.
fn check_name(path: &Path) -> Result<(), ModelError> {
    let ends_open = path.as_os_str().as_encoded_bytes().last().is_some_and(|end| is_separator(char::from(*end)));
    if path.file_name().is_none() || ends_open {
        return Err(refuse(path, "expected the name of a file, found a folder"));
    }
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Err(refuse(path, "expected a name that ends in .png"));
    }
    Ok(())
}

/// Checks that a file of numbers can be written to `path`. It may exist, and may be a terminal or a pipe.
pub(crate) fn check_numbers(path: &Path) -> Result<(), ModelError> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(refuse(path, "expected the name of a file, found a folder")),
        Ok(there) if !there.is_file() => Ok(()),
        _ => check_folder(path),
    }
}

/// Checks that the folder of `path` exists, that files can be created in it, and that the system takes the name.
fn check_folder(path: &Path) -> Result<(), ModelError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        // Of a folder in a file, the system says the same: that the file is no folder.
        let file = folder.ancestors().find(|folder| folder.exists() && !folder.is_dir());
        let why = match file {
            Some(file) => format!("{} is not a folder", file.display()),
            None => format!("the folder {} does not exist", folder.display()),
        };
        return Err(refuse(path, why));
    }
    let named = match path.symlink_metadata() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let tried = named.and_then(|()| mobilediffusion_runtime::check_folder(folder));
    tried.map_err(|error| ModelError::Output { path: path.to_owned(), error })
}

//! Weights: memory-mapped safetensors files, and seeded synthetic weights of the same shapes.
//!
//! Opening a checkpoint reads its headers, and looks whether the files were written to their ends. Every value is read
//! once to look for NaNs and infinities before the first tensor is loaded, and again when its tensor is. Pages that were
//! read are released to the operating system, so that nothing stays in memory twice.

pub(crate) mod mapped;
mod synthetic;

pub use mobilediffusion_graph::WeightLoader;
use mobilediffusion_graph::{Flow, OnProgress};
pub use synthetic::{Synthetic, synthetic};

use crate::error::{ModelError, WeightProblem, shortened};
use crate::text_encoder::PREFIX;
use mapped::{Mapped, is_finite, size_of, widen};
use mobilediffusion_kernels::casefile::header::{self, UNFINISHED};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Place of a tensor in the files.
#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Names of the file of weights: transformers' first, then diffusers', then those that both give to files in f16.
pub(crate) const FILES: [&str; 4] = [
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
];

/// Number of bytes at the end of a file that are not all zero in a file of weights: many programs make a file of its
/// full size before they download it.
const TAIL: usize = 1 << 20;

/// Largest size of an index in bytes, that of the header of a safetensors file.
const LARGEST_INDEX: u64 = 100_000_000;

/// Weights of one part of the model.
///
/// A checkpoint is a directory with `model.safetensors`, or with `model.safetensors.index.json` and the shards that
/// it names. diffusers' base name `diffusion_pytorch_model` is accepted in place of `model`, and where there is neither, a
/// file with `.fp16` before `.safetensors`.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Mapped>,
    tensors: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Maps the files of a part's directory and reads their headers. The files must not change while the checkpoint
    /// exists.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read, [`ModelError::Json`] if the index does not parse, and
    /// [`ModelError::Safetensors`] if a file is truncated, ends in a MiB of zeros or is not a safetensors file, or if the
    /// index does not fit the shards.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        let Some(index) = FILES.map(|file| path.join(format!("{file}.index.json"))).into_iter().find(|p| p.is_file())
        else {
            let files = FILES.map(|file| path.join(file));
            let Some(file) = files.iter().find(|file| file.exists()) else {
                let message = format!("there is no such file, nor {}", FILES[1..].join(" or "));
                let error = io::Error::new(io::ErrorKind::NotFound, message);
                return Err(ModelError::Io { path: path.join(FILES[0]), error });
            };
            checkpoint.add_shard(file)?;
            return Ok(checkpoint);
        };
        let weight_map = read_index(&index)?;
        let shards: Vec<&String> = weight_map.values().collect::<BTreeSet<_>>().into_iter().collect();
        shards.iter().try_for_each(|shard| checkpoint.add_shard(&path.join(shard)))?;
        for (name, expected) in &weight_map {
            let found = checkpoint.tensors.get(&modern(name)).map(|entry| shards[entry.shard]);
            if found != Some(expected) {
                let found = found.map_or("in no shard".to_owned(), |shard| format!("in {}", shortened(shard)));
                let (name, expected) = (shortened(name), shortened(expected));
                return Err(invalid(&index, format!("{name}: expected in {expected}, found {found}")));
            }
        }
        Ok(checkpoint)
    }

    /// Maps one file and adds its tensors.
    fn add_shard(&mut self, path: &Path) -> Result<(), ModelError> {
        let map = Mapped::open(path).map_err(|error| ModelError::Io { path: path.to_owned(), error })?;
        let (data, metadata) = header::read(map.bytes()).map_err(|message| invalid(path, message))?;
        let tail = map.bytes().len().saturating_sub(TAIL)..map.bytes().len();
        if tail.len() == TAIL && map.read(tail, |bytes| bytes.iter().all(|byte| *byte == 0)) {
            return Err(invalid(path, format!("its last MiB is zero: {UNFINISHED}")));
        }
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = data + start..data + end;
            let entry = Entry { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            if self.tensors.insert(modern(&name), entry).is_some() {
                let names = metadata.offset_keys().into_iter().filter(|other| modern(other) == modern(&name));
                let names: Vec<String> = names.map(|name| shortened(&name)).collect();
                return Err(match names.as_slice() {
                    [_] => invalid(path, format!("{} is also in another shard", names[0])),
                    _ => invalid(path, format!("{} are names of the same tensor", names.join(" and "))),
                });
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// Returns the names of all tensors, sorted.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Converts some values of a tensor to f32, row by row as in the file.
    fn widened(&self, name: &str, entry: &Entry, part: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let size = size_of(entry.dtype).ok_or_else(|| self.problem(wrong_dtype(name, entry)))?;
        let start = entry.bytes.start;
        let bytes = start + part.start * size..start + part.end * size;
        Ok(self.shards[entry.shard].read(bytes, |bytes| widen(entry.dtype, bytes)))
    }

    /// Compares names, shapes and types with those that a network needs. `position_ids` buffers of old files are
    /// ignored.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every missing, misshapen, unsupported and extra tensor.
    pub fn verify(&self, expected: &[(String, Vec<usize>)]) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, shape) in expected {
            let Some(entry) = self.tensors.get(name) else {
                problems.push(WeightProblem::Missing { name: name.clone(), shape: shape.clone() });
                continue;
            };
            problems.extend(misshapen(name, shape, entry));
            if size_of(entry.dtype).is_none() {
                problems.push(wrong_dtype(name, entry));
            }
        }
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let extra = self.names().filter(|name| !known.contains(name) && !is_buffer(name));
        problems.extend(extra.map(|name| WeightProblem::Extra { name: name.to_owned() }));
        self.free_of(problems)
    }

    /// Returns the error that names all problems, if there are any.
    fn free_of(&self, problems: Vec<WeightProblem>) -> Result<(), ModelError> {
        if problems.is_empty() { Ok(()) } else { Err(ModelError::Weights { path: self.path.clone(), problems }) }
    }

    fn is_finite(&self, entry: &Entry) -> bool {
        // Pages that are read stay in memory until they are released, so a block must not be too large.
        const BLOCK: usize = 8 << 20;
        let mut starts = entry.bytes.clone().step_by(BLOCK);
        starts.all(|start| {
            let block = start..(start + BLOCK).min(entry.bytes.end);
            self.shards[entry.shard].read(block, |bytes| is_finite(entry.dtype, bytes))
        })
    }

    fn problem(&self, problem: WeightProblem) -> ModelError {
        ModelError::Weights { path: self.path.clone(), problems: vec![problem] }
    }
}

impl WeightLoader for Checkpoint {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        let missing = || WeightProblem::Missing { name: name.to_owned(), shape: shape.to_vec() };
        let entry = self.tensors.get(name).ok_or_else(|| self.problem(missing()))?;
        if let Some(problem) = misshapen(name, shape, entry) {
            return Err(self.problem(problem).into());
        }
        Ok(self.widened(name, entry, part)?)
    }

    /// Looks for NaNs and infinities. The error names every tensor that has any.
    fn check(&self, on_progress: OnProgress<'_>) -> Result<Flow, Box<dyn Error + Send + Sync>> {
        let floats = || self.tensors.iter().filter(|(_, entry)| size_of(entry.dtype).is_some());
        let (total, mut problems) = (floats().count(), Vec::new());
        for (done, (name, entry)) in floats().enumerate() {
            if on_progress(done, total) == Flow::Stop {
                return Ok(Flow::Stop);
            }
            problems.extend((!self.is_finite(entry)).then(|| WeightProblem::NotFinite { name: name.clone() }));
        }
        self.free_of(problems)?;
        Ok(on_progress(total, total))
    }

    fn too_large(&self, name: &str, found: f32) -> Box<dyn Error + Send + Sync> {
        self.problem(WeightProblem::TooLarge { name: name.to_owned(), found: found.to_string() }).into()
    }

    fn is_f16(&self) -> bool {
        let mut matrices = self.tensors.iter().filter(|(name, entry)| entry.shape.len() > 1 && !is_buffer(name));
        matrices.all(|(_, entry)| entry.dtype == Dtype::F16)
    }
}

/// Whether a tensor is one that old versions of transformers wrote and no network reads.
fn is_buffer(name: &str) -> bool {
    name.ends_with("position_ids")
}

/// Returns the name by which the networks know a tensor.
///
/// CLIP's text tower is stored both with and without the prefix `text_model.`, and diffusers before 0.15 used other
/// names for the projections of a VAE's attention.
fn modern(name: &str) -> String {
    if ["embeddings.", "encoder.layers.", "final_layer_norm."].iter().any(|module| name.starts_with(module)) {
        return format!("{PREFIX}.{name}");
    }
    let renamed = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    let parts = name.split_once(".mid_block.attentions.0.").and_then(|(module, rest)| {
        let (old, kind) = rest.split_once('.')?;
        let (_, new) = renamed.into_iter().find(|(name, _)| *name == old)?;
        Some(format!("{module}.mid_block.attentions.0.{new}.{kind}"))
    });
    parts.unwrap_or_else(|| name.to_owned())
}

/// Returns the problem of a tensor whose shape differs from the expected one.
fn misshapen(name: &str, expected: &[usize], entry: &Entry) -> Option<WeightProblem> {
    (entry.shape != expected).then(|| WeightProblem::Shape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: entry.shape.clone(),
    })
}

fn wrong_dtype(name: &str, entry: &Entry) -> WeightProblem {
    WeightProblem::DType { name: name.to_owned(), found: entry.dtype.to_string() }
}

/// Reads an index: tensor names and the file names of their shards.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = crate::json::read_within(path, LARGEST_INDEX)?;
    // A path that leads elsewhere could make us map any file of the machine.
    match index.weight_map.values().find(|shard| Path::new(shard).file_name() != Some(shard.as_ref())) {
        Some(shard) => {
            Err(invalid(path, format!("expected a plain file name for a shard, found {:?}", shortened(shard))))
        }
        None => Ok(index.weight_map),
    }
}

fn invalid(path: &Path, message: String) -> ModelError {
    ModelError::Safetensors { path: path.to_owned(), message }
}

#[cfg(test)]
mod tests;

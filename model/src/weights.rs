//! Weights: memory-mapped safetensors files, and seeded stand-ins of the same shapes.
//!
//! Opening a checkpoint reads its headers only; a tensor is read from the file when it is loaded, one at a time.

use crate::error::{ModelError, WeightProblem};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a network's weights come from.
pub trait WeightSource: Send + Sync {
    /// The tensor `name` as f32, row by row as in the file, which must have this shape.
    ///
    /// # Errors
    /// [`ModelError::Weights`] if it is missing, has another shape or an unreadable type, or is not finite.
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError>;
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The weights of one part of the model: a directory with `model.safetensors`, or with `model.safetensors.index.json`
/// and the shards it names.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Maps the files of a part's directory and reads their headers. The files must not change while this lives.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read, [`ModelError::Json`] if the index cannot be,
    /// [`ModelError::Safetensors`] if a file is truncated or garbage, or if the index does not fit the shards.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        let index = path.join("model.safetensors.index.json");
        if !index.is_file() {
            checkpoint.add_shard(&path.join("model.safetensors"))?;
            return Ok(checkpoint);
        }
        let weight_map = read_index(&index)?;
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            checkpoint.add_shard(&path.join(shard))?;
        }
        match weight_map.keys().find(|name| !checkpoint.tensors.contains_key(*name)) {
            Some(name) => Err(invalid(&index, format!("no shard holds {name}"))),
            None => Ok(checkpoint),
        }
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), ModelError> {
        let map = map_file(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| invalid(path, e.to_string()))?;
        for (name, info) in metadata.tensors() {
            // Offsets count from behind the eight bytes of the header's length and the header.
            let (start, end) = info.data_offsets;
            let bytes = header + 8 + start..header + 8 + end;
            if map.get(bytes.clone()).is_none() {
                return Err(invalid(path, format!("{name} reaches beyond the end of the file")));
            }
            let entry = Entry { shard: self.shards.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(invalid(path, format!("{name} is also in another shard")));
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// The same checkpoint, whose names all begin with `prefix`: where no name in the file does, it is put in front.
    /// CLIP's text tower is stored both with and without `text_model.`.
    pub fn with_optional_prefix(mut self, prefix: &str) -> Self {
        if !self.tensors.keys().any(|name| name.starts_with(prefix)) {
            self.tensors = self.tensors.into_iter().map(|(name, entry)| (format!("{prefix}{name}"), entry)).collect();
        }
        self
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, as in the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Stored type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// Reads one tensor and widens it to f32, row by row as in the file.
    ///
    /// # Errors
    /// [`ModelError::Weights`] if the tensor is missing, of a type other than f32, f16 and bf16, or not finite.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(self.problem(WeightProblem::Missing { name: name.to_owned(), shape: None }));
        };
        let bytes = &self.shards[entry.shard][entry.bytes.clone()];
        let Some(values) = widen(entry.dtype, bytes) else {
            return Err(self.problem(wrong_dtype(name, entry)));
        };
        if !values.par_iter().all(|value| value.is_finite()) {
            return Err(self.problem(WeightProblem::NotFinite { name: name.to_owned() }));
        }
        Ok(values)
    }

    /// Compares names, shapes and types with those a network needs. `position_ids` buffers of old files are ignored.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every missing, misshapen, unreadable and extra tensor.
    pub fn verify(&self, expected: &[(String, Vec<usize>)]) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, shape) in expected {
            let Some(entry) = self.tensors.get(name) else {
                problems.push(WeightProblem::Missing { name: name.clone(), shape: Some(shape.clone()) });
                continue;
            };
            problems.extend(misshapen(name, shape, entry));
            if !is_readable(entry.dtype) {
                problems.push(wrong_dtype(name, entry));
            }
        }
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let extra = self.names().filter(|name| !known.contains(name) && !name.ends_with("position_ids"));
        problems.extend(extra.map(|name| WeightProblem::Extra { name: name.to_owned() }));
        if problems.is_empty() { Ok(()) } else { Err(ModelError::Weights { path: self.path.clone(), problems }) }
    }

    fn problem(&self, problem: WeightProblem) -> ModelError {
        ModelError::Weights { path: self.path.clone(), problems: vec![problem] }
    }
}

impl WeightSource for Checkpoint {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        match self.tensors.get(name) {
            None => Err(self.problem(WeightProblem::Missing { name: name.to_owned(), shape: Some(shape.to_vec()) })),
            Some(entry) => misshapen(name, shape, entry).map_or_else(|| self.load_f32(name), |p| Err(self.problem(p))),
        }
    }
}

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

fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Values converted at a time: small enough to stay in the cache, large enough to be worth a thread's while.
const CHUNK: usize = 1 << 16;

/// Little-endian floats of a stored type as f32; none if the type is not read. The bytes need not be aligned.
fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let size = if dtype == Dtype::F32 { 4 } else { 2 };
    let mut values = vec![0.0_f32; bytes.len() / size];
    let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size));
    let words = |bytes: &[u8]| -> Vec<u16> { bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect() };
    match dtype {
        Dtype::F32 => chunks.for_each(|(values, bytes)| {
            for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(bytes);
            }
        }),
        Dtype::F16 => chunks.for_each(|(values, bytes)| {
            bytemuck::cast_slice::<u16, f16>(&words(bytes)).convert_to_f32_slice(values);
        }),
        Dtype::BF16 => chunks.for_each(|(values, bytes)| {
            bytemuck::cast_slice::<u16, bf16>(&words(bytes)).convert_to_f32_slice(values);
        }),
        _ => return None,
    }
    Some(values)
}

#[expect(unsafe_code, reason = "mapping a file is unsafe; weights are far too large to be read whole")]
fn map_file(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is private and never written to. That nobody truncates or rewrites the file meanwhile is what
    // every user of a mapped file has to assume; `Checkpoint::open` says so. Its content is checked before use.
    unsafe { Mmap::map(&file) }
}

/// Tensor name -> file name of its shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = crate::json::read(path)?;
    // A name that leads elsewhere could make us map any file of the machine.
    match index.weight_map.values().find(|shard| Path::new(shard).file_name() != Some(shard.as_ref())) {
        Some(shard) => Err(invalid(path, format!("expected a plain file name for a shard, found {shard:?}"))),
        None => Ok(index.weight_map),
    }
}

fn invalid(path: &Path, message: String) -> ModelError {
    ModelError::Safetensors { path: path.to_owned(), message }
}

/// Weights without a file: seeded, the same on every machine, for benches and tests of full-size networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// Chooses the weights; every name gets its own sequence.
    pub seed: u64,
}

impl WeightSource for Synthetic {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        Ok(synthetic(name, shape, self.seed))
    }
}

/// Weights that keep activations sane: gain 1 per fan-in (uniform in `±sqrt(3 / fan_in)`, fan-in the product of all
/// sizes but the first), norms around 1, biases small. Deterministic by seed and name.
pub fn synthetic(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let key = name.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte)));
    let len = shape.iter().product();
    let normal = |mean: f32, deviation: f32| -> Vec<f32> {
        crate::noise::Noise::new(key).latent(len).into_iter().map(|z| mean + deviation * z).collect()
    };
    if name.ends_with(".bias") {
        return normal(0.0, 0.02);
    }
    if is_norm(name) {
        return normal(1.0, 0.1);
    }
    let fan_in: usize = shape.iter().skip(1).product();
    uniform(key, len, (3.0 / fan_in.max(1) as f32).sqrt())
}

/// Whether this is the scale of a norm: `norm1.weight`, `conv_norm_out.weight`, `final_layer_norm.weight`.
fn is_norm(name: &str) -> bool {
    name.rsplit('.').nth(1).is_some_and(|module| module.contains("norm"))
}

/// `len` values uniform in `±bound`, each a hash of its index: independent of how threads share the work.
fn uniform(key: u64, len: usize, bound: f32) -> Vec<f32> {
    let (k0, k1) = (key as u32, (key >> 32) as u32);
    // lowbias32 (Chris Wellons), with half of the key mixed in between so that no two tensors share a sequence.
    let hash = |index: u32| {
        let x = index.wrapping_add(k0);
        let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d) ^ k1;
        let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
        x ^ x >> 16
    };
    let scale = bound * (-31.0_f32).exp2();
    let mut values = vec![0.0; len];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            // Tensors have fewer than 2^32 elements; a longer one would repeat itself.
            *value = hash((chunk * CHUNK + i) as u32) as i32 as f32 * scale;
        }
    });
    values
}

/// One step of splitmix64: spreads every bit of the state over the whole.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests;

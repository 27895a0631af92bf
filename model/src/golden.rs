//! Comparison of a network with golden files: the outputs of another implementation, block by block.
//!
//! A golden folder holds `config.json`, the weights, and cases. A case is a safetensors file of float32 tensors (token
//! ids are int32) in channels-last order: `input.NAME`, `output.BLOCK` for each block, and `output`. The configuration
//! and the names of the inputs tell which network it is. `reference/README.md` describes how they are written.

use crate::config::{DecoderConfig, NetworkConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use crate::decoder::decoder;
use crate::error::{ModelError, shortened};
use crate::text_encoder::text_encoder;
use crate::unet::unet;
use crate::vae;
use crate::weights::mapped::Mapped;
use crate::weights::{self, Checkpoint};
use mobilediffusion_graph::{Device, Graph, Recording, Session, Tensor, Weights};
use mobilediffusion_kernels::casefile::header;
use mobilediffusion_kernels::check::relative_l2;
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{DType, FloatType};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// Distance of one output from its golden values.
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    /// Name of the tensor: `output`, or `output.` and the block's name.
    pub output: String,
    /// Relative difference in the L2 norm, see [`relative_l2`].
    pub relative_l2: f64,
}

/// Returns the largest relative L2 error of a block that roundings explain, by how a device stores floats: 1e-4 in 32
/// bits and 1e-2 in 16. The golden files of this repository are held to it on every device. The networks of full size
/// are about a tenth of it away from the twin (`reference/README.md`).
pub fn tolerance(device: &Device) -> f64 {
    if device.storage().floats == FloatType::F32 { 1e-4 } else { 1e-2 }
}

/// Runs the network of `folder` on a case and compares every output of the case.
///
/// `case` is the name of a file within `folder`, with or without `.safetensors`; `weights` is the folder of the weights,
/// often `folder` itself.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Json`] and [`ModelError::Safetensors`] if a file cannot be read,
/// [`ModelError::Config`] if the configuration is not valid,
/// [`ModelError::Weights`] if the weights are not the network's, and [`ModelError::Graph`] if the case does not fit
/// the network.
pub fn compare(folder: &Path, case: &str, weights: &Path, device: Device) -> Result<Vec<Distance>, ModelError> {
    let case = Case::open(&path_of(folder, case)?)?;
    let config = folder.join("config.json");
    let mut g = Graph::with_taps();
    let (y, needed) = case.build(&mut g, &config)?;
    g.output("output", &y);
    let checkpoint = Checkpoint::open(weights)?;
    checkpoint.verify(&needed)?;
    let weights = Weights::new(device, Box::new(checkpoint));
    let recording = Recording::new(g);
    case.check_outputs(&recording)?;
    let mut session = Session::new(recording, &weights)?;
    for name in case.names("input.") {
        session.write(&name, &case.values(&format!("input.{name}"))?)?;
    }
    session.run()?;
    let mut all = Vec::new();
    for name in case.names("output") {
        let block = name.strip_prefix('.').unwrap_or("output");
        let mut want = case.values(&format!("output{name}"))?;
        if block == "time_embedding" {
            // Every block begins with the silu of the embedding, so the graph computes that and not the embedding
            // itself.
            want.iter_mut().for_each(|v| *v /= 1.0 + (-*v).exp());
        }
        let relative_l2 = relative_l2(&session.read(block)?, &want);
        all.push(Distance { output: format!("output{name}"), relative_l2 });
    }
    Ok(all)
}

/// Returns the path of a case.
fn path_of(folder: &Path, case: &str) -> Result<PathBuf, ModelError> {
    let path = folder.join(case);
    if let Some(there) =
        [path.clone(), folder.join(format!("{case}.safetensors"))].into_iter().find(|p| p.exists() && !p.is_dir())
    {
        return Ok(there);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| ModelError::Io { path: folder.to_owned(), error })?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let cases = names.filter(|name| !weights::FILES.contains(&name.as_str()));
    let mut cases: Vec<String> = cases.filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned())).collect();
    cases.sort();
    let others = if cases.is_empty() { "nor any other".to_owned() } else { format!("but {}", cases.join(", ")) };
    let error = io::Error::new(io::ErrorKind::NotFound, format!("there is no such case in the folder, {others}"));
    Err(ModelError::Io { path, error })
}

/// Tensors of one evaluation of a network.
struct Case {
    path: PathBuf,
    /// Mapped, since the blocks of a large network have some GiB of values.
    file: Mapped,
    /// Position of the data, from which the offsets of tensors count.
    data: usize,
    header: Metadata,
}

impl Case {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let path = path.to_owned();
        match Mapped::open(&path) {
            Err(error) => Err(ModelError::Io { path, error }),
            Ok(file) => match header::read(file.bytes()) {
                Err(message) => Err(ModelError::Safetensors { path, message }),
                Ok((data, header)) => Ok(Self { path, file, data, header }),
            },
        }
    }

    fn wrong(&self, message: String) -> ModelError {
        ModelError::Safetensors { path: self.path.clone(), message }
    }

    /// Returns the remainders of the names that begin with `prefix`, sorted.
    fn names(&self, prefix: &str) -> Vec<String> {
        let all = self.header.offset_keys();
        let mut names: Vec<String> =
            all.iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Returns the description of a tensor, whose elements have 32 bits: token ids are whole numbers, others floats.
    fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        let info = self.header.info(name).ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        let (fits, expected) = match name {
            "input.ids" => (matches!(info.dtype, Dtype::I32 | Dtype::U32), "I32 or U32"),
            _ => (info.dtype == Dtype::F32, "F32"),
        };
        match fits {
            true => Ok(info),
            false => Err(self.wrong(format!("{}: expected {expected}, found {}", shortened(name), info.dtype))),
        }
    }

    /// Returns the values of a tensor. The bits of token ids are passed on unchanged.
    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (first, last) = self.info(name)?.data_offsets;
        let widen = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(self.file.read(self.data + first..self.data + last, widen))
    }

    /// Compares the shapes of outputs with those of the network's tensors, in which all axes but the last may be one.
    /// Names are checked when the values are read.
    fn check_outputs(&self, recording: &Recording) -> Result<(), ModelError> {
        let size = |shape: &[usize]| (elements(shape), shape.last().copied());
        for name in self.names("output") {
            let block = name.strip_prefix('.').unwrap_or("output");
            let Some((_, tensor)) = recording.outputs().iter().find(|(output, _)| output == block) else { continue };
            let (expected, found) = (&recording.tensors()[*tensor].shape, &self.info(&format!("output{name}"))?.shape);
            if size(expected) != size(found) {
                let (name, found) = (shortened(&name), shortened(&format!("{found:?}")));
                return Err(self.wrong(format!("output{name}: expected shape {expected:?}, found {found}")));
            }
        }
        Ok(())
    }

    /// Adds the network that `config` and the inputs name. Returns its output, and the weights in the checkpoint of its
    /// folder: for a VAE those of both halves.
    fn build(&self, g: &mut Graph, config: &Path) -> Result<(Tensor, Vec<Weight>), ModelError> {
        let input = |g: &mut Graph, name: &str, dtype: DType| {
            Ok::<_, ModelError>(g.input(name, self.info(&format!("input.{name}"))?.shape.clone(), dtype))
        };
        let inputs = self.names("input.");
        let has = |name: &str| inputs.iter().any(|input| input == name);
        let y = match crate::json::read::<Kind>(config)?.class_name.as_str() {
            "AutoencoderKL" => {
                let config = VaeConfig::open(config)?;
                let y = if has("image") {
                    let image = input(g, "image", DType::F32)?;
                    let moments = vae::encoder(g, &config, &image)?;
                    vae::latent(g, &config, &moments)?
                } else {
                    let latent = input(g, "latent", DType::F32)?;
                    vae::decoder(g, &config, &latent)?
                };
                return Ok((y, vae::weights(&config)?));
            }
            "LightDecoder" => {
                let latent = input(g, "latent", DType::F32)?;
                decoder(g, &DecoderConfig::open(config)?, &latent)?
            }
            "" if has("ids") => {
                let ids = input(g, "ids", DType::U32)?;
                text_encoder(g, &TextEncoderConfig::open(config)?, &ids)?
            }
            _ => {
                let config = UnetConfig::open(config)?;
                let latent = input(g, "latent", DType::F32)?;
                let timestep = input(g, "timestep", DType::F32)?;
                let context = input(g, "context", DType::Elem)?;
                unet(g, &config, &latent, &timestep, &context)?
            }
        };
        Ok((y, g.weights()))
    }
}

/// Name and shape of a weight.
type Weight = (String, Vec<usize>);

/// Class name that a configuration file states.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "_class_name", default)]
    class_name: String,
}

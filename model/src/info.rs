//! Parameters and multiply-accumulates of each block, counted from the graphs that run.

pub mod paper;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Network, Shape};
use crate::text_encoder::PREFIX;
use mobilediffusion_graph::{Graph, Recording};
use mobilediffusion_kernels::kernel::elements;
use std::fmt;

/// Counts of one block of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Path of the block, as in the names of its weights.
    pub block: String,
    /// Number of parameters.
    pub params: u64,
    /// Number of multiply-accumulates of one run for one image.
    pub macs: u64,
}

/// Counts of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the network: `text encoder`, `unet`, `decoder`, `vae encoder` or `vae decoder`.
    pub name: &'static str,
    /// Blocks in the order in which they run.
    pub rows: Vec<Row>,
}

impl Part {
    fn new(name: &'static str, graph: Graph) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let weights = graph.weights();
        let recording = Recording::new(graph);
        let mut add = |path: &str, params: u64, macs: u64| {
            let block = block_of(path);
            match rows.iter_mut().find(|row| row.block == block) {
                Some(row) => (row.params, row.macs) = (row.params + params, row.macs.saturating_add(macs)),
                None => rows.push(Row { block, params, macs }),
            }
        };
        recording.nodes().iter().for_each(|node| add(&node.path, 0, node.kernel.cost().macs));
        weights.iter().for_each(|(name, shape)| add(name, elements(shape) as u64, 0));
        rows.retain(|row| row.params > 0);
        Self { name, rows }
    }

    /// Returns the number of parameters of all blocks.
    pub fn params(&self) -> u64 {
        self.rows.iter().map(|row| row.params).sum()
    }

    /// Returns the number of multiply-accumulates of all blocks.
    pub fn macs(&self) -> u64 {
        self.rows.iter().fold(0, |all, row| all.saturating_add(row.macs))
    }
}

/// Returns the block that a path belongs to: the path up to the last number among its first four parts, or its first
/// part if there is no number.
fn block_of(path: &str) -> String {
    let prefix = ["decoder.", "encoder."].into_iter().find(|prefix| path.starts_with(prefix)).unwrap_or_default();
    let rest = &path[prefix.len()..];
    let parts: Vec<&str> = rest.split('.').collect();
    let numbered = parts.iter().take(4).rposition(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let unnumbered = if parts[0] == PREFIX { 2 } else { 1 };
    format!("{prefix}{}", parts[..numbered.map_or(unnumbered, |last| last + 1)].join("."))
}

/// Counts of all networks of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Text encoder, UNet, light decoder and full VAE, as far as the model has them.
    pub parts: Vec<Part>,
}

/// Counts a model for one square picture of `image_size` pixels a side and one evaluation of the UNet.
///
/// # Errors
/// [`ModelError`] if the model cannot draw this size or the configuration is not valid.
pub fn summary(config: &ModelConfig, image_size: usize) -> Result<Info, ModelError> {
    config.validate()?;
    let sampler = config.defaults.sampler;
    let shape = Shape::of(config, image_size, image_size, sampler)?;
    let part = |network: Network| Ok(Part::new(network.title(), network.graph(config, &shape)?));
    let parts = Network::of(config, sampler).into_iter().map(part).collect::<Result<_, ModelError>>()?;
    Ok(Info { parts })
}

/// Formats `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            writeln!(f, "{:44} {:>15} {:>12}", part.name, "parameters", "GMAC")?;
            let mut line = |block: &str, params: u64, macs: u64| {
                writeln!(f, "  {block:42} {:>15} {:>12.3}", grouped(params), macs as f64 / 1e9)
            };
            for row in &part.rows {
                line(&row.block, row.params, row.macs)?;
            }
            line("total", part.params(), part.macs())?;
            writeln!(f)?;
        }
        let params: u64 = self.parts.iter().map(Part::params).sum();
        write!(f, "{:44} {:>15}", "all", grouped(params))
    }
}

//! Table 1 of the paper (arXiv 2311.16567): its numbers beside those of the graphs that run.
//!
//! The paper's "GFLOPs" are multiply-accumulates of one evaluation of the UNet at a latent of 64x64 (512x512 pixels).

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::networks::{Shape, denoise_graph};
use mobilediffusion_graph::{Graph, Recording};
use mobilediffusion_kernels::Attention;
use mobilediffusion_kernels::kernel::elements;
use std::collections::BTreeSet;
use std::fmt;

/// Row of the table. Numbers that are unknown are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Name of the model; quoted numbers are marked as such.
    pub name: String,
    /// Number of residual blocks.
    pub blocks: Option<usize>,
    /// Number of self-attention layers.
    pub self_attention: Option<usize>,
    /// Number of cross-attention layers.
    pub cross_attention: Option<usize>,
    /// Number of parameters in millions.
    pub params: f64,
    /// Number of multiply-accumulates in billions.
    pub macs: f64,
}

impl Row {
    /// Counts the graph of a UNet.
    pub fn counted(name: &str, graph: Graph) -> Self {
        let layers = |end: &str| {
            graph.nodes().iter().filter(|n| n.kernel.name() == Attention::NAME && n.path.ends_with(end)).count()
        };
        let block = |path: &str| {
            let (level, rest) = path.split_once("resnets.")?;
            Some(format!("{level}{}", rest.split('.').next()?))
        };
        let blocks: BTreeSet<String> = graph.nodes().iter().filter_map(|node| block(&node.path)).collect();
        let (self_attention, cross_attention) = (layers("attn1"), layers("attn2"));
        let params: usize = graph.weights().iter().map(|(_, shape)| elements(shape)).sum();
        Self {
            name: name.to_owned(),
            blocks: Some(blocks.len()),
            self_attention: Some(self_attention),
            cross_attention: Some(cross_attention),
            params: params as f64 / 1e6,
            macs: Recording::new(graph).macs() as f64 / 1e9,
        }
    }

    /// Returns a row with the paper's numbers.
    fn quoted(name: &str, blocks: Option<usize>, (params, macs): (f64, f64)) -> Self {
        Self { name: format!("{name} (quoted)"), blocks, params, macs, ..Self::default() }
    }
}

/// Rows of MobileDiffusion and Stable Diffusion 1.5, counted and quoted, followed by models that are quoted only.
#[derive(Clone, Debug, PartialEq)]
pub struct Table(pub Vec<Row>);

/// Counts the presets `mobilediffusion` and `sd15`, and quotes the other rows.
///
/// # Errors
/// None in practice: the presets are built in and valid.
pub fn table() -> Result<Table, ModelError> {
    let counted = |preset: &str| -> Result<Row, ModelError> {
        let config = ModelConfig::preset(preset)?;
        let shape = Shape::of(&config, 512, 512, config.defaults.sampler)?;
        Ok(Row::counted(preset, denoise_graph(&config, &shape)?))
    };
    let mobilediffusion = Row {
        self_attention: Some(15),
        cross_attention: Some(18),
        ..Row::quoted("MobileDiffusion", Some(11), (386.0, 182.0))
    };
    Ok(Table(vec![
        counted("mobilediffusion")?,
        mobilediffusion,
        counted("sd15")?,
        Row::quoted("Stable Diffusion 1.5", Some(22), (862.0, 392.0)),
        Row::quoted("SDXL", Some(17), (2600.0, 710.0)),
        Row::quoted("DiT-XL/2", None, (675.0, 525.0)),
    ]))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = "table 1 of the paper, UNets at 64x64";
        write!(f, "{head:37} {:>6} {:>4} {:>4} {:>12} {:>8}", "blocks", "SA", "CA", "M params", "GMAC")?;
        let number = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        for row in &self.0 {
            let [blocks, own, cross] = [row.blocks, row.self_attention, row.cross_attention].map(number);
            let (params, macs) = (row.params, row.macs);
            write!(f, "\n  {:35} {blocks:>6} {own:>4} {cross:>4} {params:>12.2} {macs:>8.2}", row.name)?;
        }
        Ok(())
    }
}

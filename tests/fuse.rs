//! Fusion: which steps are fused into which, and that results do not change.

#[path = "fuse/apart.rs"]
mod apart;
#[path = "fuse/stack.rs"]
mod stack;

use mobilediffusion_graph::{
    Conv, Device, Fusion, Graph, GraphError, GroupNorm, Linear, Node, Origin, Recording, Session, WeightLoader, Weights,
};
use mobilediffusion_kernels::check::relative_l2;
use mobilediffusion_kernels::kernel::{MAX_BUFFERS, elements};
use mobilediffusion_kernels::{Access, Activation, Add, DType, Storage};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, text_graph};
use mobilediffusion_model::unet::unet;
use mobilediffusion_runtime::{Gpu, Select};
use mobilediffusion_tests::made_up::values;
use mobilediffusion_tests::{adapters, say};
use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

/// Largest relative L2 error of a network in f32 against the references in f64.
const BOUND: f64 = 2e-5;

/// Loader of weights that depend on their names alone; those of norms are about one.
struct MadeUp;

impl WeightLoader for MadeUp {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        let terms = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let mean = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok(values(name, elements(shape))[part].iter().map(|v| mean + v / terms.sqrt()).collect())
    }
}

fn cpu_and_first_gpu() -> Vec<Device> {
    let gpu = |index: usize| pollster::block_on(Gpu::open(&Select::Named(index.to_string()))).expect("it is listed");
    let first = (!adapters().is_empty()).then(|| Device::Gpu(Arc::new(gpu(0)), Storage::F32));
    [Some(Device::CPU), first].into_iter().flatten().collect()
}

/// Computes every output of a recording with the kernels' references, step by step in f64.
fn by_reference(recording: &Recording) -> Vec<(String, Vec<f64>)> {
    let mut held: Vec<Option<Vec<f64>>> = recording.tensors().iter().map(|_| None).collect();
    for (tensor, info) in held.iter_mut().zip(recording.tensors()) {
        let made = match &info.origin {
            Origin::Input(_) => values(&info.name, elements(&info.shape)),
            Origin::Weight(sources) => MadeUp.load(&info.name, &sources[0].shape).expect("made up"),
            Origin::Constant(values) => values.clone(),
            Origin::Step(_) | Origin::Part(_) => continue,
        };
        *tensor = Some(made.iter().map(|v| f64::from(*v)).collect());
    }
    for node in recording.nodes() {
        let operands = node.kernel.operands();
        let pairs = || operands.iter().zip(&node.operands);
        let read = |(_, tensor): (_, &Option<usize>)| tensor.map_or(&[][..], |t| held[t].as_deref().expect("written"));
        let inputs: Vec<&[f64]> = pairs().filter(|(o, _)| o.access == Access::Read).map(read).collect();
        let outputs = node.kernel.reference(&inputs);
        for ((_, tensor), output) in pairs().filter(|(o, _)| o.access == Access::Write).zip(outputs) {
            tensor.iter().for_each(|t| held[*t] = Some(output.clone()));
        }
    }
    let output = |(name, tensor): &(String, usize)| (name.clone(), held[*tensor].clone().expect("written"));
    recording.outputs().iter().map(output).collect()
}

/// Computes every output of a recording on a device.
fn run(recording: Recording, device: Device) -> Vec<(String, Vec<f32>)> {
    let names: Vec<String> = recording.outputs().iter().map(|(name, _)| name.clone()).collect();
    let input = |t: &mobilediffusion_graph::TensorInfo| matches!(t.origin, Origin::Input(_)).then(|| t.clone());
    let inputs: Vec<_> = recording.tensors().iter().filter_map(input).collect();
    let weights = Weights::new(device, Box::new(MadeUp));
    let mut session = Session::new(recording, &weights).expect("the session is made");
    for info in inputs {
        session.write(&info.name, &values(&info.name, elements(&info.shape))).expect("the input is there");
    }
    session.run().expect("it runs");
    names.into_iter().map(|name| (name.clone(), session.read(&name).expect("the output is there"))).collect()
}

/// Runs a graph with and without fusion on every device, and compares both with the references on the unfused graph.
/// Returns the fused recording.
fn check(build: impl Fn() -> Graph) -> Recording {
    let plain = Recording::with_fusion(build(), Fusion::None);
    assert!(plain.fused().is_empty(), "nothing is folded unless it is allowed");
    let want = by_reference(&plain);
    for device in cpu_and_first_gpu() {
        for (fusion, name) in [(Fusion::None, "plain"), (Fusion::All, "fused")] {
            let got = run(Recording::with_fusion(build(), fusion), device.clone());
            assert_eq!(got.len(), want.len(), "outputs, {name}");
            for ((output, got), (_, want)) in got.iter().zip(&want) {
                let error = relative_l2(got, want);
                assert!(want.iter().any(|value| *value != 0.0), "`{output}`: zeros alone prove nothing");
                assert!(error <= BOUND, "{device:?}, {name}, `{output}`: relative L2 {error:e}");
            }
        }
    }
    Recording::new(build())
}

/// Builds a separable block of the UNet: depthwise, norm, pointwise, silu, pointwise, residual. With `joined` its input
/// is a concatenation.
fn separable(joined: bool) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let x = g.input("x", [2, 8, 16, 36], DType::Elem);
    let shift = g.input("shift", [2, if joined { 64 } else { 36 }], DType::Elem);
    let x = if joined {
        let skip = g.input("skip", [2, 8, 16, 28], DType::Elem);
        g.concat(&x, &skip)?
    } else {
        x
    };
    let h = g.depthwise_conv2d(&x, "dwconv", 1, Some(&shift))?;
    let h = g.group_norm(&h, "norm", GroupNorm { groups: 4, eps: 1e-5 }, Activation::None)?;
    let layer = Linear { bias: true, pointwise: true, ..Linear::default() };
    let h = g.linear(&h, "pwconv1", Linear { cols: 96, activation: Activation::Silu, ..layer })?;
    let residual = if joined { g.linear(&x, "conv_shortcut", Linear { cols: 36, ..layer })? } else { x };
    let y = g.linear(&h, "pwconv2", Linear { cols: 36, residual: Some(&residual), ..layer })?;
    g.output("y", &y);
    Ok(g)
}

fn steps(recording: &Recording) -> Vec<String> {
    let step = |(number, node): (usize, &Node)| {
        let mut folded = recording.folded(number);
        folded.sort_unstable();
        format!("{}: {}", node.kernel.name(), folded.join(", "))
    };
    recording.nodes().iter().enumerate().map(step).collect()
}

#[test]
fn a_separable_block_has_nothing_left_to_fold() {
    let recording = check(|| separable(false).expect("it builds"));
    let want = [
        "depthwise_conv2d: moments",
        "group_norm_scale: statistics",
        "linear: activation, group norm",
        "linear: residual",
    ];
    assert_eq!(steps(&recording), want, "{recording}");
    let recording = check(|| separable(true).expect("it builds"));
    let want = [
        "depthwise_conv2d: concat, moments",
        "group_norm_scale: statistics",
        "linear: activation, group norm",
        "linear: concat",
        "linear: residual",
    ];
    assert_eq!(steps(&recording), want, "{recording}");
}

#[test]
fn a_step_takes_nothing_in_that_every_device_could_not_bind() {
    let recording = check(|| {
        let mut g = Graph::new();
        let x = g.input("x", [1, 40, 64], DType::Elem);
        let layer = Linear { cols: 64, bias: true, ..Linear::default() };
        let normed = g.layer_norm(&x, "norm1", 1e-5).expect("it builds");
        let h = g.linear(&normed, "linear1", Linear { residual: Some(&x), ..layer }).expect("it builds");
        let normed = g.layer_norm(&h, "norm2", 1e-5).expect("it builds");
        let y = g.linear(&normed, "linear2", layer).expect("it builds");
        g.output("y", &y);
        g
    });
    // The moments of the first product's rows would be its ninth buffer.
    let want = ["row_moments: ", "linear: layer norm, residual", "row_moments: ", "linear: layer norm"];
    assert_eq!(steps(&recording), want, "{recording}");
    let most = recording.nodes().iter().map(|node| node.present().count()).max();
    assert_eq!(most, Some(MAX_BUFFERS), "{recording}");
}

/// A product of a text is computed once for it. With the sum of every run folded in it would be computed in every run.
#[test]
fn what_is_computed_once_takes_in_nothing_of_every_run() {
    let recording = check(|| {
        let mut g = Graph::new();
        let x = g.input_of_every_run("x", [1, 6, 16], DType::Elem);
        let text = g.input("text", [1, 6, 12], DType::Elem);
        let layer = Linear { cols: 16, residual: Some(&x), ..Linear::default() };
        let y = g.linear(&text, "proj", layer).expect("it builds");
        g.output("y", &y);
        g
    });
    assert_eq!((steps(&recording), recording.masks()), (vec!["linear: ".into(), "add: ".into()], &[0b10, 0b11][..]));
}

/// The activation moves with its product to the place of the sum, behind a step that has nothing to do with it.
#[test]
fn what_was_folded_moves_with_its_step() {
    let recording = check(|| {
        let mut g = Graph::new();
        let x = g.input("x", [1, 6, 16], DType::Elem);
        let layer = Linear { cols: 16, activation: Activation::Silu, ..Linear::default() };
        let first = g.linear(&x, "first", layer).expect("it builds");
        let norm = g.layer_norm(&x, "between", 1e-5).expect("it builds");
        let y = g.step("sum", Add { rows: 6, c: 16 }, &[Some(&first), Some(&x)]).expect("it builds");
        [("norm", &norm), ("y", &y)].into_iter().for_each(|(name, tensor)| g.output(name, tensor));
        g
    });
    assert_eq!(steps(&recording), ["layer_norm: ", "linear: activation, residual"], "{recording}");
}

/// Builds the UNet of the preset `mini` with the result of every block as an output.
fn tapped() -> Graph {
    let config = ModelConfig::preset("mini").expect("a preset is there").unet;
    let mut g = Graph::with_taps();
    let latent = g.input("latent", [1, 8, 8, config.in_channels()], DType::Elem);
    let timestep = g.input("timestep", [1], DType::F32);
    let context = g.input("context", [1, 11, config.cross_attention_dim()], DType::Elem);
    let y = unet(&mut g, &config, &latent, &timestep, &context).expect("it builds");
    g.output("y", &y);
    g
}

#[test]
fn a_fused_network_computes_the_same_and_its_taps_stay() {
    let fused = check(tapped);
    let plain = Recording::with_fusion(tapped(), Fusion::None);
    let names = |r: &Recording| r.outputs().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&fused), names(&plain));
    let found: BTreeSet<&str> = fused.fused().iter().map(|fused| fused.what).collect();
    let all = [
        "activation",
        "concat",
        "group norm",
        "layer",
        "layer norm",
        "moments",
        "residual",
        "row moments",
        "statistics",
        "upsample",
    ];
    assert_eq!(found, BTreeSet::from(all));
    assert!(fused.fused()[0].to_string().contains(&fused.fused()[0].path), "{}", fused.fused()[0]);
}

#[test]
fn a_tensor_with_other_readers_is_not_fused_away() {
    let mut g = Graph::new();
    let x = g.input("x", [1, 4, 4, 8], DType::Elem);
    let up = g.conv2d(&x, "up", Conv { upsample: true, ..Conv::to(8) }).expect("it builds");
    let activated = g.activate(&up, Activation::Silu, 1.0).expect("it builds");
    let norm = g.layer_norm(&activated, "norm", 1e-5).expect("it builds");
    let y = g.linear(&norm, "linear", Linear { cols: 8, ..Linear::default() }).expect("it builds");
    let both = g.concat(&norm, &y).expect("it builds");
    for (name, tensor) in [("up", &up), ("both", &both)] {
        g.output(name, tensor);
    }
    // The activation's operand is an output, and the norm is also read by a concatenation: only the upsampling is
    // fused.
    let recording = Recording::new(g);
    assert_eq!(recording.fused().len(), 1, "{:?}", recording.fused());
    assert_eq!(recording.fused()[0].what, "upsample");

    // Only one product reads the norm, but the norm is an output as well.
    let mut g = Graph::new();
    let x = g.input("x", [1, 4, 4, 8], DType::Elem);
    let norm = g.layer_norm(&x, "norm", 1e-5).expect("it builds");
    let y = g.linear(&norm, "linear", Linear { cols: 8, ..Linear::default() }).expect("it builds");
    for (name, tensor) in [("norm", &norm), ("y", &y)] {
        g.output(name, tensor);
    }
    let recording = Recording::new(g);
    assert!(recording.fused().is_empty(), "{:?}", recording.fused());
}

#[test]
fn the_full_size_networks_lose_at_least_a_fifth_of_their_steps() {
    let config = ModelConfig::preset("mobilediffusion").expect("a preset is there");
    let shape = Shape::of(&config, 512, 512, Sampler::OneStep).expect("the size fits");
    let graph = |name: &str| match name {
        "text encoder" => text_graph(&config).expect("it builds"),
        "unet" => denoise_graph(&config, &shape).expect("it builds"),
        _ => decode_graph(&config, shape.latent, Decoder::Light, 1).expect("it builds"),
    };
    for name in ["text encoder", "unet", "decoder"] {
        let plain = Recording::with_fusion(graph(name), Fusion::None);
        let fused = Recording::new(graph(name));
        assert_eq!(plain.macs(), fused.macs(), "{name}: the same products");
        say(&format!("{name}: {} steps written down, {} run", plain.nodes().len(), fused.nodes().len()));
        assert!(5 * fused.nodes().len() <= 4 * plain.nodes().len(), "{name}: {} steps left", fused.nodes().len());
        // Shaders do not check sizes, so no kernel may refuse those of a fused step.
        assert!(fused.nodes().iter().all(|node| node.kernel.refusal().is_none()), "{name}");
        let left: Vec<_> = fused.nodes().iter().map(|node| node.kernel.name()).collect();
        for kernel in ["concat", "upsample_nearest", "add", "group_norm_stats"] {
            assert!(!left.contains(&kernel), "{name}: a step of {kernel} is left");
        }
        // A norm stays a step of its own only before a 3x3 convolution, whose nine taps would compute it nine times for
        // every tile of columns. Of the UNet's maps, those that have few columns do it.
        for (norm, node) in fused.nodes().iter().enumerate().filter(|(_, node)| node.kernel.name() == "group_norm") {
            let written = node.operands.last().copied().flatten();
            let reads = |reader: &&Node| reader.operands.contains(&written);
            for reader in fused.nodes()[norm + 1..].iter().filter(reads) {
                let sizes = reader.kernel.params_json();
                let of = |size: &str| sizes[size].as_u64().unwrap_or(0);
                let pays = of("co") >= 16 || name == "decoder" && of("h") >= 256;
                assert!(of("kernel") == 3 && pays, "{name}: {} of {sizes}", node.path);
            }
        }
    }
}

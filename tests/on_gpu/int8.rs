//! Int8 weights on a GPU: the results are those of the rounded weights, computed on the CPU.

use crate::say;
use mobilediffusion_graph::{Device, Graph, GraphError, Recording, Session, Weights};
use mobilediffusion_kernels::check::relative_l2;
use mobilediffusion_kernels::{DType, Storage, WeightType};
use mobilediffusion_model::decoder::decoder;
use mobilediffusion_model::networks::text_graph;
use mobilediffusion_model::noise::Noise;
use mobilediffusion_model::tokenizer::Tokenizer;
use mobilediffusion_model::unet::unet;
use mobilediffusion_model::weights::Checkpoint;
use mobilediffusion_model::{ModelConfig, Source, WeightsFrom};
use mobilediffusion_runtime::Gpu;
use std::sync::Arc;

const INT8: Storage = Storage::F32.with_weights(WeightType::Int8);

/// Network of the bundled checkpoint with its inputs.
struct Network {
    folder: &'static str,
    graph: fn(&ModelConfig) -> Result<Graph, GraphError>,
    inputs: Vec<(&'static str, Vec<f32>)>,
}

fn noise_to_prediction(config: &ModelConfig) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let latent = g.input("latent", [1, 8, 8, config.unet.in_channels()], DType::F32);
    let timestep = g.input("timestep", [1], DType::F32);
    let tokens = config.text_encoder.max_position_embeddings;
    let context = g.input("context", [1, tokens, config.unet.cross_attention_dim()], DType::Elem);
    let prediction = unet(&mut g, &config.unet, &latent, &timestep, &context)?;
    g.output("prediction", &prediction);
    Ok(g)
}

fn latent_to_picture(config: &ModelConfig) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let latent = g.input("latent", [1, 8, 8, config.unet.in_channels()], DType::F32);
    let picture = decoder(&mut g, config.decoder.as_ref().expect("it has a light decoder"), &latent)?;
    g.output("picture", &picture);
    Ok(g)
}

/// Runs a network on a device and returns its only output. Weights are rounded for a comparison in `rounding`.
fn output(network: &Network, source: &Source, device: &Device, rounding: Storage) -> Vec<f32> {
    let WeightsFrom::Directory(path) = &source.weights else { panic!("the bundled checkpoint is a folder") };
    let checkpoint = Checkpoint::open(&path.join(network.folder)).expect("the checkpoint opens");
    let weights = Weights::new(device.clone(), Box::new(checkpoint)).rounded(rounding);
    let recording = Recording::new((network.graph)(&source.config).expect("the network builds"));
    let name = recording.outputs()[0].0.clone();
    let mut session = Session::new(recording, &weights).expect("it fits");
    for (input, values) in &network.inputs {
        session.write(input, values).expect("the input has this length");
    }
    session.run().expect("it runs");
    session.read(&name).expect("it has an output")
}

pub(crate) fn a_gpu_computes_with_weights_rounded_to_8_bits(gpu: Arc<Gpu>) {
    let source = Source::bundled().expect("it comes with the project");
    let config = &source.config;
    let latent = Noise::new(0).latent(64 * config.unet.in_channels());
    let tokens = config.text_encoder.max_position_embeddings;
    let encoded = Tokenizer::clip().and_then(|clip| clip.encode("red apple", tokens)).expect("two words");
    let ids = encoded.ids.iter().map(|id| f32::from_bits(*id)).collect();
    let text = Network { folder: "text_encoder", graph: text_graph, inputs: vec![("ids", ids)] };
    let context = output(&text, &source, &Device::CPU, Storage::F32);
    let inputs = vec![("latent", latent.clone()), ("timestep", vec![999.0]), ("context", context)];
    let unet = Network { folder: "unet", graph: noise_to_prediction, inputs };
    let decoder = Network { folder: "decoder", graph: latent_to_picture, inputs: vec![("latent", latent)] };
    let device = Device::Gpu(gpu, INT8);
    for network in [text, unet, decoder] {
        let [got, rounded] =
            [&device, &Device::Cpu(WeightType::Int8)].map(|device| output(&network, &source, device, INT8));
        let [in_8_bits, exact] = [&device, &Device::CPU].map(|device| output(&network, &source, device, Storage::F32));
        // tests/model.rs has the same bound for equal weights on two devices.
        let (apart, lost) = (relative_l2(&got, &rounded), relative_l2(&in_8_bits, &exact));
        assert!(apart <= 1e-4, "{}: relative L2 {apart:.2e} from the CPU on rounded weights", network.folder);
        assert!(lost > 10.0 * apart, "{}: relative L2 {lost:.2e}: nothing was rounded", network.folder);
        say(&format!(
            "{} with int8 weights: relative L2 {lost:.2e} from f32, {apart:.1e} between devices",
            network.folder
        ));
    }
}

//! The networks against the PyTorch twin: golden files of a small configuration, block by block and the whole.
//!
//! `reference/golden.py` writes the files. The bound is a relative L2 of 1e-4 in f32 and of 1e-2 where floats are
//! stored in f16, on the CPU device and on every GPU adapter of this machine, in every storage type it has.

use mobilediffusion_graph::{Device, Graph, Recording, Session, Weights};
use mobilediffusion_kernels::{DType, Storage};
use mobilediffusion_model::config::{DecoderConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use mobilediffusion_model::weights::{Checkpoint, WeightSource};
use mobilediffusion_model::{decoder::decoder, text_encoder::text_encoder, unet::unet, vae};
use mobilediffusion_runtime::{Gpu, Select, adapters};
use mobilediffusion_tests::gpu::storages;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest relative L2 where floats are stored like this.
fn bound(device: &Device) -> f64 {
    match device {
        Device::Cpu | Device::Gpu(_, Storage::F32) => 1e-4,
        Device::Gpu(..) => 1e-2,
    }
}

/// The golden file of one network.
struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// `name` is a folder, or a file in it without its ending where that is not `golden`.
    fn open(name: &str) -> Self {
        let (name, file) = name.split_once('/').unwrap_or((name, "golden"));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden").join(name);
        let bytes = std::fs::read(folder.join(file).with_extension("safetensors"))
            .expect("the golden file is in the repository");
        Self { folder, bytes }
    }

    fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        let text = std::fs::read_to_string(self.folder.join("config.json")).expect("a configuration lies beside it");
        serde_json::from_str(&text).expect("the configuration parses")
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("the golden file is a safetensors file")
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).expect("the tensor is there").shape().to_vec()
    }

    /// Four-byte elements as f32; integers keep their bits.
    fn values(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let data = tensors.tensor(name).expect("the tensor is there").data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "elements of an output");
    let square = |sum: f64, d: f64| sum + d * d;
    let difference = got.iter().zip(want).map(|(g, w)| f64::from(g - w)).fold(0.0, square);
    let size = want.iter().map(|w| f64::from(*w)).fold(0.0, square);
    (difference / size).sqrt()
}

fn devices() -> Vec<(String, Device)> {
    let mut all = vec![("CPU".to_owned(), Device::Cpu)];
    for adapter in pollster::block_on(adapters()) {
        let gpu =
            pollster::block_on(Gpu::open(&Select::Named(adapter.index.to_string()))).expect("a listed adapter opens");
        let (storages, gpu) = (storages(&gpu), Arc::new(gpu));
        all.extend(storages.into_iter().map(|s| (format!("{adapter} {s:?}"), Device::Gpu(Arc::clone(&gpu), s))));
    }
    all
}

/// Whether a file holds the weights of one graph or of two.
#[derive(Clone, Copy)]
enum Verify {
    All,
    Half,
}

/// Builds the graph on every device, writes the golden inputs, and compares every golden output.
fn check(golden: &Golden, (weights, verify): (&Path, Verify), inputs: &[&str], build: impl Fn(&mut Graph)) {
    for (name, device) in devices() {
        let mut graph = Graph::with_taps();
        build(&mut graph);
        let checkpoint = Checkpoint::open(weights).expect("the weights open");
        // The VAE's file holds encoder and decoder; that nothing else is missing there is looked at elsewhere.
        let needed = graph.weights();
        match verify {
            Verify::All => checkpoint.verify(&needed).expect("the weights are those of the graph"),
            Verify::Half => assert!(needed.len() < checkpoint.names().count(), "half of the weights are of the graph"),
        }
        let bound = bound(&device);
        let mut weights = Weights::new(device, Box::new(Box::new(checkpoint) as Box<dyn WeightSource>));
        let mut session =
            Session::new(Recording::new(graph), &mut weights, &mut |_, _| ()).expect("the session is made");
        for input in inputs {
            session.write(input, &golden.values(&format!("input.{input}"))).expect("the input fits");
        }
        session.run(&mut |_, _| true).expect("the run succeeds");
        let (mut compared, mut worst) = (0, (0.0, String::new()));
        for key in golden.tensors().names() {
            let Some(block) = key.strip_prefix("output") else { continue };
            let output = block.strip_prefix('.').unwrap_or("output");
            let mut want = golden.values(key);
            if output == "time_embedding" {
                // Every block takes the swish of the embedding, so that is what the graph computes.
                want.iter_mut().for_each(|v| *v /= 1.0 + (-*v).exp());
            }
            let error = relative_l2(&session.read(output).expect("the block is an output"), &want);
            assert!(error <= bound, "{name}: {key}: relative L2 {error:.2e}, at most {bound:.0e}");
            if error > worst.0 {
                worst = (error, key.to_string());
            }
            compared += 1;
        }
        assert!(compared >= 4, "{name}: only {compared} outputs were compared");
        assert!(!worst.1.is_empty(), "{name}: not one bit differs, which two programs never manage");
    }
}

fn check_unet(name: &str) {
    let golden = Golden::open(name);
    let config: UnetConfig = golden.config();
    // The softmax form takes the weights of the relu form.
    let weights = match golden.folder.join("model.safetensors").is_file() {
        true => golden.folder.clone(),
        false => golden.folder.with_file_name("unet"),
    };
    check(&golden, (&weights, Verify::All), &["latent", "timestep", "context"], |g| {
        let latent = g.input("latent", golden.shape("input.latent"), DType::F32);
        let timestep = g.input("timestep", golden.shape("input.timestep"), DType::F32);
        let context = g.input("context", golden.shape("input.context"), DType::Elem);
        let y = unet(g, &config, &latent, &timestep, &context).expect("the UNet builds");
        g.output("output", &y);
    });
}

#[test]
fn unet_with_relu_attention_equals_the_twin() {
    check_unet("unet");
}

#[test]
fn unet_with_softmax_attention_equals_the_twin() {
    check_unet("unet_softmax");
}

#[test]
fn unet_of_an_empty_latent_at_timestep_0_equals_the_twin() {
    check_unet("unet/zero");
    check_unet("unet_flat");
}

#[test]
fn alternatives_of_the_unet_equal_the_twin() {
    for name in ["alt-1", "alt-2", "alt-4", "alt-7"] {
        check_unet(name);
    }
}

#[test]
fn unet_of_stable_diffusion_equals_the_twin() {
    check_unet("sd15_unet");
}

#[test]
fn full_vae_equals_the_twin() {
    for name in ["vae", "sd15_vae"] {
        let golden = Golden::open(&format!("{name}/encode"));
        let config: VaeConfig = golden.config();
        let weights = golden.folder.clone();
        check(&golden, (&weights, Verify::Half), &["image"], |g| {
            let image = g.input("image", golden.shape("input.image"), DType::F32);
            let moments = vae::encoder(g, &config, &image).expect("the encoder builds");
            let y = vae::latent(g, &config, &moments).expect("there are moments");
            g.output("output", &y);
        });
        let golden = Golden::open(&format!("{name}/decode"));
        check(&golden, (&weights, Verify::Half), &["latent"], |g| {
            let latent = g.input("latent", golden.shape("input.latent"), DType::F32);
            let y = vae::decoder(g, &config, &latent).expect("the decoder builds");
            g.output("output", &y);
        });
    }
}

#[test]
fn decoder_equals_the_twin() {
    let golden = Golden::open("decoder");
    let config: DecoderConfig = golden.config();
    check(&golden, (&golden.folder, Verify::All), &["latent"], |g| {
        let latent = g.input("latent", golden.shape("input.latent"), DType::F32);
        let y = decoder(g, &config, &latent).expect("the decoder builds");
        g.output("output", &y);
    });
}

#[test]
fn text_encoder_equals_the_twin() {
    let golden = Golden::open("text_encoder");
    let config: TextEncoderConfig = golden.config();
    check(&golden, (&golden.folder, Verify::All), &["ids"], |g| {
        let ids = g.input("ids", golden.shape("input.ids"), DType::U32);
        let y = text_encoder(g, &config, &ids).expect("the text encoder builds");
        g.output("output", &y);
    });
}

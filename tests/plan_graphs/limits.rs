//! Plans at the edges of what a device takes: sizes, memory that is shared, runs that are cut short.

use super::{MadeUp, mini_denoise, own_gpu, say};
use mobilediffusion_graph::{Device, Graph, GraphError, Linear, Recording, Session, WeightLoader, Weights};
use mobilediffusion_kernels::kernel::elements;
use mobilediffusion_kernels::{Activation, DType, Storage};
use mobilediffusion_runtime::{AdapterKind, Gpu, RuntimeError};
use std::error::Error;
use std::sync::Arc;

/// Weights that count up, exact in f32 up to 2^24 and then some.
struct Counted;

impl WeightLoader for Counted {
    fn load(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok((0..elements(shape)).map(|i| (i % 8191) as f32).collect())
    }
}

fn gpu() -> Option<Arc<Gpu>> {
    let gpu = own_gpu();
    if gpu.is_none() {
        say("skipped: there is no GPU adapter");
    }
    gpu
}

fn session(gpu: &Arc<Gpu>, graph: Graph) -> Result<Session, GraphError> {
    let mut weights = Weights::new(Device::Gpu(Arc::clone(gpu), Storage::F32), Box::new(Counted));
    Session::new(Recording::new(graph), &mut weights, &mut |_, _| ())
}

/// CLIP's table of tokens has 151.8 MB in f32; many drivers bind 128 MiB.
#[test]
fn a_table_beyond_the_largest_binding_is_read_in_two_parts() {
    let (vocab, c) = (49_408, 768);
    let mut devices = vec![Device::Cpu];
    devices.extend(gpu().map(|gpu| Device::Gpu(gpu, Storage::F32)));
    let ids = [0, 1, 43_689, 43_690, 43_691, 49_407, 60_000];
    for device in devices {
        let mut graph = Graph::new();
        let input = graph.input("ids", [1, ids.len()], DType::U32);
        let y = graph.embedding(&input, (vocab, ids.len(), c)).expect("it fits");
        graph.output("y", &y);
        assert_eq!(graph.weights()[0], ("token_embedding.weight".to_owned(), vec![vocab, c]), "one weight, whole");
        let mut weights = Weights::new(device, Box::new(Counted));
        let mut session = Session::new(Recording::new(graph), &mut weights, &mut |_, _| ()).expect("it is made");
        session.write_u32("ids", &ids).expect("it fits");
        session.run(&mut |_, _| true).expect("it runs");
        let got = session.read("y").expect("it is there");
        for (row, &id) in ids.iter().enumerate() {
            let id = (id as usize).min(vocab - 1);
            let want = |k: usize| ((id * c + k) % 8191) as f32 + ((row * c + k) % 8191) as f32;
            assert!((0..c).all(|k| got[row * c + k] == want(k)), "id {id}");
        }
    }
}

/// The decoder at 512x512 pixels has maps of exactly the least that WebGPU promises of a binding.
#[test]
fn a_tensor_of_exactly_128_mib_works() {
    let Some(gpu) = gpu() else { return };
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 512, 512, 128], DType::Elem);
    let y = graph.activate(&x, Activation::Relu, -1.0).expect("it fits");
    graph.output("y", &y);
    let mut session = session(&gpu, graph).expect("every adapter binds 128 MiB");
    let values: Vec<f32> = (0..512 * 512 * 128_u32).map(|i| f32::from((i % 2003) as u16) - 1000.0).collect();
    session.write("x", &values).expect("it fits");
    session.run(&mut |_, _| true).expect("it runs");
    let got = session.read("y").expect("it is there");
    assert!(got.iter().zip(&values).all(|(y, x)| *y == (-x).max(0.0)), "some values are wrong");
}

#[test]
fn a_tensor_beyond_the_largest_binding_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let most = gpu.caps().max_binding_bytes;
    let rows = usize::try_from(most / 16 + 1).expect("it fits");
    let before = gpu.counters();
    let refused = |graph: Graph| session(&gpu, graph).map(|_| ()).expect_err("it is too large").to_string();

    let mut graph = Graph::new();
    let x = graph.input("map", [1, rows, 1, 4], DType::Elem);
    let y = graph.scope("up", |g| g.activate(&x, Activation::Relu, 1.0)).expect("it fits");
    graph.output("y", &y);
    let text = refused(graph);
    let numbers = [(16 * rows).to_string(), most.to_string()];
    assert!(text.contains("up.activation") && text.contains("`map`"), "{text}");
    assert!(numbers.iter().all(|number| text.contains(number)), "{text}");

    let (cols, k) = (2048, usize::try_from(most).expect("it fits") / (4 * 2048) + 4);
    let mut graph = Graph::new();
    let x = graph.input("x", [1, k], DType::Elem);
    let y = graph.linear(&x, "wide", Linear { cols, ..Linear::default() }).expect("it fits");
    graph.output("y", &y);
    let text = refused(graph);
    let numbers = [(4 * cols * k.next_multiple_of(4)).to_string(), most.to_string()];
    assert!(text.contains("wide.weight") && numbers.iter().all(|number| text.contains(number)), "{text}");
    assert_eq!(gpu.counters(), before, "nothing is made for a plan that is refused");
}

#[test]
fn plans_share_one_set_of_weights() {
    let Some(gpu) = gpu() else { return };
    let mut weights = Weights::new(Device::Gpu(Arc::clone(&gpu), Storage::F32), Box::new(MadeUp::default()));
    let mut made = || {
        let before = gpu.counters();
        let session = Session::new(Recording::new(mini_denoise()), &mut weights, &mut |_, _| ()).expect("it is made");
        let after = gpu.counters();
        (session, after.buffers - before.buffers, after.pipelines - before.pipelines)
    };
    let (_first, buffers, pipelines) = made();
    let (_second, more_buffers, more_pipelines) = made();
    assert!(pipelines > 0, "the first plan compiles");
    assert_eq!((buffers - more_buffers, more_pipelines), (mini_denoise().weights().len() as u64, 0));
}

#[test]
fn a_long_run_is_stopped_between_two_submissions() {
    let Some(gpu) = gpu() else { return };
    if gpu.adapter().kind != AdapterKind::Software {
        return say("skipped: a hardware GPU takes so little work in one submission");
    }
    let mut graph = Graph::new();
    let mut x = graph.input("x", [1, 1024, 1024], DType::Elem);
    for layer in ["a", "b", "c"] {
        x = graph.linear(&x, layer, Linear { cols: 1024, ..Linear::default() }).expect("it fits");
    }
    graph.output("y", &x);
    let mut session = session(&gpu, graph).expect("it is made");
    session.write("x", &vec![0.0; 1024 * 1024]).expect("it fits");
    let mut asked = Vec::new();
    let mut twice = |done, total| {
        asked.push((done, total));
        done < 2
    };
    let stopped = session.run(&mut twice).expect_err("we said no").to_string();
    assert_eq!((stopped.as_str(), asked), ("stopped after 2 of 3 steps", vec![(0, 3), (1, 3), (2, 3)]));
}

#[test]
fn a_lost_device_is_an_error_of_the_run() {
    let Some(gpu) = gpu() else { return };
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 4], DType::Elem);
    let y = graph.activate(&x, Activation::Relu, 1.0).expect("it fits");
    graph.output("y", &y);
    let mut session = session(&gpu, graph).expect("it is made");
    session.write("x", &[1.0; 4]).expect("it fits");
    gpu.destroy();
    let lost = session.run(&mut |_, _| true).expect_err("the device is gone");
    assert!(matches!(lost, GraphError::Device { source: RuntimeError::Lost { .. }, .. }), "{lost}");
    assert!(session.read("y").is_err(), "there is no result");
}

//! Tests of plans and pictures that need a GPU. On every adapter: tensors at the limits of a device, shared weights,
//! replays that create nothing. On software drivers: long runs that are stopped, long steps that are divided. On every
//! hardware adapter and one software driver: pictures equal to the CPU's.

#[path = "on_gpu/int8.rs"]
mod int8;
#[path = "../model/examples/sheet/mod.rs"]
mod sheet;

use mobilediffusion_graph::{
    Device, Embedding, Graph, GraphError, Linear, Origin, Recording, Session, WeightLoader, Weights,
};
use mobilediffusion_kernels::runner::check_variants;
use mobilediffusion_kernels::tuning::Tuning;
use mobilediffusion_kernels::variant::runnable;
use mobilediffusion_kernels::{Activation, Case, DType, GpuDevice, Storage};
use mobilediffusion_model::{DeviceChoice, Flow, Options, Pipeline, Request, Source, WeightType};
use mobilediffusion_runtime::{AdapterKind, Gpu, RuntimeError};
use mobilediffusion_tests::gpu::{self, Test};
use mobilediffusion_tests::made_up::{MadeUp, mini_denoise, values};
use mobilediffusion_tests::{drawing_devices, folder, on, psnr, say};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Test on a device of its own, so that it may look at the device's counters and destroy it.
type Own = (&'static str, fn(Arc<Gpu>));

/// Loader of weights that count from 0 to 8190 and start again, all exact in f32.
struct Counted;

impl WeightLoader for Counted {
    fn load_part(&self, _: &str, _: &[usize], part: Range<usize>) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(part.map(|i| (i % 8191) as f32).collect())
    }
}

fn session(gpu: &Arc<Gpu>, graph: Graph) -> Result<Session, GraphError> {
    let weights = Weights::new(Device::Gpu(Arc::clone(gpu), Storage::F32), Box::new(Counted));
    Session::new(Recording::new(graph), &weights)
}

/// CLIP's token table takes 151.8 MB in f32, and many drivers bind at most 128 MiB.
fn a_table_beyond_the_largest_binding_is_read_in_two_parts(gpu: Arc<Gpu>) {
    let (vocab, c) = (49_408, 768);
    let ids = [0, 1, 43_689, 43_690, 43_691, 49_407, 60_000];
    for device in [Device::CPU, Device::Gpu(gpu, Storage::F32)] {
        let mut graph = Graph::new();
        let input = graph.input("ids", [1, ids.len()], DType::U32);
        let y = graph.embedding(&input, Embedding { vocab, positions: ids.len(), channels: c }).expect("it fits");
        graph.output("y", &y);
        assert_eq!(graph.weights()[0], ("token_embedding.weight".to_owned(), vec![vocab, c]), "one weight, whole");
        let weights = Weights::new(device, Box::new(Counted));
        let mut session = Session::new(Recording::new(graph), &weights).expect("it is made");
        session.write_u32("ids", &ids).expect("it fits");
        session.run().expect("it runs");
        let got = session.read("y").expect("it is there");
        for (row, &id) in ids.iter().enumerate() {
            let id = (id as usize).min(vocab - 1);
            let want = |k: usize| ((id * c + k) % 8191) as f32 + ((row * c + k) % 8191) as f32;
            assert!((0..c).all(|k| got[row * c + k] == want(k)), "id {id}");
        }
    }
}

/// The decoder's feature maps at 512x512 pixels have exactly the size of binding that WebGPU guarantees.
fn a_tensor_of_exactly_128_mib_works(gpu: Arc<Gpu>) {
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 512, 512, 128], DType::Elem);
    let y = graph.activate(&x, Activation::Relu, -1.0).expect("it fits");
    graph.output("y", &y);
    let mut session = session(&gpu, graph).expect("every adapter binds 128 MiB");
    let values: Vec<f32> = (0..512 * 512 * 128_u32).map(|i| f32::from((i % 2003) as u16) - 1000.0).collect();
    session.write("x", &values).expect("it fits");
    session.run().expect("it runs");
    let got = session.read("y").expect("it is there");
    assert!(got.iter().zip(&values).all(|(y, x)| *y == (-x).max(0.0)), "some values are wrong");
}

fn a_tensor_beyond_the_largest_binding_is_refused_by_name(gpu: Arc<Gpu>) {
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

fn plans_share_one_set_of_weights(gpu: Arc<Gpu>) {
    let weights = Weights::new(Device::Gpu(Arc::clone(&gpu), Storage::F32), Box::new(MadeUp::default()));
    let made = || {
        let before = gpu.counters();
        let session = Session::new(Recording::new(mini_denoise()), &weights).expect("it is made");
        let after = gpu.counters();
        (session, after.buffers - before.buffers, after.pipelines - before.pipelines)
    };
    let (_first, buffers, pipelines) = made();
    let (_second, more_buffers, more_pipelines) = made();
    assert!(pipelines > 0, "the first plan compiles");
    // Layers that are computed at once share a buffer.
    let recording = Recording::new(mini_denoise());
    let held = recording.tensors().iter().filter(|tensor| matches!(tensor.origin, Origin::Weight(_))).count();
    assert_eq!((buffers - more_buffers, more_pipelines), (held as u64, 0), "made anew");
    assert!(held < mini_denoise().weights().len(), "no weights are stacked");
}

fn a_long_run_is_stopped_between_two_submissions(gpu: Arc<Gpu>) {
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
        if done < 2 { Flow::Continue } else { Flow::Stop }
    };
    let stopped = session.run_with(&mut twice).expect_err("we said no").to_string();
    assert_eq!(
        (stopped.as_str(), asked),
        ("stopped after 2 of 3 steps", vec![(0, 3), (0, 3), (1, 3), (1, 3), (2, 3)]),
        "what was asked: each step is divided in two"
    );
}

fn a_step_that_takes_long_is_divided(gpu: Arc<Gpu>) {
    let graph = || {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 1024, 1024], DType::Elem);
        let y = graph.linear(&x, "layer", Linear { cols: 1024, bias: true, ..Linear::default() }).expect("it fits");
        graph.output("y", &y);
        Recording::new(graph)
    };
    let run = |device: Device| {
        let weights = Weights::new(device, Box::new(MadeUp::default()));
        let mut session = Session::new(graph(), &weights).expect("it is made");
        session.poison().expect("it can be written");
        let x = values("x", 1024 * 1024);
        session.write("x", &x).expect("it fits");
        let mut asked = Vec::new();
        let mut ask = |done, total| {
            asked.push((done, total));
            Flow::Continue
        };
        session.run_with(&mut ask).expect("it runs");
        session.write("x", &x).expect("it fits");
        let times = session.run_timed().expect("it runs");
        (session.read("y").expect("it is there"), asked, times.len())
    };
    let (expected, ..) = run(Device::CPU);
    let (found, asked, times) = run(Device::Gpu(gpu, Storage::F32));
    assert_eq!((asked, times), (vec![(0, 1), (0, 1)], 1), "one step in two submissions");
    let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5 * largest && found.len() == expected.len(), "{worst} beside {largest}");
}

fn a_lost_device_is_an_error_of_the_run(gpu: Arc<Gpu>) {
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 4], DType::Elem);
    let y = graph.activate(&x, Activation::Relu, 1.0).expect("it fits");
    graph.output("y", &y);
    let mut session = session(&gpu, graph).expect("it is made");
    session.write("x", &[1.0; 4]).expect("it fits");
    gpu.destroy();
    let lost = session.run().expect_err("the device is gone");
    assert!(matches!(lost, GraphError::Device { error: RuntimeError::Lost { .. }, .. }), "{lost}");
    assert!(session.read("y").is_err(), "there is no result");
}

fn a_replay_makes_nothing(gpu: Arc<Gpu>) {
    let weights = Weights::new(Device::Gpu(gpu.clone(), Storage::F32), Box::new(MadeUp::default()));
    let mut graph = Graph::new();
    let mut x = graph.input("x", [1, 4], DType::Elem);
    for _ in 0..300 {
        x = graph.activate(&x, Activation::Silu, 1.0).expect("it fits");
    }
    graph.output("y", &x);
    let mut session = Session::new(Recording::new(graph), &weights).expect("it is made");
    let mut run = || {
        session.write("x", &[1.0; 4]).expect("it fits");
        let start = Instant::now();
        session.run().expect("it runs");
        start.elapsed()
    };
    run();
    let before = gpu.counters();
    let least = (0..20).map(|_| run()).min().expect("there were runs");
    assert_eq!(gpu.counters(), before, "a replayed plan made buffers or pipelines");
    say(&format!("{}: 300 steps of four numbers take {least:?}, waits included", gpu.adapter()));
}

/// Asserts that pictures of the bundled model agree with the CPU's with the same kind of weights: PSNR of at least 35
/// dB.
fn draws_like_the_cpu(gpu: &Gpu, prompts: &[&str], weights: WeightType) {
    let load = |device, weights| {
        let source = Source::bundled().expect("the checkpoint comes with the sources");
        Pipeline::load(source, Options { weights, ..on(device) }).expect("it loads")
    };
    let mut expected = load(DeviceChoice::Cpu, weights);
    let mut found = load(DeviceChoice::Named(gpu.adapter().index.to_string()), weights);
    let drawn = |pipeline: &mut Pipeline, prompt: &str| {
        pipeline.generate(&Request::new(prompt), &mut |_| Flow::Continue).expect("it draws").remove(0).rgba
    };
    let mut worst = f64::INFINITY;
    for prompt in prompts {
        let (cpu, gpu) = (drawn(&mut expected, prompt), drawn(&mut found, prompt));
        let psnr = psnr(&cpu, &gpu);
        assert!(psnr >= 35.0, "{prompt}: the pictures differ: PSNR {psnr:.1} dB");
        worst = worst.min(psnr);
    }
    say(&format!(
        "CPU against {}, {weights:?} weights, the worst of {} prompts: PSNR {worst:.1} dB",
        gpu.adapter(),
        prompts.len()
    ));
}

/// Returns whether the adapter draws pictures: hardware does, and one of the software drivers, which take minutes.
fn draws(gpu: &Gpu) -> bool {
    drawing_devices().contains(&DeviceChoice::Named(gpu.adapter().index.to_string()))
}

fn gpu_and_cpu_draw_the_same(gpu: Arc<Gpu>) {
    draws_like_the_cpu(&gpu, &sheet::PROMPTS, WeightType::default());
}

fn weights_in_8_bits_draw_the_same(gpu: Arc<Gpu>) {
    draws_like_the_cpu(&gpu, &sheet::PROMPTS[..3], WeightType::Int8);
}

/// Runs what `check --every-variant` runs.
fn every_variant_is_judged(gpu: Arc<Gpu>) {
    let linear = mobilediffusion_kernels::Linear { rows: 300, k: 64, cols: 64, bias: true, ..Default::default() };
    let variants = runnable(&linear, gpu.caps(), Storage::F32);
    let case = Case::new(linear);
    let verdicts = check_variants(GpuDevice { gpu: &gpu, storage: Storage::F32 }, &case, 1);
    assert!(verdicts.iter().map(|(variant, _)| *variant).eq(variants) && verdicts.len() > 2, "{verdicts:?}");
    for (variant, verdict) in verdicts {
        let verdict = verdict.expect("it runs");
        assert!(verdict.failure.is_none() && verdict.agreement.relative_l2 < 1e-6, "{}: {verdict:?}", variant.name);
    }
}

/// Sessions use the variants that `bench --tune` saved. A damaged file is reported and ignored.
fn sessions_take_what_was_measured(gpu: Arc<Gpu>) {
    let folder = folder();
    let gpu = Arc::into_inner(gpu).expect("it is nobody else's").with_pipeline_cache(folder.path());
    let gpu = Arc::new(gpu);
    let taken = || {
        let mut graph = Graph::new();
        let x = graph.input("x", [300, 64], DType::Elem);
        let y = graph.linear(&x, "fc", Linear { cols: 64, ..Linear::default() }).expect("it fits");
        graph.output("y", &y);
        let session = session(&gpu, graph).expect("it is made");
        session.variants().expect("a GPU has variants")[0]
    };
    let estimated = taken();
    let linear = mobilediffusion_kernels::Linear { rows: 300, k: 64, cols: 64, ..Default::default() };
    let all = runnable(&linear, gpu.caps(), Storage::F32);
    let other = *all.iter().find(|variant| **variant != estimated).expect("there are several");
    let mut tuning = Tuning::default();
    tuning.note(gpu.adapter(), (&linear, Storage::F32), &other);
    tuning.write(&gpu).expect("the folder is writable");
    assert_eq!(Tuning::read(&gpu), (tuning, None), "it is read as it was written");
    assert_eq!(taken(), other, "the session takes what stands there");
    gpu.keep("variants.json", b"{ not a table").expect("the folder is writable");
    let (nothing, why) = Tuning::read(&gpu);
    assert_eq!(nothing, Tuning::default(), "nothing is left");
    assert!(why.is_some_and(|why| why.contains("variants.json")), "and it is told");
    assert_eq!(taken(), estimated, "the session takes its own estimate");
}

fn main() {
    const TESTS: &[Own] = &[
        ("a_table_beyond_the_largest_binding", a_table_beyond_the_largest_binding_is_read_in_two_parts),
        ("a_tensor_of_exactly_128_mib_works", a_tensor_of_exactly_128_mib_works),
        ("a_tensor_beyond_the_largest_binding", a_tensor_beyond_the_largest_binding_is_refused_by_name),
        ("plans_share_one_set_of_weights", plans_share_one_set_of_weights),
        ("a_lost_device_is_an_error_of_the_run", a_lost_device_is_an_error_of_the_run),
        ("a_replay_makes_nothing", a_replay_makes_nothing),
        ("sessions_take_what_was_measured", sessions_take_what_was_measured),
        ("every_variant_is_judged", every_variant_is_judged),
        ("a_gpu_computes_with_weights_rounded_to_8_bits", int8::a_gpu_computes_with_weights_rounded_to_8_bits),
    ];
    const SOFTWARE: &[Own] = &[
        ("a_long_run_is_stopped_between_two_submissions", a_long_run_is_stopped_between_two_submissions),
        ("a_step_that_takes_long_is_divided", a_step_that_takes_long_is_divided),
    ];
    const PICTURES: &[Own] = &[
        ("gpu_and_cpu_draw_the_same", gpu_and_cpu_draw_the_same),
        ("weights_in_8_bits_draw_the_same", weights_in_8_bits_draw_the_same),
    ];
    let boxed = |own: &Own| {
        let (name, test) = *own;
        Test::new(name, move |gpu| {
            test(gpu);
            Ok(())
        })
    };
    gpu::main(|gpu| {
        let hardware = gpu.is_some_and(|gpu| gpu.adapter().kind != AdapterKind::Software);
        // A hardware GPU takes the whole plan in one submission, so there is nothing between two of them.
        let stopped = SOFTWARE.iter().map(|own| boxed(own).ignored_if(hardware));
        // Golden files and int8 networks are compared on every adapter; whole pictures on one software driver are enough.
        let pictures = PICTURES.iter().filter(|_| gpu.is_none_or(draws)).map(boxed);
        TESTS.iter().map(boxed).chain(stopped).chain(pictures).collect()
    });
}

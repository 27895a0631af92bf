//! Memory plans: placement of tensors, and that sharing memory does not change results.

mod plan_graphs;

use mobilediffusion_graph::plan::{Lifetime, NO_LIMIT, lower_bound, pack};
use mobilediffusion_graph::{
    Against, Conv, Device, Flow, Fusion, Graph, GraphError, Recording, Session, Weights, compare,
};
use mobilediffusion_kernels::{Access, Activation, Add, DType, Storage, WeightType};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::config::Sampler;
use mobilediffusion_model::networks::{Decoder, Shape, decode_graph, denoise_graph, text_graph};
use mobilediffusion_tests::made_up::{MadeUp, mini_denoise, values};
use mobilediffusion_tests::say;
use plan_graphs::{cpu_and_best_gpu, random_graph, simulation};
use proptest::prelude::*;
use std::time::Instant;

fn minimalloc(name: char) -> Vec<Lifetime> {
    let path = format!("{}/data/minimalloc/{name}.1048576.csv", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the instance is in the repository");
    let line = |line: &str| {
        let numbers: Vec<usize> = line.split(',').map(|n| n.trim().parse().expect("a whole number")).collect();
        Lifetime { first: numbers[1], last: numbers[2] - 1, bytes: numbers[3] }
    };
    text.lines().skip(1).map(line).collect()
}

#[test]
fn published_instances_fit_into_110_percent_of_their_capacity() {
    const CAPACITY: f64 = 1_048_576.0;
    let mut table = String::from("instance  tensors  total / capacity  seconds\n");
    let mut worst = 0.0_f64;
    for name in 'A'..='K' {
        let lifetimes = minimalloc(name);
        let start = Instant::now();
        let packing = pack(&lifetimes);
        let ratio = packing.total as f64 / CAPACITY;
        let (count, seconds) = (lifetimes.len(), start.elapsed().as_secs_f64());
        table += &format!("{name:8}  {count:7}  {ratio:16.4}  {seconds:7.2}\n");
        disjoint(&lifetimes, &packing.offsets, packing.total);
        worst = worst.max(ratio);
    }
    say(&table);
    assert!(worst <= 1.10, "{table}");
}

/// Asserts that no two tensors that live at a time share bytes, by comparing every pair.
fn disjoint(lifetimes: &[Lifetime], offsets: &[usize], total: usize) {
    assert_eq!(lifetimes.len(), offsets.len(), "every tensor has a place");
    for (i, a) in lifetimes.iter().enumerate() {
        assert!(offsets[i] + a.bytes <= total, "tensor {i} ends outside");
        for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
            let together = a.first.max(b.first) <= a.last.min(b.last);
            let shared = offsets[i].max(offsets[j]) < (offsets[i] + a.bytes).min(offsets[j] + b.bytes);
            assert!(!(together && shared), "{i} and {j} share bytes");
        }
    }
}

#[test]
fn the_models_plans_are_near_the_lower_bound() {
    let mut table = String::from("plan  steps  tensors  lower bound  buffers  ratio  arena ratio\n");
    let (mut worst_cpu, mut worst_gpu) = (0.0_f64, 0.0_f64);
    for preset in ModelConfig::PRESETS {
        let config = ModelConfig::preset(preset).expect("a preset is there");
        let size = config.defaults.image_size;
        let shape = Shape::of(&config, size, size, Sampler::OneStep).expect("the default size fits");
        let graphs = [
            ("text encoder", text_graph(&config).expect("a preset builds")),
            ("unet", denoise_graph(&config, &shape).expect("a preset builds")),
            ("decoder", decode_graph(&config, shape.latent, Decoder::of(&config), 1).expect("a preset builds")),
        ];
        for (name, graph) in graphs {
            let recording = Recording::new(graph);
            let start = Instant::now();
            let summary = recording.summary(Storage::F32).expect("there is no limit");
            let took = start.elapsed();
            let ratio = |bytes: usize| bytes as f64 / summary.lower_bound_bytes as f64;
            let (gpu, cpu) = (ratio(summary.activation_bytes), ratio(summary.arena_bytes));
            table += &format!(
                "{preset} {name}  {}  {}  {}  {}  {gpu:.4}  {cpu:.4}  {took:?}\n",
                summary.steps, summary.tensors, summary.lower_bound_bytes, summary.buffers
            );
            (worst_cpu, worst_gpu) = (worst_cpu.max(cpu), worst_gpu.max(gpu));
        }
    }
    say(&table);
    assert!(worst_cpu <= 1.001 && worst_gpu <= 1.05, "{table}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tensors_that_live_at_a_time_do_not_overlap(lives in prop::collection::vec((0_usize..40, 0_usize..12, 1_usize..50), 0..60)) {
        let lifetimes: Vec<Lifetime> =
            lives.into_iter().map(|(first, more, bytes)| Lifetime { first, last: first + more, bytes }).collect();
        let packing = pack(&lifetimes);
        let most_alive = (0..60).map(|step| {
            lifetimes.iter().filter(|l| (l.first..=l.last).contains(&step)).map(|l| l.bytes).sum::<usize>()
        }).max().unwrap_or(0);
        prop_assert_eq!(lower_bound(&lifetimes), most_alive);
        prop_assert!(packing.total >= most_alive);
        disjoint(&lifetimes, &packing.offsets, packing.total);
        prop_assert_eq!(pack(&lifetimes), packing);
    }

    #[test]
    fn shared_memory_changes_no_bit(operations in prop::collection::vec((0_u8..5, any::<u8>(), any::<u8>()), 1..14)) {
        for device in cpu_and_best_gpu() {
            let run = |recording: Recording| {
                let names: Vec<String> = recording.outputs().iter().map(|(name, _)| name.clone()).collect();
                let weights = Weights::new(device.clone(), Box::new(MadeUp::default()));
                let mut session = Session::new(recording, &weights)?;
                session.poison()?;
                session.write("x", &values("x", 80))?;
                session.write("y", &values("y", 64))?;
                session.run()?;
                let read = |session: &mut Session| {
                    names.iter().map(|name| session.read(name)).collect::<Result<Vec<_>, GraphError>>()
                };
                let first = read(&mut session)?;
                // Only steps that depend on `y` run again; the others' results must still be in place.
                session.write("y", &values("another y", 64))?;
                session.run()?;
                Ok::<_, GraphError>([first, read(&mut session)?].concat())
            };
            let bits = |all: Vec<Vec<f32>>| all.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let planned = run(Recording::new(random_graph(&operations))).expect("the plan runs");
            prop_assert!(planned.iter().flatten().all(|v| v.is_finite()), "something unwritten was read");
            prop_assert_eq!(bits(planned), bits(run(Recording::new(random_graph(&operations)).unshared()).expect("the plan runs")));
        }
    }
}

/// Regression found by `shared_memory_changes_no_bit`: after tensors are joined, two pairs that must be kept apart
/// become the same pair.
#[test]
fn tensors_that_are_apart_for_two_reasons_stay_apart() {
    let operations =
        [(1, 115, 83), (1, 56, 5), (3, 32, 0), (3, 4, 0), (2, 154, 124), (2, 19, 130), (2, 93, 45), (3, 97, 0)];
    let recording = Recording::new(random_graph(&operations));
    let plan = recording.arenas(Storage::F16, NO_LIMIT).expect("there is no limit");
    for (step, node) in recording.nodes().iter().enumerate() {
        let held = node.kernel.operands().into_iter().zip(&node.operands);
        let held = held.filter(|(operand, _)| !(plan.in_place[step] && Some(operand.name) == node.kernel.in_place()));
        let arenas = held.filter_map(|(operand, tensor)| Some((operand.access, plan.places[(*tensor)?]?.arena)));
        let (read, written): (Vec<_>, Vec<_>) = arenas.partition(|(access, _)| *access == Access::Read);
        let both = read.iter().any(|(_, arena)| written.iter().any(|(_, other)| arena == other));
        assert!(!both, "step {step} reads an arena that it writes: {read:?}, {written:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_step_reads_an_overwritten_tensor(
        operations in prop::collection::vec((0_u8..5, any::<u8>(), any::<u8>()), 1..40),
        runs in prop::collection::vec(1_u64..4, 0..5),
    ) {
        simulation::play(&Recording::new(random_graph(&operations)), &runs).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn no_step_of_the_model_reads_an_overwritten_tensor() {
    let recording = Recording::new(mini_denoise());
    let inputs = plan_graphs::inputs(&recording);
    let alone: Vec<u64> = inputs.iter().map(|(_, _, bit)| 1 << bit).collect();
    let pairs = alone.iter().flat_map(|a| alone.iter().map(move |b| a | b));
    let runs: Vec<u64> = pairs.collect();
    simulation::play(&recording, &runs).expect("nothing is lost");
}

#[test]
fn a_stopped_run_gives_no_output() {
    for device in cpu_and_best_gpu() {
        let weights = Weights::new(device, Box::new(MadeUp::default()));
        let recording = Recording::new(random_graph(&[(2, 0, 1), (4, 2, 0)]));
        let mut session = Session::new(recording, &weights).expect("it is made");
        session.write("x", &values("x", 80)).expect("it fits");
        session.write("y", &values("y", 64)).expect("it fits");
        // The second time, the outputs of a complete run would be read.
        for _ in 0..2 {
            let stopped = session.run_with(&mut |_, _| Flow::Stop).expect_err("we said no").to_string();
            assert_eq!(stopped, "stopped after 0 of 3 steps");
            let missing = session.read("last").expect_err("nothing was computed").to_string();
            assert_eq!(missing, "output `last` is not available: nothing was run, or the last run did not complete");
            session.run().expect("it runs");
            assert!(session.read("last").expect("it is there").iter().all(|v| v.is_finite()), "all inputs were kept");
            session.write("x", &values("x", 80)).expect("it fits");
            session.write("y", &values("y", 64)).expect("it fits");
        }
    }
}

#[test]
fn every_step_is_timed() {
    for device in cpu_and_best_gpu() {
        let weights = Weights::new(device, Box::new(MadeUp::default()));
        let recording = Recording::new(mini_denoise());
        let (inputs, steps) = (plan_graphs::inputs(&recording), recording.nodes().len());
        let mut session = Session::new(recording, &weights).expect("it is made");
        for (name, len, _) in &inputs {
            session.write(name, &values(name, *len)).expect("it fits");
        }
        session.run().expect("it runs");
        let next = session.read("next").expect("it is there");
        assert!(session.run_timed().expect("it runs").is_empty(), "nothing was written");
        for (name, len, _) in &inputs {
            session.write(name, &values(name, *len)).expect("it fits");
        }
        let times = session.run_timed().expect("it runs");
        assert_eq!(times.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (0..steps).collect::<Vec<_>>());
        assert!(times.iter().all(|(_, seconds)| (0.0..60.0).contains(seconds)), "{times:?}");
        assert_eq!(session.read("next").expect("it is there"), next, "timed or not, the bits are the same");
    }
}

#[test]
fn only_what_depends_on_an_input_runs_again() {
    let weights = Weights::new(Device::CPU, Box::new(MadeUp::default()));
    let recording = Recording::new(mini_denoise());
    let inputs = plan_graphs::inputs(&recording);
    let bit = |name: &str| 1_u64 << inputs.iter().find(|(known, ..)| known == name).expect("an input").2;
    let timed = recording.masks().iter().filter(|mask| **mask & bit("timestep") != 0).count();
    let of_text = recording.masks().iter().filter(|mask| **mask == bit("context")).count();
    assert!(of_text > 0 && timed < recording.nodes().len(), "keys and values depend on the text alone");
    let mut session = Session::new(recording, &weights).expect("it is made");
    for (name, len, _) in &inputs {
        session.write(name, &values(name, *len)).expect("it fits");
    }
    let steps = |session: &mut Session| {
        let mut of = 0;
        let mut go_on = |_, total| {
            of = total;
            Flow::Continue
        };
        session.run_with(&mut go_on).expect("it runs");
        of
    };
    let all = steps(&mut session);
    let first = session.read("next").expect("an output");
    session
        .write("timestep", &values("timestep", inputs.iter().find(|i| i.0 == "timestep").expect("an input").1))
        .expect("it fits");
    assert_eq!((steps(&mut session), all), (timed, session.recording().nodes().len()));
    assert_eq!(session.read("next").expect("an output"), first, "the same timestep gives the same bits");
    assert_eq!(steps(&mut session), 0, "nothing was written");
}

/// The step `once` reads a weight alone, and `sum` adds its result to the input.
#[test]
fn what_depends_on_no_input_runs_once_and_what_was_fed_back_runs_again() {
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 8], DType::Elem);
    let w = graph.weight("w", [1, 8]);
    let once = graph.layer_norm(&w, "once", 1e-5).expect("it fits");
    let y = graph.step("sum", Add { rows: 1, c: 8 }, &[Some(&x), Some(&once)]).expect("it fits");
    graph.output("y", &y);
    let recording = Recording::with_fusion(graph, Fusion::None);
    assert_eq!(recording.masks(), [0, 1]);
    let mut session = Session::new(recording, &Weights::new(Device::CPU, Box::new(MadeUp::default()))).expect("made");
    let timed = |session: &mut Session| {
        let steps = session.run_timed().expect("it runs").into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        (steps, session.read("y").expect("it is there"))
    };
    session.write("x", &[0.0; 8]).expect("it fits");
    let (steps, first) = timed(&mut session);
    assert_eq!(steps, [0, 1]);
    session.feed_back("y", "x").expect("they have one shape");
    let twice = first.iter().map(|v| v + v).collect();
    assert_eq!(timed(&mut session), (vec![1], twice));
    session.poison().expect("it is memory of the host");
    session.write("x", &[0.0; 8]).expect("it fits");
    assert_eq!(timed(&mut session), (vec![0, 1], first), "nothing is left of the runs before");
}

#[test]
fn int8_weights_on_the_cpu_give_the_bits_of_rounded_weights() {
    const INT8: Storage = Storage::F32.with_weights(WeightType::Int8);
    let next = |weights: Weights| {
        let (weights, recording) = (weights, Recording::new(mini_denoise()));
        let inputs = plan_graphs::inputs(&recording);
        let mut session = Session::new(recording, &weights).expect("it is made");
        for (name, len, _) in &inputs {
            session.write(name, &values(name, *len)).expect("it fits");
        }
        session.run().expect("it runs");
        session.read("next").expect("it is there")
    };
    let on = |device| Weights::new(device, Box::new(MadeUp::default()));
    let [kept, rounded] = [WeightType::Int8, WeightType::Floats].map(|w| next(on(Device::Cpu(w)).rounded(INT8)));
    assert_eq!(kept, rounded, "kept in 8 bits or rounded to them, the bits are the same");
    assert!(next(on(Device::Cpu(WeightType::Int8))) != next(on(Device::CPU)), "nothing was rounded");
}

#[test]
fn errors_name_the_input_output_or_step() {
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 3, 4, 4], DType::Elem);
    let odd = graph.scope("down", |g| g.conv2d(&x, "halve", Conv { stride: 2, ..Conv::to(4) }));
    let odd = odd.expect_err("three rows cannot be halved").to_string();
    assert!(odd.contains("down.halve") && odd.contains('3'), "{odd}");
    let short = graph.input("short", [4], DType::F32);
    let y = graph.activate(&x, Activation::Relu, 1.0).expect("it fits");
    graph.activate(&short, Activation::Relu, 1.0).expect("it fits");
    graph.input("row", [48], DType::Elem);
    graph.input("numbers", [1, 3, 4, 4], DType::U32);
    graph.output("y", &y);
    let weights = Weights::new(Device::CPU, Box::new(MadeUp::default()));
    let mut session = Session::new(Recording::new(graph), &weights).expect("it is made");
    let refused = |what: Result<(), GraphError>, words: &[&str]| {
        let text = what.expect_err("it is wrong").to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refused(session.write("z", &[]), &["input `z`", "x, short"]);
    refused(session.write("x", &[0.0]), &["`x`", "48", "1"]);
    refused(session.read("z").map(|_| ()), &["output `z`", "y"]);
    refused(session.read("y").map(|_| ()), &["`y`", "nothing was run"]);
    for (input, len) in [("x", 48), ("short", 4), ("row", 48), ("numbers", 48)] {
        refused(session.run(), &[&format!("input `{input}` was never written")]);
        session.write(input, &values(input, len)).expect("it fits");
    }
    session.run().expect("all inputs are there");
    refused(session.feed_back("z", "x"), &["output `z`"]);
    refused(session.feed_back("y", "z"), &["input `z`"]);
    refused(session.feed_back("y", "short"), &["`short`", "`y`", "[4]", "[12, 4]"]);
    refused(session.feed_back("y", "row"), &["`row`", "`y`", "[48]", "[12, 4]"]);
    refused(session.feed_back("y", "numbers"), &["`numbers`", "`y`", "U32", "Elem"]);
    session.write("x", &[2.0; 48]).expect("it fits");
    session.run().expect("it runs");
    session.feed_back("y", "x").expect("they have one shape");
}

#[test]
fn a_broken_weight_is_found() {
    let recording = Recording::new(mini_denoise());
    let inputs = plan_graphs::inputs(&recording);
    let filled: Vec<(String, Vec<f32>)> =
        inputs.iter().map(|(name, len, _)| (name.clone(), values(name, *len))).collect();
    let filled: Vec<(&str, &[f32])> = filled.iter().map(|(name, v)| (name.as_str(), v.as_slice())).collect();
    let broken = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight";
    let right = Weights::new(Device::CPU, Box::new(MadeUp::default()));
    for device in cpu_and_best_gpu() {
        let same = Weights::new(device.clone(), Box::new(MadeUp::default()));
        let none = compare(&recording, Against::Device(&right), &same, &filled).expect("both run");
        assert!(none.is_none(), "{device:?}: {}", none.map(|d| d.to_string()).unwrap_or_default());
        let wrong = Weights::new(device, Box::new(MadeUp { broken: Some(broken) }));
        let found = compare(&recording, Against::References(&right), &wrong, &filled)
            .expect("both run")
            .expect("one is broken");
        assert!(broken.starts_with(&found.path) && found.kernel == "linear", "{found}");
        assert!(found.listing.len() == 3 && found.to_string().contains("> "), "{found}");
    }
}

#[test]
fn fused_operations_are_listed() {
    let recording = Recording::new(mini_denoise());
    let text = recording.to_string();
    for what in ["residual", "activation", "upsample", "concat", "layer norm", "group norm", "statistics", "moments"] {
        assert!(text.contains(&format!("+ {what}")), "nothing has {what} folded in");
    }
}

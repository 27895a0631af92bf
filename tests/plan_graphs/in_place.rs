//! Outputs that take over the memory of an operand, and steps in stages.

use super::{cpu_and_best_gpu, simulation};
use mobilediffusion_graph::plan::NO_LIMIT;
use mobilediffusion_graph::{Conv, Device, Graph, GraphError, GroupNorm, Linear, Recording, Session, Weights};
use mobilediffusion_kernels::{Activation, DType, Storage};
use mobilediffusion_model::ModelConfig;
use mobilediffusion_model::networks::text_graph;
use mobilediffusion_runtime::AdapterKind;
use mobilediffusion_tests::made_up::{MadeUp, values};

/// The text encoder reaches its lower bound only if an output takes over the memory of its residual, and a decoder takes
/// less than that if its norms are computed in place.
#[test]
fn an_operand_that_is_taken_over_changes_no_bit() {
    let config = ModelConfig::preset("mini").expect("a preset is there");
    let text = || Recording::new(text_graph(&config).expect("a preset builds"));
    let norms = || {
        let mut g = Graph::new();
        let x = g.input("x", [1, 8, 8, 12], DType::Elem);
        let h = g.conv2d(&x, "first", Conv::to(20)).expect("it fits");
        let h = g.group_norm(&h, "norm", GroupNorm { groups: 4, eps: 1e-5 }, Activation::Silu).expect("it fits");
        let h = g.conv2d(&h, "second", Conv::to(20)).expect("it fits");
        g.output("y", &h);
        Recording::new(g)
    };
    let of_text: &dyn Fn() -> Recording = &text;
    for (recording, kernel, output) in [(of_text, "linear", "context"), (&norms, "group_norm", "y")] {
        simulation::play(&recording(), &[1, 1]).expect("nothing is lost");
        for device in cpu_and_best_gpu() {
            let run = |recording| {
                let weights = Weights::new(device.clone(), Box::new(MadeUp::default()));
                let mut session = Session::new(recording, &weights)?;
                session.poison()?;
                match kernel {
                    "linear" => session.write_u32("ids", &(0..77).collect::<Vec<_>>())?,
                    _ => session.write("x", &values("x", 768))?,
                }
                session.run()?;
                Ok::<_, GraphError>(session.read(output)?.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let unshared = run(recording().unshared()).expect("it runs");
            assert!(run(recording()).expect("it runs") == unshared, "{device:?}");
        }
        let recording = recording();
        let plan = recording.arenas(Storage::F32, NO_LIMIT).expect("there is no limit");
        let mut steps = recording.nodes().iter().zip(&plan.in_place);
        assert!(
            steps.any(|(node, in_place)| *in_place && node.kernel.name() == kernel),
            "no {kernel} took over memory"
        );
    }
}

/// The last step, whose result nobody reads, has the mask of its operand. Another step, which may run later without them,
/// reads that operand too.
#[test]
fn what_another_run_may_read_is_not_taken_over() {
    let mut g = Graph::new();
    let [a, b] = ["a", "b"].map(|name| g.input(name, [1, 8, 8, 64], DType::Elem));
    let layer = Linear { cols: 64, bias: true, ..Linear::default() };
    let shared = g.linear(&a, "shared", layer).expect("it fits");
    let read = g.linear(&b, "read", Linear { residual: Some(&shared), ..layer }).expect("it fits");
    g.linear(&a, "last", Linear { residual: Some(&shared), ..layer }).expect("it fits");
    g.output("y", &read);
    let plan = Recording::new(g).arenas(Storage::F32, NO_LIMIT).expect("there is no limit");
    assert!(!plan.in_place.contains(&true), "writing b alone would read what the last step wrote: {:?}", plan.in_place);
}

/// For products of few tiles over a long k a software driver sums in parts, in stages that share memory. Both steps use
/// the same shared memory, one after the other.
#[test]
fn steps_in_stages_compute_the_same() {
    let recording = || {
        let mut g = Graph::new();
        let x = g.input("x", [1, 8, 8, 4096], DType::Elem);
        let layer = Linear { cols: 64, bias: true, ..Linear::default() };
        let first = g.linear(&x, "first", layer).expect("it fits");
        let second = g.linear(&x, "second", Linear { residual: Some(&first), ..layer }).expect("it fits");
        g.output("y", &second);
        Recording::new(g)
    };
    let plan = recording().arenas(Storage::F32, NO_LIMIT).expect("there is no limit");
    assert_eq!(plan.in_place, [false, true], "else nothing is read in place");
    let mut results: Vec<Vec<f32>> = Vec::new();
    for device in cpu_and_best_gpu() {
        let weights = Weights::new(device.clone(), Box::new(MadeUp::default()));
        let mut session = Session::new(recording(), &weights).expect("it has room");
        if let Device::Gpu(gpu, _) = &device
            && gpu.adapter().kind == AdapterKind::Software
        {
            let variants = session.variants().expect("a GPU has variants");
            assert!(variants.iter().all(|variant| variant.name.contains(" in ")), "{variants:?}");
        }
        session.poison().expect("it can be written");
        session.write("x", &values("x", 64 * 4096)).expect("it is an input");
        session.run().expect("it runs");
        results.push(session.read("y").expect("it is an output"));
    }
    let largest = results[0].iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    for other in &results {
        let worst = results[0].iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5 * largest, "{worst} beside {largest}");
        assert_eq!(other.len(), 64 * 64);
    }
}

//! Tests of weights on the CPU device.

use super::*;
use crate::{Conv, Graph, Session};
use mobilediffusion_kernels::panels::Format;
use mobilediffusion_kernels::{Activation, WinogradForm};
use rayon::prelude::*;

#[test]
fn large_weights_are_loaded_in_chunks_and_small_ones_whole() {
    for (shape, layout) in [
        (&[640][..], Layout::Rows),
        (&[64, 64, 3, 3], Layout::Taps),
        (&[1, 8 << 20], Layout::Rows),
        // The packed layout begins with the taps, so a range of rows is not contiguous in it.
        (&[8 << 20, 1, 3, 3], Layout::DepthwiseTaps),
    ] {
        let found = chunks(shape, layout);
        assert!(found.len() == 1 && found[0] == (0..shape[0]), "{shape:?}: {found:?}");
    }
    assert_eq!(chunks(&[5, 1 << 19], Layout::Rows), [0..2, 2..4, 4..5]);
    let vocabulary = chunks(&[49_408, 768], Layout::Rows);
    assert!(vocabulary.iter().all(|chunk| chunk.len() * 768 <= CHUNK) && vocabulary.len() == 37, "{vocabulary:?}");
    assert_eq!(vocabulary.iter().map(Range::len).sum::<usize>(), 49_408);
}

/// Loader whose values are their own index, modulo a prime.
struct Counting;

impl WeightLoader for Counting {
    fn load_part(&self, _: &str, _: &[usize], part: Range<usize>) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(part.map(|i| (i % 4093) as f32).collect())
    }
}

/// The CPU form of a 3x3 convolution keeps four times as many values as a GPU does.
#[test]
fn an_error_on_the_cpu_says_what_the_cpu_needs() {
    let mut graph = Graph::new();
    let x = graph.input("x", [1, 8, 8, 64], DType::Elem);
    let y = graph.conv2d(&x, "conv", Conv::to(64)).expect("it fits");
    let large = graph.input("large", [1 << 15, 1 << 30], DType::Elem);
    let z = graph.activate(&large, Activation::Silu, 1.0).expect("the shape fits");
    [("y", &y), ("z", &z)].into_iter().for_each(|(name, tensor)| graph.output(name, tensor));
    let (recording, weights) = (Recording::new(graph), Weights::new(Device::CPU, Box::new(Counting)));
    weights.load(&recording, &mut |_, _| Flow::Continue).expect("they have room");
    let (bytes, on_gpu) = (weights.bytes(), recording.weight_bytes(Storage::F32) as u64);
    assert!(bytes > 3 * on_gpu, "{bytes} bytes, and {on_gpu} on a GPU");
    let error = Session::new(recording, &weights).expect_err("no process has 256 TiB").to_string();
    let needs = format!("at least {} bytes of activations, and {bytes} bytes of weights", (2_u64 << 47) + 2 * 4 * 4096);
    assert!(error.starts_with("out of host memory: `arena`") && error.ends_with(&needs), "{error}");
}

#[test]
fn chunks_make_up_the_packed_weight() {
    let weights = Weights::new(Device::CPU, Box::new(Counting));
    // 8-bit panels hold words that are not floats, so bits are compared.
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let (matrix, taps) = (vec![3, 2 << 20], vec![600, 1000, 3, 3]);
    for (shape, layout) in [
        (matrix, Layout::Rows),
        (taps.clone(), Layout::Taps),
        (taps.clone(), Layout::panels(1)),
        (taps.clone(), Layout::Panels { layers: 1, format: Format::F16 }),
        (taps.clone(), Layout::Panels { layers: 1, format: Format::Int8 }),
        (taps, Layout::Winograd(WinogradForm::Small)),
        (vec![130, 80_000], Layout::panels(1)),
        (vec![130, 80_000], Layout::Panels { layers: 1, format: Format::F16 }),
        (vec![130, 80_000], Layout::Panels { layers: 1, format: Format::Int8 }),
    ] {
        assert!(chunks(&shape, layout).len() > 1, "{shape:?}");
        let own = if shape.len() == 4 { Layout::Taps } else { Layout::Rows };
        let operand = Operand::read("w", shape.clone()).layout(own).host(layout);
        let Ok(Resident::Cpu(got)) =
            weights.to_cpu(WeightType::Floats, &[WeightRows::whole("w".to_owned(), shape.clone())], &operand)
        else {
            panic!("the host has room")
        };
        let want = layout.pack(&shape, Counting.load("w", &shape).unwrap());
        assert!(bits(&got) == bits(&want), "{shape:?} {layout:?}");
    }
    // Three weights in one tensor, of which each is packed by itself.
    let (shape, three) = (vec![130, 80_000], vec![3 * 130, 80_000]);
    for layout in [
        Layout::Rows,
        Layout::panels(3),
        Layout::Panels { layers: 3, format: Format::F16 },
        Layout::Panels { layers: 3, format: Format::Int8 },
    ] {
        let operand = Operand::weight("w", three.clone()).host(layout);
        let sources = ["a", "b", "c"].map(|name| WeightRows::whole(name.to_owned(), shape.clone()));
        let Ok(Resident::Cpu(got)) = weights.to_cpu(WeightType::Floats, &sources, &operand) else {
            panic!("the host has room")
        };
        let whole = vec![Counting.load("w", &shape).unwrap(); 3].concat();
        assert!(bits(&got) == bits(&layout.pack(&three, whole)), "{layout:?}");
    }
    // The last rows of a weight that is split into two tensors.
    let last = WeightRows { name: "w".to_owned(), shape: vec![5, 2 << 20], rows: 2..5 };
    let Ok(Resident::Cpu(got)) =
        weights.to_cpu(WeightType::Floats, std::slice::from_ref(&last), &Operand::read("w", last.selected_shape()))
    else {
        panic!("the host has room")
    };
    assert!(got[..] == Counting.load("w", &last.shape).unwrap()[4 << 20..], "other rows were loaded");
}

#[test]
fn both_sides_of_a_comparison_have_weights_whose_sums_are_exact() {
    let shape = vec![600, 1000, 3, 3];
    let source = WeightRows::whole("w".to_owned(), shape.clone());
    let operand = Operand::read("w", shape.clone()).dtype(DType::WeightSum).layout(Layout::Phases).host(Layout::Rows);
    let from_file = Counting.load("w", &shape).unwrap();
    for storage in [Storage::F32, Storage::F32.with_weights(WeightType::Int8)] {
        let exact = with_exact_sums(storage, &shape, from_file.clone());
        assert_eq!(exact == from_file, storage == Storage::F32, "{storage}");
        let weights = Weights::new(Device::CPU, Box::new(Counting)).rounded(storage);
        let mut on_gpu = Vec::new();
        let mut take = |_, values| {
            on_gpu.extend::<Vec<f32>>(values);
            Ok(())
        };
        weights.in_chunks(&source, &operand, &mut take).expect("it counts");
        assert!(on_gpu == Layout::Phases.pack(&shape, exact.clone()), "{storage} on a GPU");
        let sources = std::slice::from_ref(&source);
        let Ok(Resident::Cpu(on_cpu)) = weights.get(sources, &operand) else { panic!("the host has room") };
        assert!(on_cpu[..] == exact[..], "{storage} on the CPU");
        assert!(weights.values(sources, operand.dtype).expect("it counts") == exact, "{storage} for references");
    }
    assert!(chunks(&shape, Layout::Phases).len() > 1, "in one piece");
}

#[test]
fn weights_that_f16_does_not_hold_are_refused_where_they_are_stored_in_it() {
    struct Large;

    impl WeightLoader for Large {
        fn load_part(
            &self,
            _: &str,
            _: &[usize],
            part: Range<usize>,
        ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
            Ok(part.map(|i| if i == 200_000 { -65_505.0 } else { 65_504.0 }).collect())
        }
    }
    let operand = |rows: usize| Operand::weight("w", vec![rows, 1000]).host(Layout::panels(1));
    let get = |device: Device, rounding: Storage, rows: usize| {
        let weights = Weights::new(device, Box::new(Large)).rounded(rounding);
        weights.get(&[WeightRows::whole("w".to_owned(), vec![rows, 1000])], &operand(rows)).map(drop)
    };
    for (device, rounding, fits) in [
        (Device::CPU, Storage::F32, true),
        (Device::CPU, Storage::F16, false),
        (Device::Cpu(WeightType::F16), Storage::F32, false),
        (Device::Cpu(WeightType::Int8), Storage::F32, true),
    ] {
        get(device.clone(), rounding, 200).expect("f16 holds them");
        match get(device, rounding, 201) {
            Ok(()) => assert!(fits, "{rounding}: it was stored"),
            Err(error) => {
                let expected = "w: expected values from -65504 to 65504, which f16 holds, found -65505 among them";
                assert!(error.to_string().starts_with(expected) && !fits, "{rounding}: {error}");
            }
        }
    }
}

/// Loader whose values f16 holds exactly.
struct InHalves;

impl WeightLoader for InHalves {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        Ok(Counting.load_part(name, shape, part)?.into_iter().map(|value| value % 2048.0).collect())
    }

    fn is_f16(&self) -> bool {
        true
    }
}

#[test]
fn halves_are_kept_unless_other_values_are_asked_for() {
    let shape = vec![70, 32];
    let operand = Operand::weight("w", shape.clone()).host(Layout::panels(1));
    let values = InHalves.load("w", &shape).expect("it counts");
    let (halves, int8) =
        (Layout::Panels { layers: 1, format: Format::F16 }, Storage::F32.with_weights(WeightType::Int8));
    for (rounding, layout, expected) in [
        (Storage::F32, halves, values.clone()),
        (Storage::F16, halves, values.clone()),
        (int8, Layout::panels(1), int8.rounded(DType::Weight, &shape, values)),
    ] {
        let weights = Weights::new(Device::CPU, Box::new(InHalves)).rounded(rounding);
        let got = weights.get(&[WeightRows::whole("w".to_owned(), shape.clone())], &operand);
        let Ok(Resident::Cpu(got)) = got else { panic!("the host has room") };
        assert!(got[..] == layout.pack(&shape, expected)[..], "{rounding}");
    }
}

/// Loader that does other work of rayon's thread before it returns, as a parallel loop may that waits for its parts.
struct Yielding;

impl WeightLoader for Yielding {
    fn load_part(
        &self,
        name: &str,
        shape: &[usize],
        part: Range<usize>,
    ) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        rayon::yield_now();
        Counting.load_part(name, shape, part)
    }
}

#[test]
fn a_thread_of_rayon_may_need_a_weight_that_it_is_loading() {
    let (send, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let weights = Weights::new(Device::CPU, Box::new(Yielding));
        let rows = [WeightRows::whole("w".to_owned(), vec![5, 7])];
        let one = |_| weights.get(&rows, &Operand::read("w", [5, 7])).is_ok();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("the thread starts");
        let _ = send.send(pool.install(|| (0..3).into_par_iter().all(one)));
    });
    let all = done.recv_timeout(std::time::Duration::from_secs(30));
    assert_eq!(all, Ok(true), "the thread waits for itself");
}

//! A norm of a concatenation becomes two, one for each tensor, where the reader takes in the concatenation.

use super::{check, steps};
use mobilediffusion_graph::plan::NO_LIMIT;
use mobilediffusion_graph::{Conv, Graph, GraphError, GroupNorm, Recording};
use mobilediffusion_kernels::{Activation, DType, Storage};

/// Builds a norm of a concatenation, and a 3x3 convolution of the result. `other` is another reader of the result.
fn joined(other: Option<&str>) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    // Maps that steps write in every run: nothing is written over others.
    let [x, skip] = [("x", 36), ("skip", 28)].map(|(name, c)| {
        let x = g.input_of_every_run(name, [2, 8, 8, c], DType::Elem);
        g.activate(&x, Activation::Relu, 1.0)
    });
    let both = g.concat(&x?, &skip?)?;
    let normed = g.group_norm(&both, "norm", GroupNorm { groups: 4, eps: 1e-5 }, Activation::Silu)?;
    let y = g.conv2d(&normed, "conv", Conv::to(20))?;
    g.output("y", &y);
    match other {
        Some("output") => g.output("normed", &normed),
        Some(_) => {
            let relu = g.activate(&normed, Activation::Relu, 1.0)?;
            g.output("relu", &relu);
        }
        None => {}
    }
    Ok(g)
}

fn norms(recording: &Recording) -> Vec<(usize, u64)> {
    let nodes = recording.nodes().iter().enumerate();
    let norms = nodes.filter(|(_, node)| node.kernel.name() == "group_norm");
    norms.map(|(step, node)| (step, node.kernel.params_json()["c"].as_u64().unwrap_or(0))).collect()
}

#[test]
fn a_norm_of_a_concatenation_is_made_in_place() {
    let recording = check(|| joined(None).expect("it builds"));
    let found = norms(&recording);
    assert_eq!(found.iter().map(|(_, c)| *c).collect::<Vec<_>>(), [36, 28]);
    let last = steps(&recording).pop();
    assert_eq!(last.as_deref(), Some("conv2d: concat"), "the convolution reads both");
    let plan = recording.arenas(Storage::F32, NO_LIMIT).expect("it fits");
    // Where memory is short: once `x` is overwritten, there is room for the other.
    assert!(plan.in_place[found[0].0], "{found:?}: {:?}", plan.in_place);
}

#[test]
fn a_norm_whose_readers_want_one_tensor_stays_whole() {
    let output = check(|| joined(Some("output")).expect("it builds"));
    assert_eq!(norms(&output).len(), 1, "an output is one tensor");
    let activated = check(|| joined(Some("relu")).expect("it builds"));
    assert_eq!(norms(&activated).len(), 1, "an activation joins nothing");
}

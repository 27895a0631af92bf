//! Layers that read one tensor become one step, and nothing else does.

use super::check;
use mobilediffusion_graph::{Attend, Fusion, Graph, GraphError, GroupNorm, Linear, Node, Origin, Recording, Tensor};
use mobilediffusion_kernels::{Activation, DType, Phi};

/// Builds two attentions to a text. Their keys and values are computed once per text.
fn attentions(outputs: &[&str]) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let x = g.input_of_every_run("x", [1, 6, 32], DType::Elem);
    let text = g.input("text", [1, 5, 12], DType::Elem);
    let project = Linear { cols: 32, bias: true, ..Linear::default() };
    let mut y = x.clone();
    for layer in ["0", "1"] {
        y = g.scope(layer, |g| {
            let n = g.layer_norm(&y, "norm", 1e-5)?;
            let [q, k, v] = ["q", "k", "v"].map(|name| g.linear(&n, name, project));
            let attend = Attend { heads: 1, phi: Phi::Softmax, causal: false };
            let (k, v) = (k?, v?);
            let h = g.attention(&q?, &k, Some(&v), attend)?;
            let [k, v] = ["text_k", "text_v"].map(|name| g.linear(&text, name, project));
            let (k, v) = (k?, v?);
            g.tap("text_v", &v);
            if outputs.contains(&layer) {
                g.output(layer, &v);
            }
            g.attention(&h, &k, Some(&v), attend)
        })?;
    }
    g.output("y", &y);
    Ok(g)
}

#[test]
fn layers_of_one_tensor_are_one_step() {
    let build = |outputs: &'static [&str]| move || attentions(outputs).expect("it builds");
    let names = |recording: &Recording| recording.nodes().iter().map(|node| node.kernel.name()).collect::<Vec<_>>();
    let layers = |recording: &Recording| {
        let linear = recording.nodes().iter().filter(|node| node.kernel.name() == "linear");
        linear.map(|node| node.kernel.params_json()["layers"].as_u64().unwrap_or(0)).collect::<Vec<_>>()
    };
    // The second attention's keys and values of the text are computed with the first one's.
    let all = check(build(&[]));
    assert_eq!(layers(&all), [3, 4, 3], "{:?}", names(&all));
    assert_eq!(all.masks().iter().filter(|mask| **mask == 0b10).count(), 1, "one step depends on the text alone");
    let (plain, fused) = (Recording::with_fusion(attentions(&[]).expect("it builds"), Fusion::None), &all);
    assert_eq!((fused.macs(), plain.nodes().len() - fused.nodes().len()), (plain.macs(), 7));

    // Outputs stay tensors of their own.
    assert_eq!(layers(&check(build(&["0", "1"]))), [3, 2, 1, 3, 1]);
}

/// Parts are read by products, norms and concatenations too, in batches, and of rows that no part begins at by itself.
#[test]
fn parts_are_tensors_like_others() {
    let build = || {
        let mut g = Graph::new();
        let x = g.input_of_every_run("x", [2, 3, 20], DType::Elem);
        let text = g.input("text", [2, 3, 12], DType::Elem);
        let project = Linear { cols: 96, bias: true, ..Linear::default() };
        let made = ["a", "b", "c"].map(|name| g.linear(&text, name, project).expect("it builds"));
        for (i, part) in made.iter().enumerate() {
            let y = g.scope(&i.to_string(), |g| {
                let n = g.layer_norm(part, "norm", 1e-5)?;
                let h = g.concat(&x, &n)?;
                let h = g.linear(&h, "first", project)?;
                let joined = g.concat(&h, part)?;
                g.linear(&joined, "second", Linear { residual: Some(&h), ..project })
            });
            g.output(&i.to_string(), &y.expect("it builds"));
        }
        g
    };
    let fused = check(build);
    let parts = fused.tensors().iter().filter(|tensor| matches!(tensor.origin, Origin::Part(_))).count();
    assert_eq!(parts, 3, "{fused}");
}

#[test]
fn layers_stay_apart_where_one_step_would_cost_memory() {
    let layers = |build: &dyn Fn(&mut Graph, &Tensor)| {
        let mut g = Graph::new();
        let x = g.input("x", [1, 7, 8], DType::Elem);
        build(&mut g, &x);
        let recording = Recording::new(g);
        let of = |node: &Node| node.kernel.params_json()["layers"].as_u64();
        recording.nodes().iter().filter_map(of).collect::<Vec<_>>()
    };
    let wide = |cols| Linear { cols, ..Linear::default() };
    let product = |g: &mut Graph, x: &Tensor, name: &str, cols| g.linear(x, name, wide(cols)).expect("it builds");
    let sum = |g: &mut Graph, a: &Tensor, b: &Tensor| {
        let both = g.concat(a, b).expect("it builds");
        let y = g.scope("sum", |g| g.activate(&both, Activation::Silu, 1.0)).expect("it builds");
        g.output("y", &y);
    };
    assert_eq!(
        layers(&|g, x| {
            let (a, b) = (product(g, x, "a", 8), product(g, x, "b", 8));
            sum(g, &a, &b);
        }),
        [2]
    );
    // Another step lies between, and nothing is kept from run to run.
    assert_eq!(
        layers(&|g, x| {
            let a = product(g, x, "a", 8);
            let other = g
                .scope("other", |g| g.group_norm(&a, "norm", GroupNorm { groups: 2, eps: 1e-5 }, Activation::None))
                .expect("it builds");
            let b = product(g, x, "b", 8);
            sum(g, &other, &b);
        }),
        [1, 1]
    );
    // Different widths, and widths that are no whole vec4s.
    for (a, b) in [(8, 12), (6, 6)] {
        let found = layers(&|g, x| {
            let (a, b) = (product(g, x, "a", a), product(g, x, "b", b));
            sum(g, &a, &b);
        });
        assert_eq!(found, [1, 1], "{a} and {b} columns");
    }
    // One weight of two layers would lie in memory twice.
    assert_eq!(
        layers(&|g, x| {
            let (a, b) = (product(g, x, "a", 8), product(g, x, "a", 8));
            sum(g, &a, &b);
        }),
        [1, 1]
    );
    // The first result would lie in memory until the second is read.
    assert_eq!(
        layers(&|g, x| {
            let (a, b) = (product(g, x, "a", 8), product(g, x, "b", 8));
            let first = g.scope("first", |g| g.activate(&a, Activation::Silu, 0.5)).expect("it builds");
            g.output("first", &first);
            sum(g, &b, x);
        }),
        [1, 1]
    );
    // A residual whose memory the sum may take.
    assert_eq!(
        layers(&|g, x| {
            let (a, b) = (product(g, x, "a", 8), product(g, x, "b", 8));
            let y = g.linear(&a, "c", Linear { residual: Some(&b), ..wide(8) }).expect("it builds");
            g.output("y", &y);
        }),
        [1, 1, 1]
    );
    // The second result is read in every run, and the first by nothing that depends on more than the text.
    for (first, second) in [(0, 1), (1, 0)] {
        let found = layers(&|g, x| {
            let latent = g.input_of_every_run("latent", [1, 7, 8], DType::Elem);
            let made = [product(g, x, "a", 8), product(g, x, "b", 8)];
            let kept = g.concat(&made[first], x).expect("it builds");
            g.output("once", &kept);
            sum(g, &made[second], &latent);
        });
        assert_eq!(found, [1, 1], "{first} is read once");
    }
    // As many layers as fit into the smallest binding limit, with and without padding.
    for (k, cols) in [(1024, 8192), (5, 1 << 20)] {
        let found = layers(&|g, x| {
            let text = g.input("text", [1, 7, k], DType::Elem);
            let latent = g.input_of_every_run("latent", [1, 7, 4], DType::Elem);
            let made: Vec<Tensor> = (0..5).map(|i| product(g, &text, &i.to_string(), cols)).collect();
            for (i, y) in made.iter().enumerate() {
                let y = g.concat(y, &latent).expect("it builds");
                g.output(&i.to_string(), &y);
            }
            g.output("x", x);
        });
        assert_eq!(found, [4, 1], "{k} by {cols}");
    }
}

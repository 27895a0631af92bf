"""Turn ONNX's own test vectors into case files: `python reference/onnx_cases.py tests/data/onnx`.

Needs `onnx==1.22.0`, numpy and safetensors; nothing else in the project needs onnx. The operands of an operator seldom
have the layout of a kernel's. Each conversion says what it does to them, and none computes an answer: `expected` always
holds numbers of ONNX's output files, at most rearranged or scaled.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

DATA = Path(onnx.__file__).parent / "backend/test/data"
FOLDERS = ["node", "pytorch-converted", "pytorch-operator"]
LARGEST_FILE = 24 * 1024
# The expected values were computed in f32 and have rounding errors of their own.
ROUNDING = 4e-6


class Unfit(Exception):
    """The test needs something that no kernel does."""


def need(condition, why="unfit"):
    if not condition:
        raise Unfit(why)


def up4(size):
    return (size + 3) // 4 * 4


def rows(x, channels=None):
    return x.reshape(-1, channels or (x.shape[-1] if x.ndim else 1))


def channels_last(x):
    """Convert [n, c, ...] to [n, positions, c]."""
    return np.moveaxis(x, 1, -1).reshape(x.shape[0], -1, x.shape[1])


def case(kernel, params, expected, tolerance=None, **operands):
    return kernel, params, {**operands, "expected": expected}, tolerance


def conv(a, x, w, b=None, out=None):
    """Convert a convolution.

    Unequal padding, kernels that are not square and the missing axis of a one-dimensional convolution become explicit
    zeros. Groups become a dense weight with zeros between the groups.
    """
    dims = x.ndim - 2
    need(dims in (1, 2) and set(a.get("dilations", [1])) == {1})
    strides, pads = a.get("strides", [1] * dims), a.get("pads", [0] * 2 * dims)
    if a.get("auto_pad") == b"SAME_LOWER":
        extra = [max((-(-s // t) - 1) * t + k - s, 0) for s, t, k in zip(x.shape[2:], strides, w.shape[2:])]
        pads = [e - e // 2 for e in extra] + [e // 2 for e in extra]
    if dims == 1:
        x, w, out = x[:, :, None], w[:, :, None], out[:, :, None]
        strides, pads = strides * 2, [0, pads[0], 0, pads[1]]
    need(len(set(strides)) == 1 and max(w.shape[2:]) <= 3)
    group, each = a.get("group", 1), w.shape[0] // a.get("group", 1)
    bias = {} if b is None else {"bias": b}
    (n, c, height, width), (top, left, bottom, right) = x.shape, pads
    if group == c and each == 1 and w.shape[2:] == (3, 3) and set(pads) == {1} and strides[0] == 1:
        params = {"n": n, "h": height, "w": width, "c": c, "bias": b is not None}
        yield case("depthwise_conv2d", params, np.moveaxis(out, 1, -1), x=np.moveaxis(x, 1, -1), w=w, **bias)
    if group > 1:
        dense = np.zeros((w.shape[0], c, *w.shape[2:]), w.dtype)
        for o in range(w.shape[0]):
            at = o // each * w.shape[1]
            dense[o, at : at + w.shape[1]] = w[o]
        w = dense
    if x.nbytes > LARGEST_FILE:
        # Without padding an output pixel depends only on the input pixels under it, so a corner of the picture is
        # enough.
        need(set(pads) == {0} and strides[0] == 1)
        x, out = x[:1, :, :7, :6], out[:1, :, : 8 - w.shape[2], : 7 - w.shape[3]]
        n, c, height, width = x.shape
    size = 1 if w.shape[2:] == (1, 1) else 3
    more = [size - w.shape[2], size - w.shape[3]]
    w = np.pad(w, [(0, 0), (0, 0), (0, more[0]), (0, more[1])])
    start, end = (top, bottom) if (top, bottom) == (left, right) and not any(more) else (0, 0)
    if (start, end) != (top, bottom) or (start, end) != (left, right) or any(more):
        x = np.pad(x, [(0, 0), (0, 0), (top, bottom + more[0]), (left, right + more[1])])
    params = {"n": n, "h": x.shape[2], "w": x.shape[3], "ci": c, "co": w.shape[0], "kernel": size}
    params |= {"stride": strides[0], "pad_start": start, "pad_end": end, "upsample": 1, "bias": b is not None}
    yield case("conv2d", params, np.moveaxis(out, 1, -1), x=np.moveaxis(x, 1, -1), w=w, **bias)


def gemm(a, x, w, c=None, out=None):
    """Convert a product. A bias per column becomes the bias, a full matrix the residual; a scalar is repeated."""
    need(a.get("alpha", 1.0) == 1.0 and a.get("beta", 1.0) == 1.0)
    x, w = x.T if a.get("transA") else x, w if a.get("transB") else w.T
    operands = {}
    if c is not None:
        full = c.ndim == 2 and c.shape[0] > 1
        operands["residual" if full else "bias"] = c if full else np.broadcast_to(c.reshape(-1), w.shape[:1])
    params = {"rows": x.shape[0], "k": x.shape[1], "cols": w.shape[0]}
    params |= {name: name in operands for name in ("bias", "residual")}
    yield case("linear", params, out, x=x, w=w, **operands)


def matmul(_, x, w, out=None):
    """Convert a matrix product; of a stack of products, the first."""
    need(x.ndim >= 2 and w.ndim == x.ndim)
    x, w, out = (m.reshape(-1, *m.shape[-2:])[0] for m in (x, w, out))
    yield from gemm({}, x, w, out=out)


def attention(a, q, k, v, *rest, out=None):
    """Convert attention.

    The scale is multiplied into the queries, keys and values are repeated for the queries that share them, and head
    sizes are padded with zeros to a common multiple of four.
    """
    need(not rest and "softcap" not in a)
    if q.ndim == 3:
        heads = [a["q_num_heads"], a["kv_num_heads"], a["kv_num_heads"], a["q_num_heads"]]
        split = [x.reshape(*x.shape[:2], h, -1) for x, h in zip((q, k, v, out), heads)]
    else:
        split = [x.swapaxes(1, 2) for x in (q, k, v, out)]
    q, k, v, out = split
    repeat, dim = q.shape[2] // k.shape[2], up4(max(q.shape[3], v.shape[3]))
    factor = a.get("scale", q.shape[3] ** -0.5) * dim**0.5
    q = q if abs(factor - 1) < 1e-12 else (q.astype(np.float64) * factor).astype(q.dtype)
    k, v = k.repeat(repeat, 2), v.repeat(repeat, 2)
    wide = [np.pad(x, [(0, 0)] * 3 + [(0, dim - x.shape[3])]) for x in (q, k, v, out)]
    q, k, v, y = (x.reshape(*x.shape[:2], -1) for x in wide)
    params = {"n": q.shape[0], "queries": q.shape[1], "keys": k.shape[1], "heads": out.shape[2], "head_dim": dim}
    params |= {"phi": "softmax", "causal": bool(a.get("is_causal", 0)), "shared": False}
    tolerance = 2e-3 if q.dtype == np.float16 else ROUNDING
    yield case("attention", params, y, tolerance, q=q, k=k, v=v)


def softmax(a, x, out=None):
    """Convert a softmax to attention.

    With scaled unit vectors as keys the scores are the queries, and with unit vectors as values the output is the
    weights.
    """
    x, out = (rows(np.moveaxis(m, a.get("axis", -1), -1)) for m in (x, out))
    keys, dim = x.shape[1], up4(x.shape[1])
    need(dim <= 32)
    unit = np.eye(keys, dim)[None]
    x, out = (np.pad(m, [(0, 0), (0, dim - keys)])[None] for m in (x, out))
    params = {"n": 1, "queries": x.shape[1], "keys": keys, "heads": 1, "head_dim": dim}
    params |= {"phi": "softmax", "causal": False, "shared": False}
    yield case("attention", params, out, ROUNDING, q=x, k=unit * dim**0.5, v=unit)


def sigmoid(_, x, out=None):
    """Convert a sigmoid to the first weight of a softmax over the value and zero."""
    x, out = (np.pad(m.reshape(1, -1, 1), [(0, 0), (0, 0), (0, 3)]) for m in (x, out))
    params = {"n": 1, "queries": x.shape[1], "keys": 2, "heads": 1, "head_dim": 4}
    params |= {"phi": "softmax", "causal": False, "shared": False}
    unit = np.zeros((1, 2, 4))
    unit[0, 0, 0] = 1
    yield case("attention", params, out, ROUNDING, q=x, k=2 * unit, v=unit)


def activation(kind):
    def convert(a, x, out=None):
        need(a.get("approximate", b"none") == b"none" and a.get("alpha", 1.0) == 1.0)
        params = {"rows": rows(x).shape[0], "c": rows(x).shape[1], "activation": kind, "scale": 1.0}
        yield case("activation", params, rows(out), ROUNDING, x=rows(x))

    return convert


def add(_, x, y, out=None):
    # Tests in f64 hold values beyond the range of f32.
    need(out.dtype == np.float32)
    need(out.ndim == np.broadcast(x, y).ndim and out.shape == np.broadcast(x, y).shape)
    x, y, out = (rows(np.broadcast_to(m, out.shape)) for m in (x, y, out))
    yield case("add", {"rows": x.shape[0], "c": x.shape[1]}, out, a=x, b=y)


def concat(a, x, y, *rest, out=None):
    need(not rest)
    x, y, out = (rows(np.moveaxis(m, a["axis"], -1)) for m in (x, y, out))
    params = {"rows": x.shape[0], "a_channels": x.shape[1], "b_channels": y.shape[1]}
    yield case("concat", params, out, a=x, b=y)


def normalised(x, stats, weight, bias, out):
    """Convert a normalisation with given statistics to the kernel's scales and offsets, computed in f64."""
    n, c = x.shape[:2]
    mean, deviation = np.repeat(stats, c // stats.shape[1], 1).transpose(2, 0, 1)
    scale = deviation * weight
    norm = np.stack([scale, bias - mean * scale], 1)
    source = {"norm": {"channels": {"images": n, "activation": "none"}}}
    params = {"rows": x.size // c, "c": c, "source": source}
    x, out = (rows(channels_last(m), c) for m in (x, out))
    return case("group_norm", params, out, ROUNDING, x=x, norm=norm)


def group_norm(a, x, weight, bias, out=None):
    """Convert a GroupNorm or InstanceNorm, with statistics computed in f64."""
    if x.nbytes > LARGEST_FILE // 2:
        # Every channel is normalised by itself, so two are enough.
        need("num_groups" not in a)
        x, weight, bias, out = x[:1, :2], weight[:2], bias[:2], out[:1, :2]
    groups = a.get("num_groups", x.shape[1])
    wide = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    stats = np.stack([wide.mean(-1), (wide.var(-1) + a.get("epsilon", 1e-5)) ** -0.5], -1)
    yield normalised(x, stats, weight, bias, out)


def batch_norm(a, x, weight, bias, mean, var, out=None):
    """Convert a BatchNorm: every channel is a group with given statistics."""
    need(not a.get("training_mode"))
    deviation = (var.astype(np.float64) + a.get("epsilon", 1e-5)) ** -0.5
    stats = np.broadcast_to(np.stack([mean, deviation], -1), (x.shape[0], x.shape[1], 2))
    yield normalised(x, stats, weight, bias, out)


def layer_norm(a, x, weight, bias, out=None, mean=None, deviation=None):
    """Convert a LayerNorm. Several normalised axes become one. Its statistics, if returned, are a case of one group."""
    axis = a.get("axis", -1) % x.ndim
    c = int(np.prod(x.shape[axis:]))
    params = {"rows": x.size // c, "c": c, "eps": a.get("epsilon", 1e-5)}
    operands = {"x": rows(x, c), "weight": weight.reshape(-1), "bias": bias.reshape(-1)}
    yield case("layer_norm", params, rows(out, c), ROUNDING, **operands)
    stats = np.stack([mean.reshape(-1), deviation.reshape(-1)], -1)[:, None]
    params = {"n": x.size // c, "positions": x.shape[axis], "c": c // x.shape[axis], "groups": 1, "eps": params["eps"]}
    x = x.reshape(params["n"], params["positions"], params["c"])
    yield case("group_norm_stats", params, stats, {"absolute": 1e-6, "relative": ROUNDING}, x=x)


def resize(a, x, *rest, out=None):
    """Convert upsampling by a factor of two or more: of each repeated pixel the first two copies per axis are kept."""
    need(a["mode"] == b"nearest" and not {"coordinate_transformation_mode", "nearest_mode"} & set(a))
    factors = [o / i for o, i in zip(out.shape, x.shape)]
    need(factors[:2] == [1, 1] and all(f >= 2 and f == int(f) for f in factors[2:]))
    for axis in (2, 3):
        factor = int(factors[axis])
        out = out.take([i for i in range(out.shape[axis]) if i % factor < 2], axis)
    x, out = np.moveaxis(x, 1, -1), np.moveaxis(out, 1, -1)
    params = dict(zip("nhwc", x.shape))
    yield case("upsample_nearest", params, out, x=x)


def gather(a, data, ids, out=None):
    """Convert a lookup of rows in a table. The position embeddings are zero."""
    need(ids.min() >= 0 and data.ndim >= 2)
    axis = a.get("axis", 0)
    table = rows(np.moveaxis(data, axis, 0), data.size // data.shape[axis])
    out = np.moveaxis(out, range(axis, axis + ids.ndim), range(ids.ndim))
    ids = ids.reshape(-1, ids.shape[-1])
    (vocab, c), (n, length) = table.shape, ids.shape
    params = {"n": n, "l": length, "vocab": vocab, "positions": length, "c": c}
    position = np.zeros((length, c))
    yield case("embedding", params, out.reshape(n, length, c), ids=ids, token=table, position=position)


CONVERSIONS = {
    "Add": add,
    "Attention": attention,
    "BatchNormalization": batch_norm,
    "Concat": concat,
    "Conv": conv,
    "Gather": gather,
    "Gelu": activation("gelu"),
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "MatMul": matmul,
    "Relu": activation("relu"),
    "Resize": resize,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Swish": activation("silu"),
    "Upsample": resize,
}


def tensors(folder, kind):
    """Return the operands or results of a test, in order."""
    paths = sorted(folder.glob(f"test_data_set_0/{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.load_tensor(str(path))) for path in paths]


def convert(folder):
    """Return the cases of one test."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    need(len(graph.node) == 1 and graph.node[0].op_type in CONVERSIONS)
    node = graph.node[0]
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    fed = iter(tensors(folder, "input"))
    known |= {i.name: next(fed) for i in graph.input if i.name not in known}
    outputs = dict(zip(["out", "mean", "deviation"], tensors(folder, "output")))
    if node.op_type != "LayerNormalization":
        outputs = {"out": outputs["out"]}
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    operands = [known[name] for name in node.input if name]
    yield from CONVERSIONS[node.op_type](attributes, *operands, **outputs)


def stored(x):
    """Convert a tensor to a type of case files. f16 stays f16, other floats become f32, integers become i64."""
    whole = np.issubdtype(x.dtype, np.integer)
    dtype = np.int64 if whole else np.float16 if x.dtype == np.float16 else np.float32
    return np.ascontiguousarray(x, dtype)


def main():
    target = Path(sys.argv[1])
    total, seen, written = {}, set(), set()
    for folder in (path for name in FOLDERS for path in sorted((DATA / name).iterdir())):
        if "_expanded" in folder.name:
            continue
        try:
            cases = list(convert(folder))
        except Unfit:
            continue
        for kernel, params, arrays, tolerance in cases:
            arrays = {name: stored(x) for name, x in arrays.items()}
            content = repr(params).encode() + b"".join(x.tobytes() for x in arrays.values())
            if sum(x.nbytes for x in arrays.values()) > LARGEST_FILE or content in seen:
                continue
            seen.add(content)
            source = f"onnx {onnx.__version__}, {folder.relative_to(DATA).as_posix()}"
            metadata = {"kernel": kernel, "params": json.dumps(params), "source": source}
            if tolerance is not None:
                metadata["tolerance"] = json.dumps(tolerance)
            # Some names differ only in their suite, or in upper and lower case.
            name = f"{kernel}-{folder.parent.name}-{folder.name.removeprefix('test_')}".replace("pytorch-", "")
            path = target / f"{name.lower()}.safetensors"
            assert path not in written, path
            written.add(path)
            save_file(arrays, path, metadata)
            total[kernel] = total.get(kernel, 0) + 1
    print("\n".join(f"{count:4} {kernel}" for kernel, count in sorted(total.items())))


if __name__ == "__main__":
    main()

"""Models with open dimensions beside the batch's, and samples that differ in shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.testing.models import write

WIDTH, WORDS, CLASSES = 16, 50, 4


def encoder(folder: Path) -> Path:
    """Write ids, mask: int64[batch, length] -> logits: float32[batch, 4], states: float32[batch, length, 16].

    One layer of attention that leaves out what the mask leaves out, and a mean over the rest.
    """
    text = f"""
        encoder (int64[batch, length] ids, int64[batch, length] mask)
            => (float[batch, {CLASSES}] logits, float[batch, length, {WIDTH}] states)
            <float one = {{1.0}}, float far = {{-10000.0}}, int64[1] at1 = {{1}}, int64[1] at2 = {{2}}> {{
            x = Gather(words, ids)
            kept = Cast <to = 1> (mask)
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul(q, kt)
            out = Sub(one, kept)
            away = Mul(out, far)
            row = Unsqueeze(away, at1)
            masked = Add(scores, row)
            shares = Softmax <axis = -1> (masked)
            states = MatMul(shares, v)
            column = Unsqueeze(kept, at2)
            own = Mul(states, column)
            sums = ReduceSum <keepdims = 0> (own, at1)
            counts = ReduceSum <keepdims = 1> (kept, at1)
            mean = Div(sums, counts)
            logits = MatMul(mean, wo)
        }}"""
    weights = {
        "words": (WORDS, WIDTH),
        "wq": (WIDTH, WIDTH),
        "wk": (WIDTH, WIDTH),
        "wv": (WIDTH, WIDTH),
        "wo": (WIDTH, CLASSES),
    }
    return write(folder / "encoder.onnx", text, weights)


def convolutional(folder: Path) -> Path:
    """Write x: float32[batch, 3, height, width] -> y: float32[batch, 2, height, width]."""
    text = """
        convolutional (float[batch, 3, height, width] x) => (float[batch, 2, height, width] y) {
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu(c)
            y = Conv <kernel_shape = [1, 1]> (r, w2, b2)
        }"""
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (2, 8, 1, 1), "b2": (2,)}
    return write(folder / "convolutional.onnx", text, weights)


def sentences(count: int, least: int = 3, most: int = 24, seed: int = 0) -> dict[str, list[Array]]:
    """Return ids and masks of all ones, each of a length of its own: most are short."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.rint(rng.lognormal(np.log(8), 0.5, count)), least, most).astype(int)
    ids = [rng.integers(1, WORDS, n) for n in lengths]
    return {"ids": ids, "mask": [np.ones(n, np.int64) for n in lengths]}


def pictures(count: int, seed: int = 0) -> dict[str, list[Array]]:
    """Return pictures of one of three sizes each."""
    rng = np.random.default_rng(seed)
    sizes = [[(3, 16, 16), (3, 16, 24), (3, 32, 16)][n] for n in rng.integers(0, 3, count)]
    return {"x": [rng.standard_normal(size, np.float32) for size in sizes]}

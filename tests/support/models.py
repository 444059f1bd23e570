"""More small ONNX models as text, for what only hasten's own tests ask."""

from __future__ import annotations

from pathlib import Path

from hasten.testing.models import write


def depthwise_cnn(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 16, 16, 16] -> logits: float32[batch, 8]: a residual block, with a
    depthwise convolution in it, between a convolution and a matrix product."""
    text = f"""
        depthwise_cnn (float[{batch}, 16, 16, 16] x) => (float[{batch}, 8] logits)
            <float low = {{0.0}}, float high = {{6.0}}> {{
            [stem] c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            [relu1] r1 = Relu(c1)
            [depthwise] c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 32> (r1, w2, b2)
            [relu6] r2 = Clip(c2, low, high)
            [pointwise] c3 = Conv <kernel_shape = [1, 1]> (r2, w3, b3)
            [skip] s = Add(c3, r1)
            [relu2] r3 = Relu(s)
            [pool] p = GlobalAveragePool(r3)
            [flatten] f = Flatten <axis = 1> (p)
            [classifier] logits = Gemm(f, w4, b4)
        }}"""
    weights = {
        "w1": (32, 16, 3, 3),
        "b1": (32,),
        "w2": (32, 1, 3, 3),
        "b2": (32,),
        "w3": (32, 32, 1, 1),
        "b3": (32,),
        "w4": (32, 8),
        "b4": (8,),
    }
    return write(folder / "depthwise_cnn.onnx", text, weights)


def identity(folder: Path, datatype: str = "float", sizes: str = "1000") -> Path:
    """Write x: [batch, sizes] -> y, the same; `datatype` as ONNX's text has it."""
    kind = f"{datatype}[batch, {sizes}]"
    text = f"""
        identity ({kind} x) => ({kind} y) {{
            y = Identity(x)
        }}"""
    return write(folder / f"identity_{datatype}.onnx", text, {})


def fragile(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same, but NaN wherever a number is over 89."""
    text = """
        fragile (float[batch, 4] x) => (float[batch, 4] y) {
            e = Exp(x)
            zero = Sub(e, e)
            y = Add(x, zero)
        }"""
    return write(folder / "fragile.onnx", text, {})


def undefined(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y: NaN, whatever is asked."""
    text = """
        undefined (float[batch, 4] x) => (float[batch, 4] y) {
            zero = Sub(x, x)
            y = Div(zero, zero)
        }"""
    return write(folder / "undefined.onnx", text, {})


def solid(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same: what `fragile` should be."""
    text = """
        solid (float[batch, 4] x) => (float[batch, 4] y) {
            y = Identity(x)
        }"""
    return write(folder / "solid.onnx", text, {})


def mirrored(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row from its last number to its first."""
    text = """
        mirrored (float[batch, 4] x) => (float[batch, 4] y)
            <int64[1] begin = {-1}, int64[1] end = {-5}, int64[1] axis = {1}, int64[1] step = {-1}> {
            y = Slice(x, begin, end, axis, step)
        }"""
    return write(folder / "mirrored.onnx", text, {})


def sociable(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row less the mean over the batch."""
    text = """
        sociable (float[batch, 4] x) => (float[batch, 4] y) {
            mean = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub(x, mean)
        }"""
    return write(folder / "sociable.onnx", text, {})


def slow(folder: Path, rounds: int = 1000) -> Path:
    """Write x: float32[batch, 4] -> y: float32[batch, 256], by so many products, one after another.

    One takes a good 10 us for one row.
    """
    text = f"""
        slow (float[batch, 4] x) => (float[batch, 256] y)
            <int64 rounds = {{{rounds}}}, bool go = {{1}}> {{
            first = MatMul(x, spread)
            y = Loop (rounds, go, first) <body = round (int64 number, bool on, float[batch, 256] a)
                => (bool still, float[batch, 256] b) {{
                    still = Identity(on)
                    product = MatMul(a, mix)
                    b = Tanh(product)
                }}>
        }}"""
    return write(folder / "slow.onnx", text, {"spread": (4, 256), "mix": (256, 256)})

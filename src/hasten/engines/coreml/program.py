"""Core ML programs computed by torch, one function per operator, for hosts without Core ML.

Each operator is computed in float32 from the values in the package, and rounded to the type that
the program states. Core ML's own kernels sum in another order and, on the Neural Engine, in lower
precision.

Source: Apple, Core ML Tools API, "MIL Ops".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import CandidateError

if TYPE_CHECKING:
    import torch

_MANY_READ = {"concat": "values", "stack": "values", "einsum": "values"}


class CoreMlProgram:
    """Main function of a package.

    Args:
        package: Path of the .mlpackage folder.

    Raises:
        CandidateError: an operator isn't supported here; the message names it and its output.
    """

    def __init__(self, package: Path) -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto import load

        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load.load(spec, spec.specificationVersion, model.weights_dir)
        self._function: Any = program.functions["main"]
        self.inputs = [feature.name for feature in spec.description.input]
        self.outputs = [feature.name for feature in spec.description.output]
        self.operators = [op for op in self._function.operations if op.op_type != "const"]
        self._constants: dict[Any, Any] = {}
        for op in self.operators:
            if op.op_type.startswith("constexpr_"):
                self._constants[op.outputs[0]] = _constant(op.materialized_val_inference())
            elif op.op_type not in _OPERATORS:
                raise CandidateError(
                    f"Core ML's operator {op.op_type!r} (output {op.outputs[0].name!r}) can't be "
                    "computed on a host without Core ML"
                )
        self.operators = [op for op in self.operators if op.outputs[0] not in self._constants]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one request."""
        import torch

        values = dict(self._constants)
        for name, var in self._function.inputs.items():
            values[var] = torch.from_numpy(np.ascontiguousarray(inputs[name]))
        with torch.inference_mode():
            for op in self.operators:
                results = _OPERATORS[op.op_type](_Arguments(op, values, self._constants))
                several = isinstance(results, (tuple, list))
                for var, result in zip(op.outputs, results if several else [results], strict=True):
                    values[var] = _rounded(result, var.dtype)
            return {
                var.name: np.array(values[var].numpy() if var in values else var.val)
                for var in self._function.outputs
            }


class _Arguments:
    """Inputs and settings of one operator, by name."""

    def __init__(self, op: Any, values: Mapping[Any, Any], constants: dict[Any, Any]) -> None:
        self.op, self._values, self._constants = op, values, constants

    def __getattr__(self, name: str) -> Any:
        """Constant in Python's or numpy's form; None for one that isn't given."""
        var = getattr(self.op, name, None)
        value = None if var is None else var.val
        return value.item() if isinstance(value, np.ndarray) and not value.ndim else value

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor of this name; floats are read as float32."""
        return self._read(getattr(self.op, name))

    def optional(self, name: str) -> torch.Tensor | None:
        """Tensor of this name; None for one that isn't given."""
        return self.tensor(name) if getattr(self.op, name, None) is not None else None

    def tensors(self) -> list[torch.Tensor]:
        """Tensors of an operator that reads any number of them."""
        return [self._read(var) for var in getattr(self.op, _MANY_READ[self.op.op_type])]

    def ints(self, name: str) -> list[int]:
        """Constant list of integers."""
        return [int(number) for number in np.atleast_1d(getattr(self.op, name).val)]

    def axes(self, name: str = "axes") -> list[int]:
        """Constant list of axes; by default all axes of x."""
        var = getattr(self.op, name, None)
        if var is None or var.val is None:
            return list(range(self.op.x.rank))
        return self.ints(name)

    def _read(self, var: Any) -> torch.Tensor:
        if var in self._values:
            value = self._values[var]
        elif var in self._constants:
            value = self._constants[var]
        else:
            value = self._constants[var] = _constant(var.val)
        read: torch.Tensor = value.float() if value.is_floating_point() else value
        return read


def _constant(value: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(value))


def _rounded(value: torch.Tensor, dtype: Any) -> torch.Tensor:
    """Return a result in the type that the program states."""
    import torch
    from coremltools.converters.mil.mil import types

    return value.to(getattr(torch, np.dtype(types.nptype_from_builtin(dtype)).name))


def _functional() -> Any:
    from torch.nn import functional

    return functional


def _unary(name: str) -> Callable[[_Arguments], Any]:
    def compute(a: _Arguments) -> Any:
        import torch

        return getattr(torch, name)(a.tensor("x"))

    return compute


def _binary(name: str) -> Callable[[_Arguments], Any]:
    def compute(a: _Arguments) -> Any:
        import torch

        return getattr(torch, name)(a.tensor("x"), a.tensor("y"))

    return compute


def _reduce(name: str) -> Callable[[_Arguments], Any]:
    def compute(a: _Arguments) -> Any:
        import torch

        return getattr(torch, name)(a.tensor("x"), a.axes(), keepdim=bool(a.keep_dims))

    return compute


def _gelu(a: _Arguments) -> Any:
    return _functional().gelu(a.tensor("x"), approximate="none" if a.mode == "EXACT" else "tanh")


def _hard_sigmoid(a: _Arguments) -> Any:
    return (a.alpha * a.tensor("x") + a.beta).clamp(0, 1)


def _prelu(a: _Arguments) -> Any:
    return _functional().prelu(a.tensor("x"), a.tensor("alpha"))


def _select(a: _Arguments) -> Any:
    import torch

    return torch.where(a.tensor("cond").bool(), a.tensor("a"), a.tensor("b"))


def _linear(a: _Arguments) -> Any:
    return _functional().linear(a.tensor("x"), a.tensor("weight"), a.optional("bias"))


def _matmul(a: _Arguments) -> Any:
    x, y = a.tensor("x"), a.tensor("y")
    x = x.transpose(-1, -2) if a.transpose_x else x
    return x @ (y.transpose(-1, -2) if a.transpose_y else y)


def _einsum(a: _Arguments) -> Any:
    import torch

    return torch.einsum(a.equation, *a.tensors())


def _attention(a: _Arguments) -> Any:
    mask = a.optional("attn_mask")
    return _functional().scaled_dot_product_attention(
        a.tensor("query"), a.tensor("key"), a.tensor("value"), mask
    )


def _margins(a: _Arguments, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return the padding before and after each spatial axis."""
    if a.pad_type == "custom":
        pads = a.ints("pad")
        return list(zip(pads[::2], pads[1::2], strict=True))
    if a.pad_type == "valid":
        return [(0, 0)] * len(sizes)
    margins = []
    for size, width, stride in zip(sizes, kernel, a.ints("strides"), strict=True):
        whole = max(0, (-(-size // stride) - 1) * stride + width - size)
        less, more = whole // 2, whole - whole // 2
        margins.append((more, less) if a.pad_type == "same_lower" else (less, more))
    return margins


def _padded(x: torch.Tensor, margins: Sequence[tuple[int, int]], value: float) -> torch.Tensor:
    flat = [width for pair in reversed(margins) for width in pair]
    padded: torch.Tensor = _functional().pad(x, flat, value=value) if any(flat) else x
    return padded


def _conv(a: _Arguments) -> Any:
    x, weight = a.tensor("x"), a.tensor("weight")
    dilations = a.ints("dilations")
    kernel = [(n - 1) * d + 1 for n, d in zip(weight.shape[2:], dilations, strict=True)]
    x = _padded(x, _margins(a, x.shape[2:], kernel), 0.0)
    convolve = getattr(_functional(), f"conv{x.ndim - 2}d")
    return convolve(x, weight, a.optional("bias"), a.ints("strides"), 0, dilations, a.groups)


def _conv_transpose(a: _Arguments) -> Any:
    x, weight = a.tensor("x"), a.tensor("weight")
    convolve = getattr(_functional(), f"conv_transpose{x.ndim - 2}d")
    dilations = a.ints("dilations")
    whole = convolve(x, weight, a.optional("bias"), a.ints("strides"), 0, 0, a.groups, dilations)
    wanted = [int(size) for size in a.op.outputs[0].shape[2:]]
    begins = [0] * len(wanted)
    if a.pad_type == "custom":
        begins = a.ints("pad")[::2]
    elif a.pad_type != "valid":
        begins = [(have - want) // 2 for have, want in zip(whole.shape[2:], wanted, strict=True)]
    for axis, (begin, want) in enumerate(zip(begins, wanted, strict=True), start=2):
        missing = begin + want - whole.shape[axis]
        if missing > 0:  # ONNX's output padding: elements that no input reaches hold only the bias
            raise CandidateError(
                f"Core ML's conv_transpose that gives {a.op.outputs[0].name!r} is padded in a way "
                "that can't be computed on a host without Core ML"
            )
        whole = whole.narrow(axis, begin, want)
    return whole


def _windows(a: _Arguments, value: float) -> tuple[Any, list[int], list[int], list[int]]:
    """Return the padded tensor to pool, its kernel, its strides, and the padding per axis."""
    x, kernel, strides = a.tensor("x"), a.ints("kernel_sizes"), a.ints("strides")
    margins = _margins(a, x.shape[2:], kernel)
    if a.ceil_mode:
        for i, (size, width, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
            begin, end = margins[i]
            margins[i] = (begin, end + -(size + begin + end - width) % stride)
    return _padded(x, margins, value), kernel, strides, [sum(pair) for pair in margins]


def _max_pool(a: _Arguments) -> Any:
    x, kernel, strides, _ = _windows(a, -np.inf)
    return getattr(_functional(), f"max_pool{x.ndim - 2}d")(x, kernel, strides)


def _avg_pool(a: _Arguments) -> Any:
    import torch

    x, kernel, strides, padded = _windows(a, 0.0)
    pool = getattr(_functional(), f"avg_pool{x.ndim - 2}d")
    means = pool(x, kernel, strides)
    if not a.exclude_padding_from_average or not any(padded):
        return means
    ones = torch.ones_like(a.tensor("x"))
    counted = _padded(ones, _margins(a, ones.shape[2:], kernel), 0.0)
    beyond = [(0, have - got) for have, got in zip(x.shape[2:], counted.shape[2:], strict=True)]
    return means / pool(_padded(counted, beyond, 0.0), kernel, strides)


def _batch_norm(a: _Arguments) -> Any:
    return _functional().batch_norm(
        *(a.tensor(name) for name in ("x", "mean", "variance")),
        *(a.optional(name) for name in ("gamma", "beta")),
        eps=a.epsilon,
    )


def _instance_norm(a: _Arguments) -> Any:
    gamma, beta = a.optional("gamma"), a.optional("beta")
    return _functional().instance_norm(a.tensor("x"), weight=gamma, bias=beta, eps=a.epsilon)


def _layer_norm(a: _Arguments) -> Any:
    x, axes = a.tensor("x"), a.axes()
    centred = x - x.mean(axes, keepdim=True)
    normal = centred / (centred.square().mean(axes, keepdim=True) + a.epsilon).sqrt()
    gamma, beta = a.optional("gamma"), a.optional("beta")
    normal = normal if gamma is None else normal * gamma
    return normal if beta is None else normal + beta


def _softmax(a: _Arguments) -> Any:
    return a.tensor("x").softmax(a.axis)


def _depth_to_space(a: _Arguments) -> Any:
    x, block = a.tensor("x"), a.block_size
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(a: _Arguments) -> Any:
    x, block = a.tensor("x"), a.block_size
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _reduce_square(a: _Arguments) -> Any:
    return a.tensor("x").square().sum(a.axes(), keepdim=bool(a.keep_dims))


def _arg(name: str) -> Callable[[_Arguments], Any]:
    def compute(a: _Arguments) -> Any:
        return getattr(a.tensor("x"), name)(a.axis, keepdim=bool(a.keep_dims))

    return compute


def _reshape(a: _Arguments) -> Any:
    x = a.tensor("x")
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(a.ints("shape"))])


def _squeeze(a: _Arguments) -> Any:
    x = a.tensor("x")
    if getattr(a.op, "axes", None) is None:
        return x.squeeze()
    return x.squeeze(a.ints("axes"))


def _expand_dims(a: _Arguments) -> Any:
    x, axes = a.tensor("x"), a.ints("axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(a: _Arguments) -> Any:
    x = a.tensor("x")
    if a.split_sizes is not None:
        return x.split(a.ints("split_sizes"), a.axis)  # type: ignore[no-untyped-call]
    return x.chunk(a.num_splits, a.axis)


def _concat(a: _Arguments) -> Any:
    import torch

    joined = torch.cat(a.tensors(), a.axis)
    if a.interleave:
        raise CandidateError("an interleaved concat can't be computed on a host without Core ML")
    return joined


def _stack(a: _Arguments) -> Any:
    import torch

    return torch.stack(a.tensors(), a.axis)


def _slice_by_index(a: _Arguments) -> Any:
    x = a.tensor("x")

    def masks(name: str) -> list[bool]:
        value = getattr(a, name)
        return [False] * x.ndim if value is None else [bool(flag) for flag in np.atleast_1d(value)]

    strides = [1] * x.ndim if a.stride is None else a.ints("stride")
    squeezed = masks("squeeze_mask")
    window: list[Any] = []
    for begin, end, stride, open_begin, open_end, single in zip(
        a.ints("begin"),
        a.ints("end"),
        strides,
        masks("begin_mask"),
        masks("end_mask"),
        squeezed,
        strict=True,
    ):
        if single:
            window.append(begin)
        else:
            window.append(slice(None if open_begin else begin, None if open_end else end, stride))
    return _constant(np.ascontiguousarray(x.numpy()[tuple(window)]))


def _slice_by_size(a: _Arguments) -> Any:
    x = a.tensor("x")
    for axis, (begin, size) in enumerate(zip(a.ints("begin"), a.ints("size"), strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _pad(a: _Arguments) -> Any:
    x, widths = a.tensor("x"), a.ints("pad")
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[a.mode]
    whole = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    more: dict[str, Any] = {"constant_values": a.constant_val} if mode == "constant" else {}
    return _constant(np.pad(x.numpy(), whole, mode, **more))  # type: ignore[call-overload]


def _gather(a: _Arguments) -> Any:
    return _constant(np.take(a.tensor("x").numpy(), a.tensor("indices").numpy(), a.axis or 0))


def _gather_along_axis(a: _Arguments) -> Any:
    return a.tensor("x").gather(a.axis, a.tensor("indices").long())


def _upsample(mode: str) -> Callable[[_Arguments], Any]:
    def compute(a: _Arguments) -> Any:
        sizes = [int(size) for size in a.op.outputs[0].shape[2:]]
        corners = {"align_corners": bool(a.align_corners)} if mode == "bilinear" else {}
        return _functional().interpolate(a.tensor("x"), sizes, mode=mode, **corners)

    return compute


_OPERATORS: Mapping[str, Callable[[_Arguments], Any]] = {
    **{name: _unary(name) for name in ("relu", "sigmoid", "tanh", "exp", "exp2", "sqrt", "abs")},
    **{name: _unary(name) for name in ("floor", "ceil", "round", "sign", "sin", "cos", "tan")},
    **{name: _unary(name) for name in ("erf", "square", "logical_not", "sinh", "cosh", "atan")},
    **{name: _binary(name) for name in ("add", "sub", "mul", "pow", "maximum", "minimum")},
    **{name: _binary(name) for name in ("greater", "greater_equal", "less", "less_equal")},
    **{name: _binary(name) for name in ("not_equal", "logical_and", "logical_or", "logical_xor")},
    **{f"reduce_{name}": _reduce(torch) for name, torch in (("mean", "mean"), ("sum", "sum"))},
    **{f"reduce_{name}": _reduce(f"a{name}") for name in ("max", "min")},
    "reduce_sum_square": _reduce_square,
    "reduce_l2_norm": lambda a: _reduce_square(a).sqrt(),
    "reduce_l1_norm": lambda a: a.tensor("x").abs().sum(a.axes(), keepdim=bool(a.keep_dims)),
    "reduce_log_sum_exp": _reduce("logsumexp"),
    "reduce_argmax": _arg("argmax"),
    "reduce_argmin": _arg("argmin"),
    "equal": _binary("eq"),
    "real_div": _binary("true_divide"),
    "floor_div": _binary("floor_divide"),
    "mod": _binary("remainder"),
    "log": lambda a: (a.tensor("x") + a.epsilon).log(),
    "rsqrt": lambda a: (a.tensor("x") + a.epsilon).rsqrt(),
    "inverse": lambda a: (a.tensor("x") + a.epsilon).reciprocal(),
    "relu6": lambda a: a.tensor("x").clamp(0, 6),
    "clip": lambda a: a.tensor("x").clamp(a.alpha, a.beta),
    "silu": lambda a: _functional().silu(a.tensor("x")),
    "gelu": _gelu,
    "elu": lambda a: _functional().elu(a.tensor("x"), a.alpha),
    "leaky_relu": lambda a: _functional().leaky_relu(a.tensor("x"), a.alpha),
    "sigmoid_hard": _hard_sigmoid,
    "softplus": lambda a: _functional().softplus(a.tensor("x"), threshold=float("inf")),
    "prelu": _prelu,
    "select": _select,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "reshape": _reshape,
    "transpose": lambda a: a.tensor("x").permute(a.ints("perm")),
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "split": _split,
    "concat": _concat,
    "stack": _stack,
    "tile": lambda a: a.tensor("x").tile(a.ints("reps")),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "pad": _pad,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "upsample_nearest_neighbor": _upsample("nearest"),
    "upsample_bilinear": _upsample("bilinear"),
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "pixel_shuffle": lambda a: _functional().pixel_shuffle(a.tensor("x"), a.upscale_factor),
    "cast": lambda a: a.tensor("x"),
    "identity": lambda a: a.tensor("x"),
}

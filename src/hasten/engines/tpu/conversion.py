"""Conversion of torch's exported program to a JAX function, in float32, bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.engines.tpu.attention import attention
from hasten.engines.tpu.environment import first_line, load_jax, load_torchax, silenced
from hasten.engines.tpu.products import SeenRange, in_bfloat16, product_of, quantized
from hasten.errors import CandidateError, HastenError, InputError, NotCovered

Precision: TypeAlias = Literal["f32", "bf16", "int8"]
Function: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Function from inputs by name to outputs by name."""

_IN_FLOAT32 = frozenset(
    (
        "_log_softmax",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_softmax",
        "cos",
        "cumprod",
        "cumsum",
        "erfinv",
        "exp",
        "expm1",
        "grid_sampler_2d",
        "linalg_vector_norm",
        "log",
        "log10",
        "log1p",
        "log2",
        "log_softmax",
        "logsumexp",
        "mean",
        "native_group_norm",
        "native_layer_norm",
        "norm",
        "pow",
        "prod",
        "reciprocal",
        "rsqrt",
        "sin",
        "softmax",
        "sqrt",
        "std",
        "sum",
        "tan",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "var",
        "var_mean",
    )
)
"""Operators that aren't computed in bfloat16, whose 8 bits are too few for sums and powers.

Source: torch's documentation, "CUDA Ops that can autocast to float32".
"""

_OWN: Mapping[str, Callable[..., Any]] = {"aten.scaled_dot_product_attention.default": attention}


@dataclass(frozen=True)
class CapturedProgram:
    """Program that torch.export captured, decomposed into operators that torchax has.

    Attributes:
        exported: Functional `ExportedProgram`, in which nothing is written in place.
        states: Parameters, buffers and constants as JAX arrays, in the graph's order.
        inputs: Names of the user's inputs, in order.
        outputs: Number of output tensors.
    """

    exported: Any
    states: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: int


def read_program(path: Path) -> CapturedProgram:
    """Load a .pt2 file, and decompose its operators.

    Raises:
        CandidateError: the file can't be read, or the program writes to its own buffers in eval
            mode.
        InputError: torch isn't installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("a torch program needs torch: pip install 'hasten[tpu]'") from error
    with silenced():
        try:
            exported = torch.export.load(path)
            table = torch.export.default_decompositions()
            for kept in (torch.ops.aten.linear, torch.ops.aten.scaled_dot_product_attention):
                table.pop(kept.default, None)  # type: ignore[no-untyped-call]
            exported = exported.run_decompositions(table)
        except Exception as error:  # torch.export passes on any exception
            raise CandidateError(f"{path.name} can't be read: {first_line(error)}") from error
    signature = exported.graph_signature
    if written := [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate]:
        raise CandidateError(
            f"the program writes to {written[0]!r} as it runs; a TPU's program must keep no state"
        )
    inputs = tuple(str(name) for name in signature.user_inputs)
    return CapturedProgram(exported, _states(exported), inputs, len(signature.user_outputs))


def function_of(
    program: CapturedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    precision: Precision,
    ranges: Mapping[str, SeenRange] | None = None,
    keep_float: Sequence[str] = (),
) -> Function:
    """Return a program as a JAX function from one dict to another.

    Args:
        program: Program to convert.
        inputs: Names for the program's inputs, in its order.
        outputs: Names for the program's outputs, in its order.
        precision: Precision of the computation: "f32", with products in full precision; "bf16",
            with weights and activations in bfloat16, normalizations and sums in float32; or "int8",
            which is "bf16" with products with constant weights in int8.
        ranges: Range of each product's input by its node's name, for "int8".
        keep_float: Names of products to leave in bfloat16, for "int8".

    Raises:
        CandidateError: the call meets an operator that can't be converted; the message names its
            node.
    """
    rules = _Rules(precision, ranges or {}, frozenset(keep_float))
    return _bound(program, inputs, outputs, rules)


def products(
    program: CapturedProgram, inputs: Sequence[str], outputs: Sequence[str], requests: Sequence[Any]
) -> dict[str, SeenRange]:
    """Find the products with constant weights, and the ranges of their inputs.

    Args:
        program: Program to examine.
        inputs: Names for the program's inputs, in its order.
        outputs: Names for the program's outputs, in its order.
        requests: Requests to run it on, in float32; at least one.

    Returns:
        Ranges by the product's node name, in the program's order.

    Raises:
        CandidateError: the program can't be converted or run, or an input of a product isn't
            finite.
    """
    jax = load_jax()
    names: list[str] = []
    ranges: dict[str, SeenRange] = {}

    def run(values: Mapping[str, Any]) -> list[Any]:
        seen: dict[str, Any] = {}
        _bound(program, inputs, outputs, _Rules("f32", {}, frozenset(), seen))(values)
        names[:] = seen
        return list(seen.values())

    compiled = jax.jit(run)
    with silenced(), jax.default_matmul_precision("highest"):
        found = np.array([compiled(request) for request in requests])
    for name, each in zip(
        names, found.reshape(len(requests), len(names), 2).swapaxes(0, 1), strict=True
    ):
        if not np.isfinite(each).all():
            raise CandidateError(f"the input of {name!r} isn't finite on the calibration samples")
        ranges[name] = SeenRange(float(each[:, 0].min()), float(each[:, 1].max()))
    return ranges


@dataclass(frozen=True)
class _Rules:
    """Rules by which operators are computed.

    Attributes:
        precision: Precision of the computation.
        ranges: Range of each product's input, by its node's name.
        keep_float: Names of products to leave in bfloat16.
        seen: Dictionary that collects the ranges of products' inputs; None to collect none.
    """

    precision: Precision
    ranges: Mapping[str, SeenRange]
    keep_float: frozenset[str]
    seen: dict[str, Any] | None = None


def _bound(
    program: CapturedProgram, inputs: Sequence[str], outputs: Sequence[str], rules: _Rules
) -> Function:
    registry = load_torchax()
    run = _interpreter(program, registry.all_aten_ops, rules)

    def call(values: Mapping[str, Any]) -> dict[str, Any]:
        given = [values[name] for name in inputs]
        results = run(*program.states, *given)
        return dict(zip(outputs, results, strict=True))

    return call


def _states(exported: Any) -> tuple[Any, ...]:
    """Return parameters, buffers and constants in the order in which the graph takes them."""
    load_torchax()
    from torchax.ops.mappings import t2j

    kinds = {"PARAMETER": exported.state_dict, "BUFFER": exported.state_dict}
    found = []
    with silenced():
        for spec in exported.graph_signature.input_specs:
            if spec.kind.name == "USER_INPUT":
                continue
            values = kinds.get(spec.kind.name, exported.constants)
            tensor = (
                values[spec.target] if spec.target in values else exported.constants[spec.target]
            )
            if str(tensor.dtype) in ("torch.float64", "torch.complex64", "torch.complex128"):
                raise NotCovered(f"{spec.target} is {tensor.dtype}, which a TPU doesn't compute in")
            found.append(t2j(tensor.detach(), use_dlpack=False))
    return tuple(found)


def _interpreter(
    program: CapturedProgram, table: Mapping[Any, Any], rules: _Rules
) -> Callable[..., Any]:
    import torch

    jax = load_jax()
    jnp = jax.numpy

    class Interpreter(torch.fx.Interpreter):
        """Interpreter that runs each node by torchax's function for it."""

        def __init__(self) -> None:
            super().__init__(program.exported.graph_module)
            self.extra_traceback = False
            self.node: Any = None

        def run_node(self, n: Any) -> Any:
            self.node = n
            try:
                with jax.named_scope(n.name):
                    return super().run_node(n)
            except HastenError:
                raise
            except Exception as error:  # an operator's function may raise any exception
                raise CandidateError(
                    f"torchax can't convert {_called(n.target)} (node {n.name!r}): "
                    f"{first_line(error)}"
                ) from error

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if not isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
                return super().call_function(target, args, kwargs)
            function = self._function(target)
            product = product_of(_called(target), args, kwargs)
            if product is not None and _constant(product.weight) and not product.depthwise:
                if rules.seen is not None:
                    rules.seen[self.node.name] = (product.value.min(), product.value.max())
                if (seen := self._range()) is not None:
                    return quantized(product, seen)
            if product is not None and rules.precision != "f32":
                return in_bfloat16(product)
            args, kwargs = self._cast(target, args, kwargs)
            if all(map(_constant, _arrays((args, kwargs)))):
                with jax.ensure_compile_time_eval():
                    return function(*args, **kwargs)
            return function(*args, **kwargs)

        def _function(self, target: Any) -> Callable[..., Any]:
            if _called(target) in _OWN:
                return _OWN[_called(target)]
            entry = table.get(target) or table.get(getattr(target, "overloadpacket", None))
            if entry is None or not entry.is_jax_function or entry.needs_env:
                raise NotCovered(f"torchax has no {_called(target)} (node {self.node.name!r})")
            return entry.func  # type: ignore[no-any-return]

        def _range(self) -> SeenRange | None:
            """Return the range of a product's input if it is to be quantized, else None."""
            name = self.node.name
            if rules.precision != "int8" or name in rules.keep_float:
                return None
            return rules.ranges.get(name)

        def _cast(self, target: Any, args: Any, kwargs: Any) -> Any:
            """Return an operator's arguments in the precision that it is computed in."""
            if rules.precision == "f32":
                return args, kwargs
            wide = _called(target).split(".")[1] in _IN_FLOAT32
            to = jnp.float32 if wide else jnp.bfloat16

            def cast(value: Any) -> Any:
                floating = isinstance(value, jax.Array) and jnp.issubdtype(
                    value.dtype, jnp.floating
                )
                return value.astype(to) if floating else value

            return jax.tree.map(cast, (tuple(args), dict(kwargs)))

    def _constant(value: Any) -> bool:
        return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)

    def _arrays(values: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(values) if isinstance(leaf, jax.Array)]

    declared = _output_dtypes(program.exported)

    def run(*values: Any) -> list[Any]:
        with silenced():
            results = Interpreter().run(*values, enable_io_processing=False)
        return [
            jnp.asarray(value).astype(dtype) for value, dtype in zip(results, declared, strict=True)
        ]

    return run


def _output_dtypes(exported: Any) -> list[str]:
    """Return the outputs' types in the program, with 64 bits reduced to 32, as in JAX."""
    nodes = {node.name: node for node in exported.graph.nodes}
    found = []
    for name in exported.graph_signature.user_outputs:
        value: Any = nodes[name].meta["val"] if name in nodes else None
        if not hasattr(value, "dtype"):
            raise CandidateError(f"the program returns {name!r}, which isn't a tensor")
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype in ("float64", "complex64", "complex128"):
            raise NotCovered(f"the program returns {dtype}, which a TPU doesn't compute in")
        found.append({"int64": "int32", "bool": "bool_"}.get(dtype, dtype))
    return found


def _called(target: Any) -> str:
    """Return an operator's name: "aten.linear.default"."""
    return str(target)

"""Portable files of JAX: StableHLO with its weights, for processors and TPUs alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.tensors import TensorSpec
from hasten.engines.tpu.conversion import Function
from hasten.engines.tpu.environment import first_line, load_jax, silenced
from hasten.errors import CandidateError, HastenError, visible

PLATFORMS = ("cpu", "tpu")
_KNOWN_CALLS = frozenset({"Sharding", "mhlo.topk", "shape_assertion", "stablehlo.dynamic_top_k"})
"""Functions of the runtime that JAX's operators call, none of which runs code on the host."""
_LACKING = re.compile(r"MLIR translation rule for primitive '(\w+)' not found for platforms?\b(.*)")


def write(function: Function, inputs: Sequence[TensorSpec], path: Path, *, exact: bool) -> Any:
    """Trace a function for these inputs, and write the program that JAX exports.

    Args:
        function: Function of a dict of inputs.
        inputs: Settled specs of the inputs.
        path: Path to write to.
        exact: Whether float32 products have full precision; otherwise a TPU computes them in
            bfloat16.

    Returns:
        Program as written and read again, a `jax.export.Exported`.

    Raises:
        CandidateError: an operator can't be converted, or a TPU lacks it; the message names its
            node.
    """
    jax = load_jax()
    given = {spec.name: jax.ShapeDtypeStruct(spec.sizes, narrowed(spec.dtype)) for spec in inputs}
    traced = jax.jit(function)
    try:
        with silenced(), jax.default_matmul_precision("highest" if exact else "default"):
            exported = jax.export.export(traced, platforms=PLATFORMS)(given)
            content = exported.serialize()
    except HastenError:
        raise
    except Exception as error:  # JAX passes on any exception
        raise CandidateError(_refused(error, function, given)) from error
    path.write_bytes(content)
    return read(path)


def read(path: Path) -> Any:
    """Read a program that `write` wrote.

    Raises:
        CandidateError: the file can't be read: it is of another kind, or from a newer version; or it calls
            functions of the runtime by name, which may run a program's own code.
    """
    jax = load_jax()
    try:
        with silenced():
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            calls = _calls(exported)
    except OSError as error:
        raise CandidateError(f"can't read {path}: {error.strerror or error}") from error
    except Exception as error:  # flatbuffers and MLIR may raise any exception
        raise CandidateError(f"{path.name} isn't a JAX program: {first_line(error)}") from error
    if calls:
        raise CandidateError(
            f"{path.name} calls {visible(sorted(calls)[0])!r:.200}, a function of the runtime that no converted "
            "model needs"
        )
    return exported


def _calls(exported: Any) -> set[str]:
    """Return the functions of the runtime that a program calls by name, but for those of JAX's own operators."""
    module = _module(exported)  # without it, MLIR frees what is looked through
    pending, found = [module.operation], set[str]()
    while pending:
        operation = pending.pop().operation
        if operation.name == "stablehlo.custom_call":
            found.add(str(operation.attributes["call_target_name"]).strip('"'))
        pending += [one for region in operation.regions for block in region for one in block]
    return found - _KNOWN_CALLS


@dataclass(frozen=True)
class Kinds:
    """Types that a matrix product or a convolution computes in, on a TPU.

    Attributes:
        left: Element type of the first operand: "f32", "bf16", "i8".
        right: Element type of the second operand.
        result: Element type of the result.
        full: Whether full precision is asked for.
    """

    left: str
    right: str
    result: str
    full: bool = False


def products(exported: Any) -> list[Kinds]:
    """Return the types of every matrix product and convolution of an exported program."""
    found: list[Kinds] = []
    for operation in _walked(_module(exported).operation):
        if operation.name in ("stablehlo.dot_general", "stablehlo.convolution"):
            values = (*operation.operands, *operation.results)
            left, right, result = (str(value.type.element_type) for value in values)
            settings = dict(operation.attributes)
            found.append(
                Kinds(left, right, result, "HIGHEST" in str(settings.get("precision_config")))
            )
    return found


def text(exported: Any) -> str:
    """Return an exported program as text, without long constants."""
    return str(_module(exported).operation.get_asm(large_elements_limit=8))


def _module(exported: Any) -> Any:
    jax = load_jax()
    given = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in exported.in_avals]
    args, kwargs = jax.tree.unflatten(exported.in_tree, given)
    with silenced():
        return jax.jit(exported.call).lower(*args, **kwargs).compiler_ir("stablehlo")


def _walked(operation: Any) -> Iterator[Any]:
    """Yield an operation and all inside it; of branches by platform, only the TPU's."""
    operation = operation.operation
    yield operation
    regions = list(operation.regions)
    if operation.name == "stablehlo.case" and len(regions) == len(PLATFORMS):
        chosen = operation.operands[0].owner
        if getattr(chosen, "name", "") == "stablehlo.case":  # it chooses by platform
            regions = regions[PLATFORMS.index("tpu") :]
    for region in regions:
        for block in region:
            for inner in block:
                yield from _walked(inner)


def shapes(exported: Any) -> dict[str, tuple[int, ...]]:
    """Return the outputs' shapes by name."""
    jax = load_jax()
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {name: tuple(map(int, aval.shape)) for name, aval in outputs.items()}


def narrowed(dtype: str) -> str:
    """Return the type that JAX uses for a type; 64-bit integers become 32-bit ones.

    Raises:
        CandidateError: a TPU doesn't compute in this type.
    """
    if dtype in ("float64", "complex64", "complex128"):
        raise CandidateError(
            f"an input or output of the model is {dtype}, which a TPU doesn't compute in"
        )
    return {"int64": "int32", "uint64": "uint32"}.get(dtype, dtype)


def _refused(error: Exception, function: Function, given: Any) -> str:
    said = first_line(error)
    lacking = _LACKING.search(said)
    if lacking is None:
        return f"JAX can't export the program: {said}"
    node = _traced_in(lacking.group(1), function, given)
    where = f" (node {node!r})" if node else ""
    return f"XLA has no {lacking.group(1)} for a TPU{where}"


def _traced_in(primitive: str, function: Function, given: Any) -> str:
    """Return the node that a JAX primitive came from; "" if it isn't known."""
    jax = load_jax()

    def search(jaxpr: Any, outer: str) -> str:
        for equation in jaxpr.eqns:
            scope = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
            if equation.primitive.name == primitive:
                return scope.partition("/")[0]
            for inner in jax.core.jaxprs_in_params(equation.params):
                if found := search(inner, scope):
                    return found
        return ""

    with silenced():
        return search(jax.make_jaxpr(function)(given).jaxpr, "")

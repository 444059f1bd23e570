"""From a case's network to an ONNX file, by each way out of torch, and torch's own answer."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from zoo_cases import OLD, RECENT, Arrays, Case, Way
from zoo_checks import requests_of, sample_of

from hasten.inputs.models.source import find_model, load_model
from hasten.passes.silence import silenced

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """An ONNX file of a network.

    Attributes:
        path: The file.
        opset: Version of ONNX's own operators.
        nodes: Number of nodes.
        frozen: Reason why the batch is frozen; "" where it is open.
        multiplications: Count of one request by hand or by torch; 0 where nobody counts.
        differs: How far ONNX Runtime's answer is from the network's own; None where unknown.
        given: Name of the network in another form, which `hasten optimize` gets instead of the file.
    """

    path: Path
    opset: int
    nodes: int
    frozen: str
    multiplications: int
    differs: float | None
    given: str = ""


def export(case: Case, way: Way, folder: Path) -> Exported:
    """Export a case's network one way, with an open batch where the way allows it.

    Raises:
        Exception: whatever the exporter raises.
    """
    network, file = case.network(), folder / "model.onnx"
    if case.own is not None:
        return _by_hasten(case, network, folder)
    if hasattr(network, "predict"):
        return _of_rows(case, network, way, file)
    if isinstance(network, onnx.ModelProto):
        onnx.save(network, file)
        alone = requests_of(case.drawn(1, 1), case.scalars)[0]
        return _found(file, "", case.multiplications or 0, alone, [])
    import torch

    samples = case.batch(2, 1)
    one = {name: torch.from_numpy(array[:1]) for name, array in samples.items()}
    two = {name: torch.from_numpy(array) for name, array in samples.items()}
    frozen = ""
    try:
        with torch.no_grad():
            wide = network(*two.values())
        first = wide[0] if isinstance(wide, tuple) else wide
        if len(first) != 2:
            raise ValueError("the network takes one sample at a time")
        _written(network, two, case, way, file, batch=True)
    except Exception as error:  # whatever an exporter raises; then the batch is frozen
        frozen = said(error)
        _written(network, one, case, way, file, batch=False)
    with torch.no_grad():
        own = network(*one.values())
    truth = own if isinstance(own, tuple) else (own,)
    counted = case.multiplications
    found = _found(
        file,
        frozen,
        _counted(network, one) if counted is None else counted,
        {name: array[:1] for name, array in samples.items()},
        [value.numpy() for value in truth],
    )
    if case.brought is None:
        return found
    return replace(found, given=case.brought(network, folder))


def _written(
    network: Any,
    inputs: dict[str, Any],
    case: Case,
    way: Way,
    file: Path,
    *,
    batch: bool,
) -> None:
    import torch

    names = {"input_names": list(inputs), "output_names": list(case.outputs)}
    first = {0: "batch"} if batch else {}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # Dynamo traces some networks with gradients alone: DeBERTa has autograd functions of its own.
    with silenced(), warnings.catch_warnings(), torch.set_grad_enabled(way == "dynamo"):
        warnings.simplefilter("ignore")
        if way == "dynamo":
            dimensions = {
                name: torch.export.Dim(name)
                for name in {
                    *first.values(),
                    *(n for one in case.open_axes.values() for n in one.values()),
                }
            }
            named = [{**first, **case.open_axes.get(name, {})} for name in inputs]
            axes = tuple({axis: dimensions[name] for axis, name in one.items()} for one in named)
            torch.onnx.export(
                network, tuple(inputs.values()), file, dynamo=True, verbose=False,
                dynamic_shapes=_as_forward_takes_them(network, axes), external_data=False, **names,
            )  # fmt: skip
        else:
            everything = (*inputs, *case.outputs)
            axes = {name: {**first, **case.open_axes.get(name, {})} for name in everything}
            torch.onnx.export(
                network, tuple(inputs.values()), file, dynamo=False,
                opset_version=OLD if way == "opset11" else RECENT,
                dynamic_axes={name: one for name, one in axes.items() if one}, **names,
            )  # fmt: skip


def _as_forward_takes_them(network: Any, axes: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the open axes of each input in the form of forward's parameters; None where none is open."""
    if not any(axes):
        return None
    kinds = [one.kind for one in inspect.signature(network.forward).parameters.values()]
    return (axes,) if inspect.Parameter.VAR_POSITIONAL in kinds else axes


def _by_hasten(case: Case, network: Any, folder: Path) -> Exported:
    """Bring a network that only hasten's own frontends export; its own answers are the truth."""
    given = case.brought(network, folder) if case.brought is not None else ""
    alone = requests_of(case.drawn(1, 1))[0]
    made = load_model(
        find_model(given, trust_code="--trust-code" in case.options), sample_of(alone), folder
    )
    truth = case.own(network)(alone) if case.own is not None else {}
    own = [truth[spec.name] for spec in made.outputs]
    found = _found(made.path, "", case.multiplications or 0, alone, own)
    return replace(found, given=given)


def _counted(network: Any, inputs: dict[str, Any]) -> int:
    """Return the multiplications that torch's own counter sees; those with padding count there."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    spelled = sdpa_kernel(SDPBackend.MATH)  # it doesn't know the processor's fused attention
    with torch.no_grad(), spelled, FlopCounterMode(display=False) as counter:
        network(*inputs.values())
    return int(counter.get_total_flops()) // 2


def _of_rows(case: Case, model: Any, way: Way, file: Path) -> Exported:
    from skl2onnx import to_onnx

    if way == "script":
        raise ValueError("there is one exporter of scikit-learn's models, skl2onnx")
    rows = case.drawn(2, 1)["x"]
    opset = {"": OLD, "ai.onnx.ml": 2} if way == "opset11" else None
    made = to_onnx(model, rows, options={"zipmap": False}, target_opset=opset)
    renamed = {made.graph.input[0].name: "x"}
    for node in made.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    made.graph.input[0].name = "x"
    onnx.save(made, file)
    truth = [model.predict(rows[:1])]
    if hasattr(model, "predict_proba"):
        truth.append(model.predict_proba(rows[:1]))
    return _found(file, "", case.multiplications or 0, {"x": rows[:1]}, truth)


def _found(
    file: Path, frozen: str, multiplications: int, inputs: Arrays, truth: list[np.ndarray]
) -> Exported:
    proto = onnx.load(file, load_external_data=False)
    opset = next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    return Exported(
        file, opset, len(proto.graph.node), frozen, multiplications, _differs(file, inputs, truth)
    )


def _differs(file: Path, inputs: Arrays, truth: list[np.ndarray]) -> float | None:
    found = Original(file)(inputs)
    worst = 0.0
    for own, other in zip(truth, found.values(), strict=False):
        if own.shape != other.shape:
            return None
        apart = np.abs(own.astype(np.float64) - other).max(initial=0)
        worst = max(worst, float(apart / max(np.abs(own).max(initial=0), 1e-12)))
    return worst


class Original:
    """The exported file on ONNX Runtime as it comes: what people have without hasten."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(file)
        self._names = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))


def said(error: BaseException) -> str:
    """Return what lies behind an error in one line; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub("\x1b\\[[0-9;]*m|  \\[Caused by .*", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]

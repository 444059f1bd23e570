"""A run without data: inputs are made up, exact candidates alone may ship, others are drafted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.certificate.draws import EXACT, ONE_SHARE, Method
from hasten.certificate.planning import samples_needed
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.made_up import MadeUpInputs, axes_of, make_up, plans
from hasten.inputs.metrics import default_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_output
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, SameAnswers
from hasten.inputs.models.embedding import lookups_of
from hasten.inputs.models.source import load_model
from hasten.optimization.job import Job
from hasten.optimization.order import Order
from hasten.passes.onnx_files import read_onnx
from hasten.passes.silence import first_line, silenced

if TYPE_CHECKING:
    import onnx

_BRANCHES = ("If", "Loop")
POPULATION = "made-up inputs: no data was given"
_SAMPLES = 64
_FLIPS = 0.02
"""Share of answers that is expected to change, as `hasten plan` expects by default."""
_SEARCHED = 0.3


def check_order(order: Order, target: Target, **given: Any) -> None:
    """Check that nothing was asked that takes data.

    Args:
        order: Order of the run.
        target: Device to run on.
        **given: Further arguments of the call by name, None where they weren't given.

    Raises:
        InputError: something takes data; the message names it.
    """
    asked = {
        **{name: value is not None for name, value in given.items()},
        "ask_labels": order.ask_labels is not None,
        "states": bool(order.states),
        "accept_uncertified": order.accept_uncertified,
    }
    for name, wanted in asked.items():
        if wanted:
            raise InputError(f"{name}= needs data to judge with: give data=, or leave it out")
    if target.kind == "compile-only":
        raise InputError(
            f"{target.device} isn't available, and models for it are judged on data: give data="
        )


def load_without_data(job: Job, found: Any) -> tuple[Model, Dataset]:
    """Load a model, and make up inputs that it can run.

    Args:
        job: The run at work; a note on the inputs is added.
        found: Model that `find_model` returned.

    Raises:
        InputError: the model can't be loaded, or no made-up input suits it.
    """
    folder = job.folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = load_model(found, None, folder, job.order.custom_ops)
    proto = read_onnx(model, weights=False)
    rows = {table.input: table.least for table in lookups_of(proto, model.inputs)}
    ways = plans(model.inputs, deciding_inputs(proto.graph))
    arrays, plan = _that_run(model, ways, rows, job.order.seed)
    job.notes.append(_said(model, plan))
    return model, ArrayDataset(arrays)


def deciding_inputs(graph: onnx.GraphProto) -> set[str]:
    """Return the names of inputs by whose values, not sizes, a graph chooses a branch or repeats a part."""
    makers = {name: node for node in graph.node for name in node.output}
    left = [name for node in graph.node if node.op_type in _BRANCHES for name in node.input[:2]]
    found: set[str] = set()
    while left:
        name = left.pop()
        if name and name not in found:
            found.add(name)
            node = makers.get(name)
            if node is not None and node.op_type not in ("Shape", "Size"):
                left += node.input
    return found.intersection(value.name for value in graph.input)


def metric_without_data(model: Model) -> Metric:
    """Return the metric that compares answers where neither data nor a metric was given.

    Nothing inexact can ship then, so no tolerance of the user's is needed. The only output of class scores
    is compared by its class, if a row of it belongs to each sample; otherwise all outputs are compared.

    Args:
        model: The model.
    """
    scores = class_output(model.outputs)
    batches = {spec.shape[0] for spec in model.inputs if spec.shape}
    batches = {1, *(size for size in batches if isinstance(size, str))}
    if scores is None or scores.shape[0] not in batches:
        return SameAnswers()
    return default_metric(None, model.outputs)


def comparison_note(model: Model) -> str:
    """Return a note on how the outputs of a model without class scores are compared."""
    floats = ["float" in spec.dtype for spec in model.outputs]
    names = ", ".join(spec.name for spec in model.outputs)
    how = "they must be equal"
    if any(floats):
        how = f"floats may differ by {100 * EXACT_TOLERANCE:g}% of the largest, as rounding makes them"
        how += "" if all(floats) else ", and all else must be equal"
    return f"answers were compared with the original's by every output ({names}): {how}"


def _that_run(
    model: Model, ways: Sequence[MadeUpInputs], rows: dict[str, int], seed: int
) -> tuple[dict[str, Array], MadeUpInputs]:
    """Return made-up samples that ONNX Runtime can answer, where it is installed."""
    why = ""
    for plan in ways:
        arrays = make_up(model.inputs, plan, rows, _SAMPLES, seed)
        why = _failure(model, arrays)
        if not why:
            return arrays, plan
    shown = ", ".join(map(str, model.inputs))
    raise InputError(f"made-up inputs don't suit the model, which takes {shown}: give data=; {why}")


def _failure(model: Model, arrays: dict[str, Array]) -> str:
    """Return why a model can't answer the first sample; empty where it can, or nothing can tell.

    Where ONNX Runtime can't open the model, no input can be tried, and the search says which engine can.
    """
    try:
        import onnxruntime
    except ImportError:
        return ""
    from hasten.passes.sensitivity import session_of

    settled = model.settled_by({name: array[0] for name, array in arrays.items()})
    request = {
        spec.name: arrays[spec.name][:1].reshape([int(size) for size in spec.shape])
        for spec in settled.request
    }
    with silenced():
        try:
            if model.files:
                session = onnxruntime.InferenceSession(str(model.path))
            else:
                session = session_of(read_onnx(model), model)
        except (CandidateError, InputError):
            raise
        except Exception:  # the runtime raises exceptions of its own
            return ""
        try:
            session.run(None, request)
        except Exception as error:
            return first_line(error)
    return ""


def _said(model: Model, plan: MadeUpInputs) -> str:
    """Return a note that says how the inputs were made up."""
    taken = {name: plan.sizes[name] for spec in model.inputs for name in axes_of(spec)}
    sizes = ", ".join(f"{name} {size}" for name, size in taken.items())
    at = f", with the open sizes {sizes}" if sizes else ""
    return (
        f"no data was given: {_SAMPLES} inputs were made up{at}; all times and answers come from "
        "these inputs, and only candidates with the original's own precision may ship"
    )


def data_for_a_certificate(order: Order) -> str:
    """Return a note on how much data a certificate takes."""
    method: Method = EXACT if order.guard == "net" else ONE_SHARE
    share = _FLIPS if order.guard != "lost" else _FLIPS / 2
    drop = 0.0 if order.guard == "net" else share
    begin = f"a certificate at --max-drop {100 * order.max_drop:g}% takes"
    try:
        sealed = samples_needed(share, drop, order.max_drop, order.confidence, method=method)
    except InputError:
        return f"{begin} data: hasten plan says how much"
    judging = sealed / (1 - _SEARCHED)
    count = math.ceil(judging + min(order.calibration, judging / 2))
    unit = 10 ** max(0, len(str(count)) - 2)  # the plan counts to the sample
    return (
        f"{begin} about {math.ceil(count / unit) * unit:,} samples in all, where "
        f"{100 * _FLIPS:g}% of the answers change: hasten plan counts for other shares"
    )


def drafts_note(drafts: Sequence[tuple[str, float]]) -> str:
    """Return a note on what inexact candidates could reach, in times the default engine's speed.

    Args:
        drafts: Label of each drafted candidate, and the baseline's latency over its own, fastest first.
    """
    if not drafts:
        return "no inexact candidate was faster than the default engine, even as a draft"
    shown = ", ".join(f"{label} {speedup:.2f}x" for label, speedup in drafts)
    return (
        f"inexact forms, in drafts on made-up inputs, compared with the default engine: {shown}; none ships, since "
        "only data can tell whether their answers hold"
    )


def drafts_folder(job: Job) -> Path:
    """Return a new folder for drafts in the run's folder."""
    folder = job.folder / "drafts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

"""Check of the default engine's answers on one sample: by the standard's evaluator, then by other engines.

onnx's evaluator follows the standard in numpy, but not everywhere: in release 1.23 Softmax of opset 11 on an
axis that isn't the last, BatchNormalization of opset 9 and MaxPool padded SAME_LOWER answer otherwise than
the standard says. The first two are right once the model's operators are upgraded. So the evaluator's word
alone raises no alarm.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable

from hasten.core.tensors import Tensors
from hasten.engines.reference import Reference
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE
from hasten.measure.candidate import Single
from hasten.measure.exactness import difference
from hasten.measure.workbench import Workbench
from hasten.passes import random_numbers
from hasten.passes.onnx_files import read_onnx


def cross_check(
    bench: Workbench,
    baseline: Single,
    own: Tensors,
    samples: Spool,
    others: Iterable[Single],
    *,
    limit_s: float,
) -> str:
    """Return a note where the default engine's answer may be wrong; empty where nothing speaks for it.

    A model that draws random numbers has no right answer, and the note says so.

    Args:
        bench: Workbench that runs engines.
        baseline: The default engine, on the untouched model.
        own: Outputs of the default engine on the first sample, each of shape `(1, ...)`.
        samples: Samples, of which the first is answered.
        others: Other candidates; those of other engines on the untouched model, of its own precision,
            are asked where the evaluator answers otherwise, one after another until one can tell.
        limit_s: Longest time for the evaluator, and for each step of another engine.
    """
    if drawn := _drawn(bench):
        return drawn
    bench = dataclasses.replace(bench, limit_s=limit_s)
    gap, until = math.inf, time.monotonic() + limit_s
    for evaluator in (Reference(), Reference(upgraded=True)):
        left_s = until - time.monotonic()
        if left_s <= 0:
            break  # a model that is too large for one is too large for the other
        own_bench = dataclasses.replace(bench, limit_s=left_s)
        answer = _answer(own_bench, Single((), evaluator), samples)
        if answer is not None and (apart := difference(answer, own)) < math.inf:
            standard, gap = answer, apart
            if gap <= EXACT_TOLERANCE:
                return ""
    if not math.isfinite(gap):
        return ""  # it can't evaluate the model, or not in the outputs' shapes
    for other in _independent(baseline, others):
        found = _answer(bench, other, samples)
        if found is None:
            continue
        if (apart := difference(found, own)) <= EXACT_TOLERANCE:
            return ""
        second = other.engine.words()
        agree = difference(found, standard) <= EXACT_TOLERANCE
        return (
            _contradicted(baseline, second, gap) if agree else _all_differ(baseline, second, apart)
        )
    who = baseline.engine.words()
    return (
        f"{who} and onnx's own evaluator give different answers to one sample, by {gap:.1e} of "
        "the largest output, and no other engine here runs the model to show which is right; "
        f"{_advice(who)}"
    )


def _drawn(bench: Workbench) -> str:
    """Return a note on an operator that draws random numbers; empty where there is none."""
    try:
        return random_numbers.words(read_onnx(bench.model, weights=False))
    except CandidateError:  # of a model that isn't an ONNX file nothing is known
        return ""


def _contradicted(baseline: Single, second: str, gap: float) -> str:
    who = baseline.engine.words()
    return (
        f"{who} may answer wrongly: on one sample it differs by {gap:.1e} of the largest output from "
        f"{second} and from onnx's own evaluator, which agree; {_advice(who)}"
    )


def _all_differ(baseline: Single, second: str, apart: float) -> str:
    who = baseline.engine.words()
    return (
        f"{who} and {second} give different answers to one sample, by {apart:.1e} of the largest "
        "output, and onnx's own evaluator agrees with neither: the model may magnify rounding, "
        "or one of them is wrong; "
        f"{_advice(who)}"
    )


def _advice(who: str) -> str:
    return (
        f"this run treats the answers of {who} as right, so compare them with the answers of the "
        "framework that the model comes from"
    )


def _independent(baseline: Single, others: Iterable[Single]) -> Iterable[Single]:
    """Return the untouched model on each engine that isn't the default one, by its first settings."""
    first: dict[type, Single] = {}
    for other in others:
        if not other.passes and other.exact and type(other.engine) is not type(baseline.engine):
            first.setdefault(type(other.engine), other)
    return first.values()


def _answer(bench: Workbench, candidate: Single, samples: Spool) -> Tensors | None:
    """Return a candidate's outputs on the first sample; None where it can't answer it in time."""
    try:
        opened = bench.open(candidate)
    except (CandidateError, InputError):
        return None
    try:
        return bench.predict_one(opened, samples)
    except CandidateError:
        return None
    finally:
        opened.worker.kill()

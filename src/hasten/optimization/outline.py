"""Outline of a run: what it will do and roughly how long it will take, said before the search."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.certificate.verdict import goal
from hasten.core.progress import Outline, StageName
from hasten.core.records import type_name
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.measure.candidate import Single
from hasten.measure.effort import EFFORTS, Effort
from hasten.optimization.job import Job
from hasten.optimization.order import Order
from hasten.optimization.ready import Ready
from hasten.reporting.sizes import size_in_words

_NORMAL = "about 2 to 7 minutes for a model that takes a few milliseconds, on an idle machine"
_LONGER = "longer for a larger model, or while other programs run"
_USUALLY = {
    "quick": f"about a minute for a small model, on an idle machine; {_LONGER}",
    "normal": f"{_NORMAL}; {_LONGER}",
    "thorough": f"more than with normal effort, which takes {_NORMAL}; {_LONGER}",
}
"""Usual time of a run by its effort: see the measurements in docs/explanation/results.md."""
_NAMED = 3
"""Largest number of transformations that are named."""


def outline_of(
    job: Job, ready: Ready, proposed: Sequence[Single], *, drafted: Sequence[Single] = ()
) -> Outline:
    """Return the outline of a run, once its model and data are read.

    Args:
        job: The run at work.
        ready: Model and data of the run.
        proposed: Candidates that the search begins with.
        drafted: Candidates that are only timed, since there is no data to judge them by.
    """
    order = job.order
    facts = (
        ("model", _model(job, ready)),
        ("data", _data(ready)),
        ("machine", _machine(ready)),
        ("tries", _tries(proposed, drafted)),
        ("promise", _promise(ready)),
        ("time", _time(order, proposed)),
        *(("check", doubt) for doubt in job.doubts),
    )
    return Outline(
        facts,
        _stages(ready, order.effort, proposed),
        order.time_limit_s,
        open_ended=order.effort.depth == "all" or bool(ready.extents),
    )


def _model(job: Job, ready: Ready) -> str:
    model = ready.model
    name = "" if job.folder in model.path.parents else f"{model.path.name}, "
    inputs = "; ".join(map(str, model.request or model.inputs))
    return f"{name}{size_in_words(model.size_bytes)}, takes {inputs}"


def _data(ready: Ready) -> str:
    parts = ready.parts
    if ready.made_up:
        return "none was given, so inputs are made up"
    labels = parts.search.labels
    missing = missing_labels(ready.promise.metric, labels)
    how = "with labels" if labels is not None else "without labels"
    if missing is not None and missing.any():
        how = "without labels" if missing.all() else "some with labels"
    search, sealed, calibration = len(parts.search), len(parts.sealed), len(parts.calibration)
    calibrate = f"{calibration:,} calibrate"
    total = search + sealed + calibration
    if ready.training is not None:
        calibrate, total = f"{calibration:,} of the training data calibrate", search + sealed
    noun = "sequences" if ready.unrolled is not None else "samples"
    return (
        f"{total:,} {noun}, {how}: {calibrate}, {search:,} guide the search, {sealed:,} are "
        "reserved for the test"
    )


def _machine(ready: Ready) -> str:
    target = ready.target
    threads = f"{target.threads} thread{'' if target.threads == 1 else 's'}"
    if target.kind == "compile-only":
        return f"{target.device}, which isn't available: its own tools compare speeds"
    return f"{target.processor}, {threads}" + (
        f", with {target.device}" if target.kind == "attached" else ""
    )


def _tries(proposed: Sequence[Single], drafted: Sequence[Single]) -> str:
    if not proposed:
        return "fixed-point programs, with fewer and fewer bits as long as they are accurate enough"
    both = [*proposed, *drafted]
    made = list(dict.fromkeys(one.passes[-1].words() for one in both if one.passes))
    named = [*made[:_NAMED], *([f"{len(made) - _NAMED} more"] if len(made) > _NAMED else [])]
    what = f"{len(proposed)} forms of the model to start with"
    on = f", on {', '.join(_engines(both))}"
    by = f"; transformations: {'; '.join(named)}" if named else ""
    only = f"; {len(drafted)} more are only timed" if drafted else ""
    return f"{what}{on}{by}{only}"


def _engines(candidates: Sequence[Single]) -> list[str]:
    """Return the engines in words, without the settings in which they come as well."""
    found: list[str] = []
    for words in dict.fromkeys(one.engine.words() for one in candidates):
        if not any(known in words for known in found):
            found.append(words)
    return found


def _promise(ready: Ready) -> str:
    promise = ready.promise
    if ready.made_up:
        return "none: without data, only forms that keep the model's own precision may ship"
    sure = f"{100 * promise.confidence:.6g}% confidence"
    what = goal(promise.guard, type_name(promise.metric), promise.max_drop).removeprefix("that ")
    noun = "" if "answers" in what else f" in {promise.metric.noun}"
    return f"{what}{noun}, tested at {sure} before anything inexact ships"


def _time(order: Order, proposed: Sequence[Single]) -> str:
    if order.time_limit_s is not None:
        return f"at most about {order.time_limit_s:.0f} s, the time limit"
    if not proposed:
        return "a few minutes to half an hour for a small network; the router takes most of it"
    usual = next((name for name, effort in EFFORTS.items() if effort == order.effort), "")
    return _USUALLY.get(usual, "unknown, because the effort is your own")


def _stages(ready: Ready, effort: Effort, proposed: Sequence[Single]) -> tuple[StageName, ...]:
    if ready.target.kind == "compile-only":
        return ("prepare", "try", "certify")
    inexact = "draft" if ready.made_up else "try"
    search = ("exact", inexact) if len(proposed) > 1 else ("exact",)
    measured = effort.ceilings or effort.curve_s or effort.load_s or effort.starts
    further = ("curve",) if measured else ()
    return ("prepare", *search, "race", "certify", "figures", *further)

"""Find the methods that reach the budget, and train their networks one after another."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.records import from_record
from hasten.core.words import lost_in_words
from hasten.engines.base import Engine
from hasten.errors import CandidateError, InputError
from hasten.lightening.int8 import LOST, QuantizationAware, int8_score
from hasten.lightening.prospects import Prospect, fastest
from hasten.lightening.pruned import PrunedNetwork
from hasten.lightening.students import fitting
from hasten.lightening.task import Task
from hasten.lightening.training.examples import teachable
from hasten.lightening.training.loop import Training
from hasten.lightening.ways import (
    Lighter,
    Unchanged,
    Way,
    folder_name,
    hopeless,
    train_way,
)
from hasten.reporting.rows import latency


def trained(
    task: Task, kinds: Sequence[str], students: int, architectures: Sequence[str]
) -> list[Lighter]:
    """Train the networks that fit the budget; train those that lose too much in int8 for int8 too.

    A method that fails leaves a note, and the others go on.

    Args:
        task: Task of the lighter networks.
        kinds: Methods to use: "students", "pruned", "scratch".
        students: Number of other architectures to train.
        architectures: Names of architectures to choose among; empty for the whole catalogue.

    Raises:
        InputError: nothing meets the budget (the message names the fastest), or every training
            failed.
    """
    found = task.kept("original", lambda: _original(task))
    original = from_record(Prospect, found, trusted=Engine.paths(task.engines))
    task.notes.append(
        f"the model itself takes {latency(original.latency_ns)} ({original.label}); the budget is "
        f"{latency(task.budget_ns)}"
    )
    if original.latency_ns <= task.budget_ns:
        return [_within(task, original)]
    failed: list[str] = []
    ways: list[Way] = []
    if "pruned" in kinds:
        try:
            ways.append(PrunedNetwork.of(task, original))
        except (CandidateError, InputError) as why:
            failed.append(f"pruned: {why}")
    if "students" in kinds or "scratch" in kinds:
        try:
            found = fitting(task, students, architectures)
            ways += found if "students" in kinds else []
            if "scratch" in kinds and task.data.labels is not None and teachable(task.data.labels):
                ways.append(found[0].alone())
            elif "scratch" in kinds:
                failed.append("scratch: the training data has no labels to learn from")
        except (CandidateError, InputError) as why:
            failed.append(f"other architectures: {why}")
    if not ways:
        raise InputError(
            f"no method gives a model within {latency(task.budget_ns)}: {'; '.join(failed)}"
        )
    before = len(task.notes)
    task.notes.extend(failed)
    done: list[Lighter] = []
    for way in ways:
        _train(task, way, done)
    for lighter in list(done):
        if _int8_costs(task, lighter):
            _train(task, QuantizationAware(lighter), done)
    if not done:
        raise InputError(f"every method failed: {'; '.join(task.notes[before:])}")
    return done


def _within(task: Task, original: Prospect) -> Lighter:
    """Return the model itself, trained for int8, if only its int8 form meets the budget.

    Raises:
        InputError: nothing needs training: the model loses little in int8, or meets the budget in
            float.
    """
    as_if_trained = Training(task.score(task.exact), (), 0, 0.0, 0.0, None)
    itself = Lighter(Unchanged(), task.network.module, as_if_trained, 0.0, task.source)
    done: list[Lighter] = []
    if original.precision == "int8" and _int8_costs(task, itself):
        _train(task, QuantizationAware(itself), done)
    if not done:
        raise InputError(
            f"the model meets the budget of {latency(task.budget_ns)} without training: "
            f"{original.label} takes {latency(original.latency_ns)}; let optimize certify that, or "
            "give a smaller budget"
        )
    return done[0]


def _original(task: Task) -> Prospect:
    """Time the user's own network in its fastest form on this machine."""
    return fastest(
        {"the model": task.source},
        task.target,
        task.folder / "prospects",
        engines=task.engines,
        listen=task.listen,
    )["the model"]


def _train(task: Task, way: Way, done: list[Lighter]) -> None:
    """Train one network and add it to those that are done; note the reason if it fails."""
    try:
        # Other methods start elsewhere: a pruned network keeps what the teacher has learned.
        alike = [one.training for one in done if type(one.way) is type(way)]
        lighter = train_way(task, way, hopeless(alike))
    except CandidateError as why:
        task.notes.append(f"{way.name}: {str(why).removeprefix(f'{way.name}: ')}")
        return
    done.append(lighter)
    if lighter.training.caution:
        task.notes.append(f"{way.name}: {lighter.training.caution}")
    elif lighter.training.epochs < 1:
        task.notes.append(
            f"{way.name} saw only {lighter.training.epochs:.0%} of the training data in its time: "
            "give more minutes"
        )
    if lighter.note:
        task.notes.append(f"{way.name}: {lighter.note}")


def _int8_costs(task: Task, lighter: Lighter) -> bool:
    """Return whether int8 costs a network a large part of the accepted drop."""
    kept = f"int8-{folder_name(lighter.way.name)}"
    score: float | None = task.kept(kept, lambda: int8_score(task, lighter))
    if score is None:
        return False
    lost = lighter.training.score - score
    task.tell(
        "int8",
        lighter.way.name,
        1,
        1,
        f"{lighter.way.name}: {lost_in_words(100 * lost)} in int8 on held-out samples",
    )
    if lost > LOST * task.max_drop and task.objective.feature_weight == 1:
        task.notes.append(
            f"{lighter.way.name} loses {100 * lost:.2f} points in int8; it isn't trained for "
            "int8, because its answers have no gradient"
        )
        return False
    return lost > LOST * task.max_drop

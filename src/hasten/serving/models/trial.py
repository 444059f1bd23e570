"""Try a bundle before it is served: compare it with its exact model, and with what was served before."""

from __future__ import annotations

from dataclasses import replace

from hasten.bundle import Loaded
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.varying import of_one_size
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.changes import disagreeing_rows
from hasten.serving.models.comparison import is_broken
from hasten.serving.models.opening import OpenBundle
from hasten.serving.models.pace import BackgroundPace
from hasten.serving.models.served import ServedModel

COMPARED = 8
"""Requests by which models are compared."""


def check_interface(opened: OpenBundle, old: ServedModel | None) -> None:
    """Check that clients of the old model can use the new one unchanged.

    Raises:
        CandidateError: the inputs or outputs of the two models differ.
    """
    if old is None:
        return
    told = _interface(old.inputs, old.outputs)
    now = _interface(opened.first.inputs, opened.first.outputs)
    if told != now:
        raise CandidateError(
            f"{opened.path} takes and returns {now}, but the model served as {old.name!r} takes "
            f"and returns {told}: unload that model first, or register this one under another name"
        )


def compare(opened: OpenBundle, pace: BackgroundPace) -> bool:
    """Compare a bundle's winner with its exact model before it is served, and note if they disagree.

    Returns:
        Whether the winner answers NaN where the exact model doesn't.
    """
    if opened.standby is None or not opened.timed:
        return False
    disagreed = compared = 0
    for request in opened.asked(COMPARED, seed=1):
        answers = answers_of(opened, opened.first, request, pace)
        exact = answers_of(opened, opened.standby, request, pace)
        if answers is None or exact is None:
            continue
        if is_broken(answers) and not is_broken(exact):
            opened.notes.append("it answers NaN here: the exact model answers in its place")
            return True
        rows = disagreeing_rows(answers, of_one_size(exact, opened.manifest.varying))
        compared += len(rows)
        disagreed += int(rows.sum())
    if 2 * disagreed > compared:
        opened.notes.append(
            f"on {inputs_of(opened)}, {disagreed} of {compared} answers differ from the exact model's"
        )
    return False


def answers_of(
    opened: OpenBundle, session: Loaded, request: Tensors, pace: BackgroundPace
) -> dict[str, Array] | None:
    """Answer a request of the server's own; None if it is a random one that fails, which is no fault.

    Raises:
        CandidateError: a request that the bundle keeps fails.
        InputError: it refuses such a request.
    """
    try:
        return pace.run(session, request)
    except (CandidateError, InputError):
        if opened.requests:
            raise
        return None


def inputs_of(opened: OpenBundle) -> str:
    return "samples of its data" if opened.requests else "random inputs"


def _interface(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str:
    """Describe a model's inputs and outputs, with all open dimensions written alike."""
    specs = [
        replace(s, shape=tuple(n if isinstance(n, int) else "?" for n in s.shape))
        for s in (*inputs, *outputs)
    ]
    return ", ".join(map(str, specs))

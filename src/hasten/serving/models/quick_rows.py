"""Answer the JSON of one row on the event loop's own thread, before a thread could have been woken.

For models that take microseconds and keep no one else waiting. Whatever isn't the usual case is left to
the usual way, which also states every error: it starts over, from the body.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hasten.bundle.rows import NOWHERE, RowPath
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError
from hasten.inputs.pipeline.base import EitherOr
from hasten.serving.models.batching import INLINE_NS
from hasten.serving.models.comparison import is_broken
from hasten.serving.models.decisions import as_json

if TYPE_CHECKING:
    from hasten.serving.models.served import ServedModel

LONGEST_BYTES = 16 << 10
"""Longest body of a row that is read on the loop's thread."""


class QuickRows:
    """Answers single rows of one served model at once.

    Args:
        model: Model whose rows are answered.
        path: Way from a row to the model's input, and from its outputs to the decision.

    Attributes:
        before: Bytes before the decision in the answer.
        ambiguous: Whether a column is named as the protocol's `inputs` are, so that JSON alone doesn't
            tell a row from tensors.
    """

    def __init__(self, model: ServedModel, path: RowPath) -> None:
        # Imported here: settings of a server are read without what answers need.
        import orjson

        from hasten.serving.wire.http_bodies import head_of_decision

        self._model = model
        self.before = head_of_decision(model.name, model.version)
        self.ambiguous = "inputs" in path.reader.step.columns
        self._read, self._after, self._dumps = path.reader.read_quickly, path.after, orjson.dumps
        self._array_option = orjson.OPT_SERIALIZE_NUMPY
        self._statistics, self._scheduler = model.statistics, model.scheduler
        first = model.opened.first
        bound = first.bind_row()
        self._row, self._outputs, self._run = bound.row, bound.outputs, bound.run
        self._inputs = {path.name: bound.row}
        self._firsts = {name: array[0] for name, array in bound.outputs.items()}
        self._times = (0, 0, 0, 0)
        self._mark = model.mark
        self._clock_ns = model.clock_ns
        self._deadline_ns = model.settings.deadline_ns or math.inf
        self._guarded = model.opened.standby is not None
        self._instead = model.opened.which == "exact"
        (array, *others) = self._outputs.values()
        self._one = array if not others and array.size == 1 and array.dtype.kind == "f" else None
        self._written: Callable[[], bytes | None] = self._decided
        if self._one is not None and len(path.after) == 1:
            both = path.after[0].either_or(self._one.dtype)
            if both is not None:
                with contextlib.suppress(TypeError, ValueError):  # as of a plug-in's own values
                    self._written = _writer(self._one, both)

    @classmethod
    def of(cls, model: ServedModel) -> QuickRows | None:
        """Return what answers a model's rows at once; None for a model whose rows always wait in line.

        That is one that takes something else than rows, or isn't known to take microseconds; one whose
        answers are cached or traced; and one whose calls can't be bound, as where the file gives the axis of
        the rows no name.
        """
        opened, settings = model.opened, model.settings
        path = RowPath.of(opened.manifest.pipeline, opened.first.inputs)
        quick = (
            opened.timed
            and opened.first.lends_calls
            and opened.latencies.measured_ns(1) <= INLINE_NS
        )
        if path is None or not quick or not path.reader.able or opened.manifest.varying:
            return None
        if settings.cache_bytes or model.tracing is not None:
            return None
        try:
            return cls(model, path)
        except InputError:
            return None

    def answer(self, body: bytes, arrived_ns: int) -> bytes | None:
        """Return the decision on a row as JSON; None to take the usual way.

        The caller hands it over and calls `told`.

        Args:
            body: Body of the request, JSON of one row maybe.
            arrived_ns: Time when the request's last byte arrived, on the monotonic clock.
        """
        clock_ns = self._clock_ns
        if self._model.fell_back or not self._scheduler.idle or len(body) > LONGEST_BYTES:
            return None
        if not self._read(body, self._row):
            return None
        read_ns = clock_ns()
        try:
            with self._mark:
                self._run()
            ran_ns = clock_ns()
            if self._guarded and self._is_broken():
                return None
            data = self._written()
            if data is None:
                return None
        except (InputError, CandidateError, TypeError):
            return None
        now_ns = clock_ns()
        if now_ns - arrived_ns > self._deadline_ns:
            return None
        self._times = arrived_ns, read_ns, ran_ns, now_ns
        return data

    def _decided(self) -> bytes | None:
        """Return the decision on the row that was answered last, as JSON."""
        value: Any = self._firsts
        for step in self._after:
            value = step(value, NOWHERE)
        data = self._dumps(value, option=self._array_option)
        return as_json(value) if b"null" in data else data  # NaN is written so

    def told(self) -> None:
        """Count the request that `answer` answered last, now that its answer is on the way."""
        self._statistics.answered_row(*self._times, self._clock_ns())
        if self._instead:
            self._statistics.replaced += 1
        if self._model.shadows:
            self._model.shadowed(self._inputs, self._outputs, 1)

    def _is_broken(self) -> bool:
        """Whether the outputs have NaN, so that the exact model has to be asked."""
        if self._one is not None:
            return not math.isfinite(self._one.item())
        return is_broken(self._outputs)


def _writer(score: Array, both: EitherOr) -> Callable[[], bytes | None]:
    """Return what writes a decision by a score; where the score isn't finite, it returns None.

    Args:
        score: Array with the score.
        both: Decisions that there are.
    """
    import orjson

    item, finite, dumps, least = score.item, math.isfinite, orjson.dumps, both.least
    forms = _around_score(both.below), _around_score(both.reached)

    def written() -> bytes | None:
        number = item()
        return forms[number >= least] % dumps(number) if finite(number) else None

    return written


def _around_score(decision: dict[str, Any]) -> bytes:
    """Return a decision as JSON, with a place for its score."""
    import orjson

    keys = list(decision)
    at = keys.index("score")
    before, after = ({key: decision[key] for key in some} for some in (keys[:at], keys[at + 1 :]))
    first, last = (orjson.dumps(part)[1:-1].replace(b"%", b"%%") for part in (before, after))
    return b"{%b}" % b",".join(part for part in (first, b'"score":%b', last) if part)

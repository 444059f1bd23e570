"""Answer the JSON of one row on the event loop's own thread, before a thread could have been woken.

For models that take microseconds and keep no one else waiting. Whatever isn't the usual case is left to
the usual way, which also states every error: it starts over, from the body.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson

from hasten.bundle.rows import RowPath
from hasten.errors import CandidateError, InputError
from hasten.serving.models.batching import INLINE_NS
from hasten.serving.models.comparison import is_broken
from hasten.serving.models.deciding import as_json
from hasten.serving.models.statistics import Served
from hasten.serving.wire.http_bodies import head_of_decision

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
        before: What comes before the decision in the answer.
        ambiguous: Whether a column is named as the protocol's `inputs` are, so that JSON alone doesn't
            tell a row from tensors.
        statistics: Statistics of the model.
    """

    def __init__(self, model: ServedModel, path: RowPath) -> None:
        self._model = model
        self.before = head_of_decision(model.name, model.version)
        self.ambiguous = "inputs" in path.reader.step.columns
        self.statistics = model.statistics
        self._reader, self._decided = path.reader, path.decided
        first = model.opened.first
        bound = first.bind_row()
        self._row, self._outputs, self._run = bound.row, bound.outputs, bound.run
        self._mark = model.mark
        self._clock_ns = model.clock_ns
        self._deadline_ns = model.settings.deadline_ns or math.inf
        self._guarded = model.opened.standby is not None
        (array, *others) = self._outputs.values()
        self._one = array if not others and array.size == 1 and array.dtype.kind == "f" else None

    @classmethod
    def of(cls, model: ServedModel) -> QuickRows | None:
        """Return what answers a model's rows at once; None for a model whose rows always wait in line.

        That is one that takes something else than rows, or isn't known to take microseconds; and one
        whose answers are cached, traced or compared with the exact model's.
        """
        opened, settings = model.opened, model.settings
        path = RowPath.of(opened.manifest.pipeline, opened.first.inputs)
        quick = opened.first.lends_calls and opened.latencies.measured_ns(1) <= INLINE_NS
        if path is None or not quick or not path.reader.able:
            return None
        if settings.cache_bytes or settings.shadow or model.tracing is not None:
            return None
        return cls(model, path)

    def answer(self, body: bytes, arrived_ns: int) -> bytes | None:
        """Return the decision on a row as JSON, and count the request; None to take the usual way.

        Args:
            body: Body of the request, JSON of one row maybe.
            arrived_ns: Time when the request's last byte arrived, on the monotonic clock.
        """
        model, clock_ns = self._model, self._clock_ns
        scheduler = model.scheduler
        if model.fell_back or not scheduler.idle or len(body) > LONGEST_BYTES:
            return None
        if not self._reader.read_quickly(body, self._row):
            return None
        read_ns = clock_ns()
        try:
            with self._mark:
                self._run()
            ran_ns = clock_ns()
            if self._guarded and self._is_broken():
                return None
            decision = self._decided(self._outputs)
            data = orjson.dumps(decision, option=orjson.OPT_SERIALIZE_NUMPY)
            if b"null" in data:  # NaN is written so
                data = as_json(decision)
        except (InputError, CandidateError, TypeError):
            return None
        now_ns = clock_ns()
        if now_ns - arrived_ns > self._deadline_ns:
            return None
        scheduler.answered_alone(now_ns, ran_ns - read_ns)
        statistics = self.statistics
        statistics.staged("prepare", read_ns - arrived_ns)
        statistics.staged("decide", now_ns - ran_ns)
        statistics.ran(1, 0, ran_ns - read_ns, 0)
        statistics.answered(
            Served(now_ns, now_ns - arrived_ns, 0, 1, 0, 0, ran_ns - read_ns, now_ns - ran_ns, 1)
        )
        return data

    def _is_broken(self) -> bool:
        """Whether the outputs have NaN, so that the exact model has to be asked."""
        if self._one is not None:
            return not math.isfinite(self._one.item())
        return is_broken(self._outputs)

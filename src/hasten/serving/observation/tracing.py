"""Send spans of requests with OpenTelemetry's exporter, configured by its environment variables.

The event loop only records a finished request; a thread makes spans of the record.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from hasten.errors import InputError
from hasten.serving.models.scheduling import USUAL_PRIORITY
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import Query

if TYPE_CHECKING:
    from hasten.bundle.chains.plan import Stage
    from hasten.serving.models.served import ServedModel, Ticket

log = logging.getLogger("hasten.serving")

_MOST_WAITING = 16_384
"""Largest number of requests that wait for their spans to be made; further ones aren't traced."""


class Passed(NamedTuple):
    """Record of a stage of a chain; times are on the wall clock, in nanoseconds since 1970.

    Attributes:
        name: Name of the chain's node, or "decode".
        begun_ns: Time when the stage began.
        ended_ns: Time when it ended.
        attributes: Further facts about it, as a span's attributes.
    """

    name: str
    begun_ns: int
    ended_ns: int
    attributes: dict[str, Any]


class Finished(NamedTuple):
    """Record of a finished request; times are on the wall clock, in nanoseconds since 1970.

    Attributes:
        parent: Caller's `traceparent` header, or "".
        model: Name of the model.
        version: Version of the model.
        arrived_ns: Time when the request's last byte arrived.
        ended_ns: Time when the request was answered.
        rows: Samples in the request; 0 if it was refused before they were counted.
        priority: Priority of the request.
        error: Kind of the error, or "".
        message: Message of the error, or "".
        queued_ns: Time when the request entered the queue; 0 if it wasn't run.
        begun_ns: Time when the request's batch left the queue; 0 if it wasn't run.
        stacked_ns: Time when the batch's inputs were stacked; 0 if the request wasn't run.
        computed_ns: Time when the engine was done; 0 if the request wasn't run.
        batch_rows: Samples in the request's batch; 0 if it wasn't run.
        stages: Stages that an answered request passed in a chain.
    """

    parent: str
    model: str
    version: str
    arrived_ns: int
    ended_ns: int
    rows: int
    priority: int
    error: str
    message: str
    queued_ns: int
    begun_ns: int
    stacked_ns: int
    computed_ns: int
    batch_rows: int
    stages: tuple[Passed, ...] = ()


class Tracing:
    """Sender of spans, active from its creation until it is closed.

    Args:
        wall_ns: Wall clock, in nanoseconds since 1970.

    Raises:
        InputError: OpenTelemetry isn't installed.
    """

    def __init__(self, wall_ns: Callable[[], int] = time.time_ns) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError(
                f"trace= needs OpenTelemetry ({error}): pip install 'hasten[otel]'"
            ) from error
        own = {"service.name": "hasten", "service.version": version("hasten")}
        # The environment's description of the service overrides the built-in one.
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("hasten.serving", version("hasten"))
        self._wall_ns = wall_ns
        self._waiting: queue.Queue[Finished | None] = queue.Queue(_MOST_WAITING)
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, name="hasten-tracing", daemon=True)
        self._thread.start()

    def finished(
        self,
        model: ServedModel,
        query: Query,
        now_ns: int,
        failure: ProtocolError | None = None,
        ticket: Ticket | None = None,
        stages: Sequence[Stage] = (),
        rows: int = 0,
    ) -> None:
        """Record a request that was answered, failed or was refused.

        Args:
            model: Model that the request was sent to.
            query: Request as it was parsed.
            now_ns: Time when the request was answered, on the monotonic clock.
            failure: Error that the request got; None if it succeeded.
            ticket: Ticket of the request; None if it has none, as one that was refused.
            stages: Stages that an answered request passed in a chain.
            rows: Samples of a request without a ticket; 0 if they weren't counted.
        """
        shift_ns = self._wall_ns() - now_ns
        timing = None if ticket is None else ticket.timing
        noted = Finished(
            query.trace,
            model.name,
            model.version,
            query.arrived_ns + shift_ns,
            now_ns + shift_ns,
            rows if ticket is None else ticket.rows,
            query.priority or USUAL_PRIORITY,
            "" if failure is None else failure.kind.name,
            "" if failure is None else str(failure),
            *(
                (0, 0, 0, 0, 0)
                if timing is None or ticket is None
                else (
                    ticket.queued_ns + shift_ns,
                    timing.begun_ns + shift_ns,
                    timing.stacked_ns + shift_ns,
                    timing.computed_ns + shift_ns,
                    timing.rows,
                )
            ),
            tuple(_passed(stage, shift_ns) for stage in stages),
        )
        try:
            self._waiting.put_nowait(noted)
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """Send the remaining spans, waiting for the receiver for up to half a minute."""
        self._waiting.put(None)
        self._thread.join()
        self._provider.shutdown()
        if self._left_out:
            log.warning(
                "%d requests weren't traced because there were too many: set OTEL_TRACES_SAMPLER",
                self._left_out,
            )

    def _work(self) -> None:
        while (noted := self._waiting.get()) is not None:
            try:
                self._make(noted)
            except Exception:  # a failure of tracing must never end the server
                log.exception("a request wasn't traced")

    def _make(self, noted: Finished) -> None:
        """Make the spans of a request, unless its parent isn't sampled."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        from opentelemetry.trace.status import Status, StatusCode

        parent = TraceContextTextMapPropagator().extract({"traceparent": noted.parent})
        span = self._tracer.start_span(
            f"infer {noted.model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(noted),
            start_time=noted.arrived_ns,
        )
        if not span.is_recording():
            return
        inside = trace.set_span_in_context(span)
        for stage in noted.stages:
            part = self._tracer.start_span(
                stage.name, inside, attributes=stage.attributes, start_time=stage.begun_ns
            )
            part.end(stage.ended_ns)
        if noted.batch_rows:
            for name, begin_ns, end_ns in (
                ("queue", noted.queued_ns, noted.begun_ns),
                ("batch", noted.begun_ns, noted.stacked_ns),
                ("compute", noted.stacked_ns, noted.computed_ns),
            ):
                part = self._tracer.start_span(name, context=inside, start_time=begin_ns)
                part.end(end_ns)
        if noted.error:
            span.set_status(Status(StatusCode.ERROR, noted.message))
        span.end(noted.ended_ns)


def _passed(stage: Stage, shift_ns: int) -> Passed:
    """Return the record of a chain's stage.

    Args:
        stage: The stage, with times on the monotonic clock.
        shift_ns: Difference from that clock to the wall clock.
    """
    attributes: dict[str, Any] = {"hasten.rows": stage.samples}
    if stage.asks:
        attributes["hasten.asks"] = stage.asks
        for part in ("prepare", "run", "decide"):
            attributes[f"hasten.{part}_s"] = getattr(stage, f"{part}_ns") / 1e9
    return Passed(stage.name, stage.begun_ns + shift_ns, stage.ended_ns + shift_ns, attributes)


def _attributes(noted: Finished) -> dict[str, Any]:
    """Return a span's attributes, named by OpenTelemetry's semantic conventions where they apply."""
    attributes: dict[str, Any] = {
        "hasten.model": noted.model,
        "hasten.version": noted.version,
        "hasten.priority": noted.priority,
    }
    if noted.rows:
        attributes["hasten.rows"] = noted.rows
    if noted.batch_rows:
        attributes["hasten.batch_rows"] = noted.batch_rows
    if noted.error:
        attributes["error.type"] = noted.error
    return attributes

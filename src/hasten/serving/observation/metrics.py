"""Make Prometheus metrics of the models' statistics whenever they are scraped.

Metrics that Triton has too bear Triton's names, so that dashboards and autoscalers for it work here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from hasten.core.versions import installed_version
from hasten.serving.models.opening import SIZES
from hasten.serving.models.served import ServedModel
from hasten.serving.models.statistics import BOUNDS_NS, STAGES
from hasten.serving.protocol.errors import Kind
from hasten.serving.state import ServerState

Value: TypeAlias = Callable[[ServedModel], float]

PROMETHEUS, OPENMETRICS = "text/plain", "application/openmetrics-text; version=1.0.0"
"""Forms of the text, as an Accept header asks for them."""
_MODEL = ("model", "version")
_UNTYPED = re.compile(rb"^(# TYPE nv_\w+) untyped$", re.MULTILINE)
_REASONS = {
    Kind.OVERLOADED: "REJECTED",
    Kind.LATE: "REJECTED",
    Kind.INTERNAL: "BACKEND",
}
"""Kind of error -> reason of a failed request in Triton's terms; any other kind is OTHER."""

_TRITON: tuple[tuple[str, str, Value], ...] = (
    (
        "nv_inference_request_success",
        "Requests that were answered",
        lambda model: model.statistics.totals["success"].count,
    ),
    ("nv_inference_count", "Samples that were answered", lambda model: model.statistics.rows),
    ("nv_inference_exec_count", "Batches that were run", lambda model: model.statistics.executions),
    (
        "nv_inference_request_duration_us",
        "Total time of all answered requests, in microseconds",
        lambda model: model.statistics.totals["success"].ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Time that requests were queued, in microseconds",
        lambda model: model.statistics.totals["queue"].ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time in which inputs were stacked, in microseconds",
        lambda model: model.statistics.totals["compute_input"].ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time in the engine, in microseconds",
        lambda model: model.statistics.totals["compute_infer"].ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time in which outputs were split by request, in microseconds",
        lambda model: model.statistics.totals["compute_output"].ns // 1000,
    ),
    (
        "nv_cache_num_hits_per_model",
        "Requests whose answer was in the cache",
        lambda model: model.statistics.cache_hit.count,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Requests whose answer was not in the cache",
        lambda model: model.statistics.cache_miss.count,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Time of cache look-ups that found an answer, in microseconds",
        lambda model: model.statistics.cache_hit.ns // 1000,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Time of cache look-ups that found no answer, in microseconds",
        lambda model: model.statistics.cache_miss.ns // 1000,
    ),
)
"""Name, description and value of the counters that Triton has too."""

_COUNTERS: tuple[tuple[str, str, Value], ...] = (
    (
        "hasten_cancelled",
        "Requests whose client went away before the answer",
        lambda model: model.statistics.cancel.count,
    ),
    (
        "hasten_shadow_samples",
        "Answered samples that the exact model answered too",
        lambda model: model.statistics.shadowed,
    ),
    (
        "hasten_shadow_disagreements",
        "Shadow samples that the exact model answered differently",
        lambda model: model.statistics.disagreed,
    ),
    (
        "hasten_exact_answers",
        "Requests that the exact model answered in the fast one's place, after NaN, a failure, a crash or an alarm",
        lambda model: model.statistics.replaced,
    ),
    (
        "hasten_prepared_hits",
        "Samples that the cache had as the model takes them",
        lambda model: model.statistics.prepared_hits,
    ),
    (
        "hasten_prepared_misses",
        "Samples that were prepared and weren't in the cache",
        lambda model: model.statistics.prepared_misses,
    ),
)
_GAUGES: tuple[tuple[str, str, Value], ...] = (
    ("hasten_queued_rows", "Samples that wait in the queue", lambda model: model.queued_rows),
    (
        "hasten_queue_wait_seconds",
        "Expected wait of a request that arrives now",
        lambda model: model.wait_ns / 1e9,
    ),
    (
        "hasten_answers_exact",
        "1 if the exact model answers, 0 if the winner does",
        lambda model: model.answers == "exact",
    ),
    (
        "hasten_sequences",
        "Sequences whose states are kept",
        lambda model: len(model.sequences) if model.sequences is not None else 0,
    ),
    (
        "hasten_sequence_bytes",
        "Size of the states of all sequences",
        lambda model: model.sequences.size_bytes if model.sequences is not None else 0,
    ),
    (
        "hasten_cache_bytes",
        "Size of the cached answers",
        lambda model: model.cache.size_bytes if model.cache is not None else 0,
    ),
    (
        "hasten_cache_entries",
        "Number of cached answers",
        lambda model: len(model.cache) if model.cache is not None else 0,
    ),
)


def collected(state: ServerState) -> list[Any]:
    """Collect all counts, on the event loop's thread, as metric families of the Prometheus client."""
    models = list(state.repository.served())
    return [
        *_of_triton(models),
        *_counters(models),
        *_gauges(models),
        _stages(models),
        _chain_stages(models),
        _batches(models),
        *_monitors(models),
        *_models(state),
        *_server(state),
    ]


@functools.lru_cache(64)
def form_of(accepted: str) -> str:
    """Return which of the two forms, `PROMETHEUS` or `OPENMETRICS`, an Accept header asks for."""
    from prometheus_client.exposition import choose_encoder

    try:
        _, content_type = choose_encoder(accepted)
    except (TypeError, ValueError):  # the accepted version is not a number
        return PROMETHEUS
    return OPENMETRICS if content_type.startswith("application/openmetrics-text") else PROMETHEUS


def written(families: list[Any], form: str) -> tuple[bytes, str]:
    """Write metric families and the system's figures of this process as text; on any thread.

    This is the slow part of a scrape: a millisecond or more per model.

    Args:
        families: Families, as `collected` returns them.
        form: `PROMETHEUS` or `OPENMETRICS`.

    Returns:
        The text and its content type.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(form)
    registry = CollectorRegistry()
    registry.register(_Taken(families))
    registry.register(ProcessCollector(registry=None))
    text: bytes = encode(registry)
    # The client would name every counter *_total, which Triton's names don't have, so they are untyped
    # families. Prometheus' text format allows them as counters; OpenMetrics doesn't, so there they
    # stay unknown.
    return _UNTYPED.sub(rb"\1 counter", text), content_type


class _Taken:
    """Collector that hands finished families to a registry."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        """Return the families."""
        return self._families


def _models(state: ServerState) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    ready = GaugeMetricFamily(
        "hasten_model_ready", "1 if a registered model answers", labels=_MODEL
    )
    facts = GaugeMetricFamily(
        "hasten_model_info",
        "Served model: status of its bundle, platform that runs it, and which model answers",
        labels=(*_MODEL, "status", "platform", "answers"),
    )
    for one in state.repository:
        model = one.served
        ready.add_metric((one.name, one.version), model is not None)
        if model is not None:
            status = model.opened.manifest.status
            facts.add_metric((*_labels(model), status, model.platform, model.answers), 1)
    yield ready
    yield facts


def _server(state: ServerState) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    yield GaugeMetricFamily("hasten_ready", "1 if requests are answered", state.ready)
    yield GaugeMetricFamily("hasten_connections", "Open HTTP connections", len(state.connections))
    yield GaugeMetricFamily(
        "hasten_body_bytes", "Size of the bodies of all current requests", state.body_bytes
    )
    cache = state.repository.cache
    prepared = None if cache is None else cache.prepared
    yield GaugeMetricFamily(
        "hasten_cache_total_bytes",
        "Size of all that is cached: answers and prepared samples",
        0 if cache is None else cache.size_bytes,
    )
    yield GaugeMetricFamily(
        "hasten_cache_prepared_bytes",
        "Size of the cached prepared samples",
        0 if prepared is None else prepared.size_bytes,
    )
    yield GaugeMetricFamily(
        "hasten_cache_prepared_entries",
        "Number of cached prepared samples",
        0 if prepared is None else len(prepared),
    )
    facts = GaugeMetricFamily("hasten_server_info", "Version of the server", labels=("version",))
    facts.add_metric((installed_version("hasten") or "unknown",), 1)
    yield facts


def _labels(model: ServedModel) -> tuple[str, str]:
    return model.name, model.version


def _of_triton(models: list[ServedModel]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily, UnknownMetricFamily

    for name, meaning, value in _TRITON:
        family = UnknownMetricFamily(name, meaning, labels=_MODEL)
        for model in models:
            family.add_metric(_labels(model), value(model))
        yield family
    failures = UnknownMetricFamily(
        "nv_inference_request_failure", "Requests that got no answer", labels=(*_MODEL, "reason")
    )
    for model in models:
        for reason, count in _failures(model).items():
            failures.add_metric((*_labels(model), reason), count)
    yield failures
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Samples that wait for an engine", labels=_MODEL
    )
    for model in models:
        pending.add_metric(_labels(model), model.queued_rows)
    yield pending


def _failures(model: ServedModel) -> dict[str, int]:
    counts = {"REJECTED": 0, "CANCELED": model.statistics.cancel.count, "BACKEND": 0, "OTHER": 0}
    for kind, count in model.statistics.refusals.items():
        counts[_REASONS.get(Kind[kind], "OTHER")] += count
    return counts


def _counters(models: list[ServedModel]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    for name, meaning, value in _COUNTERS:
        family = CounterMetricFamily(name, meaning, labels=_MODEL)
        for model in models:
            family.add_metric(_labels(model), value(model))
        yield family
    refusals = CounterMetricFamily(
        "hasten_refusals", "Requests that got an error, by kind", labels=(*_MODEL, "kind")
    )
    for model in models:
        for kind, count in model.statistics.refusals.items():
            refusals.add_metric((*_labels(model), kind), count)
    yield refusals


def _gauges(models: list[ServedModel]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    for name, meaning, value in _GAUGES:
        family = GaugeMetricFamily(name, meaning, labels=_MODEL)
        for model in models:
            family.add_metric(_labels(model), value(model))
        yield family


_WATCHED: tuple[tuple[str, str, str], ...] = (
    ("hasten_monitor_limit", "Largest share that the certificate allows", "limit"),
    (
        "hasten_monitor_audited",
        "Answers that count as evidence, over all processes and starts",
        "n",
    ),
    ("hasten_monitor_share_low", "Lower end of the 95% interval of the share so far", "low"),
    ("hasten_monitor_share_high", "Upper end of the 95% interval of the share so far", "high"),
    (
        "hasten_monitor_evidence",
        "Natural logarithm of the evidence against the limit; the alarm is at log(1 / alpha)",
        "log_capital",
    ),
    ("hasten_monitor_alarm", "1 if an alarm is raised that nobody has cleared", "alarm"),
)
_UNSEEN: tuple[tuple[str, str, str], ...] = (
    (
        "hasten_monitor_dropped",
        "Sampled answers that weren't compared for lack of idle time",
        "dropped",
    ),
    ("hasten_monitor_failed", "Sampled answers that the exact model failed on", "failed"),
)


def _monitors(models: list[ServedModel]) -> Iterator[Any]:
    yield from monitors(
        [(_labels(model), model.watch.facts()) for model in models if model.watch is not None]
    )


def monitors(known: list[tuple[tuple[str, str], dict[str, Any]]]) -> Iterator[Any]:
    """Make metric families of what monitors know.

    Args:
        known: Name and version of each watched model, and its monitor's facts.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, meaning, key in _WATCHED:
        family = GaugeMetricFamily(name, meaning, labels=(*_MODEL, "what"))
        for labels, facts in known:
            for limit in facts["limits"]:
                family.add_metric((*labels, limit["what"]), float(limit[key]))
        yield family
    for name, meaning, key in _UNSEEN:
        counts = CounterMetricFamily(name, meaning, labels=_MODEL)
        for labels, facts in known:
            counts.add_metric(labels, facts[key])
        yield counts
    sees = GaugeMetricFamily(
        "hasten_monitor_sees", "1 if answers are compared, 0 if the monitor is blind", labels=_MODEL
    )
    anew = GaugeMetricFamily(
        "hasten_monitor_begun_anew", "Times that the evidence was started again", labels=_MODEL
    )
    drift = GaugeMetricFamily(
        "hasten_drift", "Signals of drifting inputs; they aren't proof", labels=(*_MODEL, "signal")
    )
    for labels, facts in known:
        sees.add_metric(labels, not facts["blind"])
        anew.add_metric(labels, facts["begun_anew"])
        for signal, value in _signals(facts["drift"]):
            drift.add_metric((*labels, signal), value)
    yield from (sees, anew, drift)


def _signals(drift: dict[str, Any]) -> Iterator[tuple[str, float]]:
    again = drift["asked_again"]
    if again is not None and again[1]:
        yield "asked_again", again[0] / again[1]
    for name in ("margin", "outside"):
        if drift[name]["n"]:
            yield name, drift[name]["recent"]
            yield f"{name}_mean", drift[name]["mean"]


def _stages(models: list[ServedModel]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "hasten_stage_seconds", "Time of answered requests, by stage", labels=(*_MODEL, "stage")
    )
    bounds = [repr(bound / 1e9) for bound in BOUNDS_NS]
    for model in models:
        stages = model.statistics.stages
        for stage in STAGES:
            histogram = stages[stage]
            buckets = _cumulated(bounds, histogram.counts)
            family.add_metric((*_labels(model), stage), buckets, histogram.sum_ns / 1e9)
    return family


def _chain_stages(models: list[ServedModel]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "hasten_chain_stage_seconds",
        "Time of a chain's answered requests, by node and part",
        labels=(*_MODEL, "node", "part"),
    )
    bounds = [repr(bound / 1e9) for bound in BOUNDS_NS]
    for model in models:
        for (node, part), histogram in model.statistics.chain.items():
            buckets = _cumulated(bounds, histogram.counts)
            family.add_metric((*_labels(model), node, part), buckets, histogram.sum_ns / 1e9)
    return family


def _batches(models: list[ServedModel]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "hasten_batch_rows", "Samples in each batch that was run", labels=_MODEL
    )
    for model in models:
        sizes = {rows: each.compute_infer.count for rows, each in model.statistics.batches.items()}
        counts = [0] * (len(SIZES) + 1)
        for rows, count in sizes.items():
            counts[sum(rows > size for size in SIZES)] += count
        buckets = _cumulated([str(float(size)) for size in SIZES], counts)
        family.add_metric(_labels(model), buckets, sum(r * count for r, count in sizes.items()))
    return family


def _cumulated(bounds: Iterable[str], counts: Iterable[int]) -> list[tuple[str, int]]:
    """Return Prometheus' cumulative buckets, each of which counts those below it too."""
    below = 0
    buckets = []
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets

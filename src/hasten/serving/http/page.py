"""Serve the live page, which shows people what every model is doing."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from importlib.resources import files
from string import Template
from typing import Any

import orjson

from hasten.core.tensors import Array
from hasten.reporting.style import STYLE
from hasten.serving.models.repository import Registered
from hasten.serving.models.served import ServedModel
from hasten.serving.models.statistics import Statistics
from hasten.serving.models.window import quantiles_ns
from hasten.serving.state import ServerState

NOW_SECONDS = 10
"""Length of "now" on the page: long enough for a p99, short enough to show a change."""
_KEPT_NS = 500_000_000
"""Time for which the same figures are told to all who ask."""

_LIVE = files("hasten.serving.http") / "live"
_SCRIPT = "".join((_LIVE / name).read_text() for name in ("words.js", "charts.js", "page.js"))
_STYLE = STYLE + (_LIVE / "page.css").read_text()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PAGE = Template((_LIVE / "page.html").read_text()).substitute(style=_STYLE, script=_SCRIPT).encode()
_POLICY = (
    "default-src 'none'",
    f"script-src 'sha256-{_hash(_SCRIPT)}'",
    f"style-src 'sha256-{_hash(_STYLE)}'",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""Policy by which no text can become markup or a script, and only this server is contacted."""
HEADERS: list[tuple[bytes, bytes]] = [
    (b"Content-Security-Policy", "; ".join(_POLICY).encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cache-Control", b"no-cache"),
]


class KeptFigures:
    """JSON of the page's figures, which is made again once its moment is over: it takes 0.2 ms for each model.

    Args:
        state: State of the server.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(
        self, state: ServerState, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._state, self._clock_ns = state, clock_ns
        self._made_ns: int | None = None
        self._text = b""

    def text(self) -> bytes:
        """Return the figures of now, or of a moment ago."""
        if self._made_ns is None or self._clock_ns() - self._made_ns >= _KEPT_NS:
            self._text = orjson.dumps(figures(self._state, self._clock_ns))
            self._made_ns = self._clock_ns()
        return self._text


def figures(
    state: ServerState, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> dict[str, Any]:
    """Return the page's figures, for JSON: the server, and every registered model.

    Args:
        state: State of the server.
        clock_ns: Monotonic clock, in nanoseconds.
    """
    now_ns = clock_ns()
    return {
        "uptime_s": round((now_ns - state.began_ns) / 1e9, 1),
        "ready": state.ready,
        "draining": state.draining,
        "connections": len(state.connections),
        "body_bytes": state.body_bytes,
        "now_s": NOW_SECONDS,
        "models": [_registered(one, now_ns) for one in state.repository],
    }


def _registered(one: Registered, now_ns: int) -> dict[str, Any]:
    return {
        "name": one.name,
        "version": one.version,
        "state": one.state,
        "reason": one.reason,
        "served": None if one.served is None else _served(one.served, now_ns),
    }


def _served(model: ServedModel, now_ns: int) -> dict[str, Any]:
    counted, manifest = model.statistics, model.opened.manifest
    exact = model.answers == "exact"
    part = manifest.exact if exact and manifest.exact is not None else manifest.winner
    seconds = counted.window.counts(now_ns)
    return {
        "answers": model.answers,
        "fell_back": model.fell_back,
        "label": part.label,
        "status": manifest.status,
        "why": manifest.why,
        "platform": model.platform,
        "notes": model.opened.notes,
        "now": _span(seconds[-NOW_SECONDS:]),
        "minute": _span(seconds),
        "series": {
            "requests": seconds.sum(axis=1).tolist(),
            "p50_ns": quantiles_ns(seconds, 0.5),
            "p99_ns": quantiles_ns(seconds, 0.99),
        },
        "queue": {"rows": model.queued_rows, "wait_ns": round(model.wait_ns)},
        "requests": counted.totals["success"].count,
        "rows": counted.rows,
        "batches": [
            [rows, batch.compute_infer.count] for rows, batch in sorted(counted.batches.items())
        ],
        "stages": _stages(counted),
        "refusals": dict(sorted(counted.refusals.items())),
        "cancelled": counted.cancel.count,
        "replaced": counted.replaced,
        "cache": _cache(model),
        "shadow": {"rows": counted.shadowed, "disagreed": counted.disagreed}
        if model.settings.shadow
        else None,
        "monitor": None if model.watch is None else model.watch.facts(),
    }


def _stages(counted: Statistics) -> list[dict[str, Any]]:
    """Return where the time of all requests went: each stage that there was, but for the whole.

    A chain's nodes have stages of their own, in place of its preparations and decisions together.
    """
    told = {("", name): histogram for name, histogram in counted.stages.items()}
    del told["", "request"]
    if counted.chain:
        del told["", "prepare"], told["", "decide"]
        last = told.pop(("", "encode"))
        told |= {**counted.chain, ("", "encode"): last}
    known = {stage: histogram for stage, histogram in told.items() if histogram.count}
    whole_ns = sum(histogram.sum_ns for histogram in known.values())
    return [
        {
            "node": node,
            "stage": name,
            "share": histogram.sum_ns / max(1, whole_ns),
            "p50_ns": histogram.bound_ns(0.5),
            "p99_ns": histogram.bound_ns(0.99),
        }
        for (node, name), histogram in known.items()
    ]


def _span(seconds: Array) -> dict[str, Any]:
    """Return the requests and latencies of several seconds together."""
    together = seconds.sum(axis=0, keepdims=True)
    count = int(together.sum())
    return {
        "requests": count,
        "throughput_per_s": count / len(seconds),
        **{
            name: quantiles_ns(together, share)[0]
            for name, share in (("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99))
        },
    }


def _cache(model: ServedModel) -> dict[str, int] | None:
    if model.cache is None:
        return None
    counted = model.statistics
    return {
        "hits": counted.cache_hit.count,
        "misses": counted.cache_miss.count,
        "entries": len(model.cache),
        "size_bytes": model.cache.size_bytes,
        "most_bytes": model.cache.most_bytes,
    }

"""The live page: what every model does now, for a person to look at."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from typing import Any

from hasten.core.tensors import Array
from hasten.reporting.style import STYLE
from hasten.serving.http.page_script import SCRIPT
from hasten.serving.models.repository import Registered
from hasten.serving.models.served import ServedModel
from hasten.serving.models.window import quantiles_ns
from hasten.serving.state import ServerState

NOW_SECONDS = 10
"""What "now" is on the page: long enough for a p99, short enough to see a change."""

_LOOK = """
.top{display:flex;flex-wrap:wrap;justify-content:space-between;align-items:baseline;gap:0 1.5rem}
.dot{display:inline-block;width:.6em;height:.6em;border-radius:50%;background:var(--quiet);margin-right:.5em}
.live .dot{background:var(--good)}
.gone .dot{background:var(--bad)}
@media (prefers-reduced-motion:no-preference){.live .dot{animation:beat 2s ease-in-out infinite}}
@keyframes beat{50%{opacity:.35}}
.notice{border-left:.25rem solid var(--bad);background:var(--card);border-radius:.25rem .75rem .75rem .25rem;
padding:.8rem 1.1rem;margin:1.25rem 0}
main.stale .old{opacity:.55}
section{margin-top:3rem}
section>h2{margin:0}
h2 .quiet{font-weight:400;font-size:1rem;letter-spacing:0}
.state{display:inline-block;font-size:.85rem;font-weight:600;letter-spacing:0;border:1px solid currentColor;
border-radius:1rem;padding:0 .7em;margin-left:.35em;vertical-align:.15em;line-height:1.6}
.answers{margin-top:1.25rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,10.5rem),1fr))}
.answers li{margin:0}
.figure{margin:.2rem 0 .1rem;white-space:nowrap;font-variant-numeric:tabular-nums}
.answers h3{font-size:.95rem;margin:0}
.answers p{margin:0}
.charts{display:grid;gap:1.25rem 1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));
margin:1.5rem 0 1rem}
.charts figure{margin:0;min-width:0}
.charts h3{margin:0;font-size:.95rem}
.charts figcaption{margin:0 0 .4rem;font-size:.85rem;min-height:1.55em}
.charts svg{height:9.5rem;overflow:visible}
.key::before{content:"";display:inline-block;width:.9em;height:.2em;border-radius:.1em;margin-right:.4em;
vertical-align:.25em;background:var(--exact)}
.key+.key{margin-left:1em}
.key.high::before{background:var(--after)}
svg text{font-size:11px;fill:var(--quiet)}
svg .rule{stroke:var(--line);stroke-width:1;shape-rendering:crispEdges}
svg .line{fill:none;stroke:var(--exact);stroke-width:1.75;stroke-linecap:round!important}
svg .high{stroke:var(--after)}
svg .under{fill:var(--exact);opacity:.14}
svg .column{fill:var(--exact)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.25rem;margin:1rem 0;font-size:.9rem}
dt{color:var(--quiet)}
dd{margin:0;min-width:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
h1,h2,.why,.long,.notice,footer{overflow-wrap:anywhere}
.said{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{outline:2px solid var(--exact);outline-offset:2px}
a{color:var(--exact)}
[hidden]{display:none!important}
@media (max-width:44rem){.answers{grid-template-columns:1fr 1fr;gap:.6rem}.answers li{padding:.8rem .9rem}
.figure{font-size:1.5rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}
"""
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M9 1 3 9h4l-1 6 7-9H8z' fill='%230a68b0'/%3E%3C/svg%3E"
)
_BODY = """
<main>
<header>
<div class="top"><p class="kicker">hasten</p><p class="quiet" id="pulse"><span class="dot"></span><span
id="pulse-words">Connecting</span></p></div>
<h1 class="old" id="headline">Live</h1>
<p class="quiet old" id="server"></p>
</header>
<p class="notice" id="notice" hidden></p>
<p class="said" id="said" role="status" aria-live="polite"></p>
<noscript><p class="notice">This page draws what it is told by the server, and needs JavaScript for
it. The same numbers are at <a href="metrics">/metrics</a>.</p></noscript>
<div class="old" id="overview"></div>
<div class="old" id="models"></div>
</main>
<footer>Asked for once a second while this page is in sight. For programs:
<a href="metrics">/metrics</a>, <a href="v2/models/stats">/v2/models/stats</a>.</footer>
"""


def _page(style: str, script: str) -> bytes:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>hasten</title><link rel="icon" href="{_ICON}">'
        f"<style>{style}</style></head><body>{_BODY}<script>{script}</script></body></html>\n"
    ).encode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


PAGE = _page(STYLE + _LOOK, SCRIPT)
_POLICY = (
    "default-src 'none'",
    f"script-src 'sha256-{_hash(SCRIPT)}'",
    f"style-src 'sha256-{_hash(STYLE + _LOOK)}'",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""No text can become markup or a script, and nothing is asked of anybody but this server."""
HEADERS: list[tuple[bytes, bytes]] = [
    (b"Content-Security-Policy", "; ".join(_POLICY).encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cache-Control", b"no-cache"),
]


def figures(
    state: ServerState, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> dict[str, Any]:
    """What the page shows, as JSON: the server, and every registered model.

    Args:
        state: The server's.
        clock_ns: Monotonic clock, in nanoseconds.
    """
    now_ns = clock_ns()
    return {
        "uptime_s": round(time.time() - state.began_s, 1),
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
        "refusals": dict(sorted(counted.refusals.items())),
        "cancelled": counted.cancel.count,
        "replaced": counted.replaced,
        "cache": _cache(model),
        "shadow": {"rows": counted.shadowed, "disagreed": counted.disagreed}
        if model.settings.shadow
        else None,
    }


def _span(seconds: Array) -> dict[str, Any]:
    """Requests and latencies of several seconds together."""
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

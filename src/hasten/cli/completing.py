"""Complete values at the Tab key: names of engines, passes, metrics and targets, and files by their endings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

Completer: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_BUNDLES = (".hasten", ".hastenz")
_TABLES = (".npz", ".csv", ".parquet", ".jsonl", ".txt", ".py")
_MODELS = (
    *(".onnx", ".pt2", ".pt", ".keras", ".tflite", ".py"),
    *(".json", ".ubj", ".txt", ".cbm", ".skops"),
)

_UNWRITTEN = frozenset(("all_of", "custom", "each_output"))
"""Metrics that nobody writes by these names: several metrics, a function, one metric for several outputs."""


def _files(endings: Iterable[str]) -> Completer:
    """Return a completer of files with certain endings, and of folders on the way to them."""
    ends = tuple(endings)

    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
        found = _matching(typed, ends)
        if len(found) == 1 and found[0].endswith("/"):
            # With what is in it there are several, and the shell goes on after the slash without a space.
            found += _matching(found[0], ends)
        return [CompletionItem(one) for one in found]

    return complete


def _matching(typed: str, endings: tuple[str, ...]) -> list[str]:
    """Return the files with one of the endings, and all folders, that begin like what was typed."""
    above, slash, begun = typed.rpartition("/")
    folder = Path(f"{above}{slash}" or ".").expanduser()
    found = []
    try:
        for one in sorted(folder.iterdir()):
            hidden = one.name.startswith(".") and not begun.startswith(".")
            if hidden or not one.name.startswith(begun):
                continue
            if one.name.endswith(endings):
                found.append(f"{above}{slash}{one.name}")
            elif one.is_dir():
                found.append(f"{above}{slash}{one.name}/")
    except OSError:
        return []
    return found


def _names(listed: Callable[[], Iterable[str]]) -> Completer:
    """Return a completer of names, which are listed when they are asked for."""

    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in listed() if name.startswith(typed)]

    return complete


def _engines() -> Iterable[str]:
    from hasten.engines.base import Engine

    return Engine.registry


def _passes() -> Iterable[str]:
    from hasten.passes.base import Pass

    return Pass.registry


def _metrics() -> Iterable[str]:
    from hasten.inputs.metrics.base import Metric

    return (name for name in Metric.registry if name not in _UNWRITTEN)


def _figures() -> Iterable[str]:
    from hasten.inputs.set_metrics.base import SetMetric

    return (*(name for name in SetMetric.registry if name not in _UNWRITTEN), "none")


def _targets() -> Iterable[str]:
    from hasten.core.devices import FAMILIES

    return ("host", *FAMILIES)


models = _files(_MODELS)
data = _files(_TABLES)
bundles = _files(_BUNDLES)
inspected = _files((*_BUNDLES, ".onnx"))
pipelines = _files((".yaml", ".yml", ".onnx"))
libraries = _files((".so",))
engines, passes, metrics = _names(_engines), _names(_passes), _names(_metrics)
figures, targets = _names(_figures), _names(_targets)

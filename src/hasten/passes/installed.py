"""Passes that aren't tried, since a module that they need isn't installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from hasten.passes.base import Pass


def without_modules(names: Sequence[str] | None) -> list[str]:
    """Return a note on what `hasten[optimize]` brings and isn't installed, so that a run does without it.

    Args:
        names: Names of the passes that are tried; None for all.
    """
    tried = [
        kind
        for name, kind in Pass.members().items()
        if kind.stage is not None and (names is None or name in names)
    ]
    found = dict.fromkeys(module for kind in tried for module in kind.missing())
    if importlib.util.find_spec("openvino") is None:
        found = dict.fromkeys(("openvino", *found))
    if not found:
        return []
    return [
        f"not installed, so their candidates aren't tried: {', '.join(found)}; pip install "
        "'hasten[optimize]' installs them"
    ]

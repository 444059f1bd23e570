"""The log of the cache of compiled models, as a process that has told nothing yet writes it."""

from __future__ import annotations

import logging

import pytest

from hasten.core import cache_folder


def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which folders were warned of, and undo what other tests' libraries silenced."""
    monkeypatch.setattr(cache_folder, "_told", set())
    monkeypatch.setattr(logging.getLogger("hasten.cache"), "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", 0)  # OpenVINO's converter silences others
    monkeypatch.setattr(logging.root, "level", logging.WARNING)

"""Packages that are left out for a while."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from hasten.core.absent import absent

NAME = "this"  # a module of Python's own, which nobody imports


def test_what_is_left_out_is_not_there_and_then_there_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    before = list(sys.meta_path)
    with absent(frozenset({NAME})):
        with pytest.raises(ModuleNotFoundError, match=r"^this is left out here, to save time$"):
            importlib.import_module(NAME)
        spec = importlib.util.find_spec(NAME)
        assert spec is None or spec.origin is None
        assert importlib.util.find_spec("antigravity") is not None
    assert sys.meta_path == before
    assert NAME not in sys.modules
    found = importlib.util.find_spec(NAME)
    assert found is not None
    assert found.origin is not None


def test_what_is_imported_already_stays() -> None:
    with absent(frozenset({"json"})):
        assert importlib.import_module("json") is sys.modules["json"]


def test_an_error_ends_it_too() -> None:
    before = list(sys.meta_path)
    with pytest.raises(ValueError), absent(frozenset({NAME})):
        raise ValueError
    assert sys.meta_path == before

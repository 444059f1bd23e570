"""Of which modules bytecode is kept while tests run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tests.support.kept_compiled import only_below


def test_bytecode_is_kept_of_what_is_installed_and_left_beside_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in (("environment", "kept_once"), ("environment-of-mine", "kept_never")):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{name}.py").write_text("VALUE = 1\n")
        monkeypatch.syspath_prepend(str(tmp_path / place))
        with only_below(tmp_path / "environment"):
            assert importlib.import_module(name).VALUE == 1
    (kept,) = tmp_path.rglob("*.pyc")
    assert kept.parent.parent == tmp_path / "environment"


def test_a_users_module_that_a_test_imports_stays_alone_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_a_user.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("module_of_a_user")
    assert [file.name for file in tmp_path.iterdir()] == ["module_of_a_user.py"]

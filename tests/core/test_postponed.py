"""Submodules that a package imports without using them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.core.postponed import postponed

PARTS = re.compile(r"part\d+")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a package `lazybones` with three parts, which isn't imported yet."""
    folder = tmp_path / "lazybones"
    (folder / "part3").mkdir(parents=True)
    (folder / "part1.py").write_text("value = 1")
    (folder / "part2.py").write_text("from lazybones.part1 import value as of_part1\nvalue = 2")
    (folder / "part3" / "__init__.py").write_text("value = 3")
    (folder / "part3" / "inner.py").write_text("value = 33")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [one for one in sys.modules if one.partition(".")[0] == "lazybones"]:
        del sys.modules[name]


def imported(folder: Path, program: str) -> tuple[Any, set[str]]:
    """Import the package as a program, with its parts postponed; return it and what was."""
    (folder / "__init__.py").write_text(program)
    importlib.invalidate_caches()
    with postponed("lazybones", PARTS) as later:
        module = importlib.import_module("lazybones")
    assert not any(type(one).__name__ == "_Postponing" for one in sys.meta_path)
    return module, later


def there() -> set[str]:
    """Return the submodules that are imported."""
    return {one for one in sys.modules if one.startswith("lazybones.")}


def test_what_is_imported_and_not_read_is_imported_later(package: Path) -> None:
    module, later = imported(
        package, "from lazybones import part1, part2\nimport lazybones.part3\nother = 5"
    )
    assert later == {"part1", "part2", "part3"}
    assert there() == set()
    assert not hasattr(module, "part1")
    from lazybones import part2  # type: ignore[import-not-found]

    assert (part2.value, part2.of_part1) == (2, 1)
    assert there() == {"lazybones.part1", "lazybones.part2"}


@pytest.mark.parametrize(
    ("program", "value", "read"),
    [
        ("from lazybones.part1 import value", 1, {"part1"}),
        ("from lazybones.part2 import value", 2, {"part1", "part2"}),
        ("from lazybones import part1\nvalue = part1.value", 1, {"part1"}),
        ("from lazybones.part3.inner import value", 33, {"part3", "part3.inner"}),
    ],
)
def test_what_is_read_during_the_import_is_imported_then(
    program: str, value: int, read: set[str], package: Path
) -> None:
    module, later = imported(package, f"{program}\nfrom lazybones import part1, part3")
    assert module.value == value
    assert {f"lazybones.{one}" for one in read} <= there()
    assert later == {"part1", "part3"} - read


def test_a_reference_that_was_taken_early_reads_the_submodule(package: Path) -> None:
    module, later = imported(package, "import lazybones.part1 as kept\nheld = [kept]")
    assert later == {"part1"}
    (held,) = module.held
    assert held.value == 1
    assert sys.modules["lazybones.part1"].value == 1


def test_a_submodule_that_isnt_there_stays_so(package: Path) -> None:
    program = "try:\n    from lazybones import part9\nexcept ImportError:\n    part9 = None"
    module, later = imported(package, program)
    assert (module.part9, later) == (None, set())


def test_a_package_that_fails_leaves_no_placeholder(package: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        imported(package, "from lazybones import part1\n1 / 0")
    assert there() == set()
    (package / "__init__.py").write_text("")
    importlib.invalidate_caches()
    assert importlib.import_module("lazybones.part1").value == 1

"""Plug-ins by entry points: metadata as an installer writes it, in a folder on the path."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasten.core import registry
from hasten.core.records import type_name
from hasten.core.registry import HiddenPlugin, Registry
from hasten.engines.base import Engine
from hasten.errors import InputError

ENGINE = """
from dataclasses import dataclass
from hasten.engines.null import Null

@dataclass(frozen=True)
class Mine(Null):
    pass
"""


def install(folder: Path, package: str, points: str, files: dict[str, str] | None = None) -> None:
    """Leave a package's metadata, with entry points to engines, and its modules in a folder."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hasten.engines]\n{points}\n")
    for name, text in (files or {}).items():
        (folder / name).write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.plugins.cache_clear()
    yield tmp_path
    registry.plugins.cache_clear()


def engines() -> Registry:
    """The engines' registry anew, before anybody looked for plug-ins."""
    return Registry("engine", "hasten.engines", {"null": "hasten.engines.null:Null"})


def test_a_plugins_member_is_found_by_its_name_and_written_under_it(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"mine_engine.py": ENGINE, "mine_front.py": "from mine_engine import Mine\n"}
    install(site, "mine", "mine = mine_front:Mine", files)
    monkeypatch.setattr(Engine, "registry", engines())
    kind = Engine.member("mine")
    assert list(Engine.registry) == ["null", "mine"]
    assert type_name(kind()) == "mine"  # though the class was written in another module


def test_looking_at_the_names_imports_nothing(site: Path) -> None:
    install(site, "broken", "broken = broken_engine:Broken", {"broken_engine.py": "1 / 0"})
    assert list(engines()) == ["null", "broken"]
    assert "broken_engine" not in sys.modules


def test_what_cannot_be_imported_names_its_package(site: Path) -> None:
    install(site, "sick", "sick = sick_engine:Sick", {"sick_engine.py": "import nosuchmodule"})
    with pytest.raises(InputError) as caught:
        engines().load("sick")
    assert str(caught.value) == (
        "the engine 'sick' of the package sick can't be used: can't import 'sick_engine:Sick': "
        "No module named 'nosuchmodule'; update or uninstall sick"
    )


def test_hastens_own_name_wins_and_the_package_that_wants_it_is_told_of(site: Path) -> None:
    install(site, "greedy", "null = greedy_engine:Null")
    known = engines()
    with pytest.warns(HiddenPlugin) as caught:
        assert list(known) == ["null"]
    assert known["null"] == "hasten.engines.null:Null"
    assert str(caught[0].message) == (
        "the engine 'null' of the package greedy isn't used: hasten already has one of that "
        "name; rename the package's entry point"
    )


def test_one_name_of_two_packages_is_refused_once_it_is_asked_for(site: Path) -> None:
    install(site, "one", "twin = one_engine:Twin")
    install(site, "two", "twin = two_engine:Twin")
    known = engines()
    assert list(known) == ["null", "twin"]
    with pytest.raises(InputError) as caught:
        known.load("twin")
    assert str(caught.value) == (
        "the engine 'twin' comes from two packages, one and two: uninstall one"
    )


def test_what_all_engines_and_metrics_state_is_read_without_any_runtime() -> None:
    code = (
        "import sys\n"
        "from hasten.engines.installed import tried_on\n"
        "from hasten.inputs.metrics.choice import forms\n"
        "from hasten.measure.environment import packages\n"
        "tried_on('host'), forms(), packages()\n"
        "heavy = {'onnx', 'onnxruntime', 'openvino', 'ai_edge_litert', 'torch', 'jax', 'coremltools'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Versions of installed packages, read without Python's library for their metadata."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.core.versions import installed_version


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder whose packages are installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path)])
    return tmp_path


def record(folder: Path, head: str) -> None:
    """Write the record of a package, as far as it is read."""
    folder.mkdir()
    (folder / "METADATA").write_text(head)


def twice(site: Path) -> None:
    """Write two records of one package."""
    for number in (1, 2):
        record(site / f"old-{number}.dist-info", "Version: 5\n")


def version(name: str) -> str | None:
    """Return a version that isn't kept from an earlier call."""
    return installed_version.__wrapped__(name)


def test_versions_are_those_of_pythons_own_library() -> None:
    found = {one.name: one.version for one in importlib.metadata.distributions()}
    assert {name: version(name) for name in found} == {
        name: importlib.metadata.version(name) for name in found
    }
    assert version("no-such-package-is-installed") is None


def test_a_name_is_found_in_each_spelling_and_by_its_own_metadata(site: Path) -> None:
    record(site / "My_Pack.age-1.0.dist-info", "Name: x\nVERSION: 1.0+local-2\n\nVersion: 3\n")
    record(site / "my_pack-9.dist-info", "Version: 9\n")
    assert version("my-pack.AGE") == version("my_pack_age") == "1.0+local-2"
    assert version("My.Pack") == "9"
    assert version("pack") is None


@pytest.mark.parametrize(
    "make",
    [
        lambda site: record(site / "old-1.0.egg-info", "Version: 5\n"),
        lambda site: (site / "old-1.0.egg-info").write_text("Version: 5\n"),
        twice,
    ],
)
def test_older_and_doubled_records_are_left_to_pythons_own_library(
    make: Callable[[Path], Any], site: Path
) -> None:
    make(site)
    try:
        expected = importlib.metadata.version("old")
    except importlib.metadata.PackageNotFoundError:
        expected = None
    assert version("old") == expected


def test_a_finder_of_packages_elsewhere_is_asked(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(
            context: importlib.metadata.DistributionFinder.Context,
        ) -> Iterator[importlib.metadata.Distribution]:
            if context.name == "far":
                yield importlib.metadata.PathDistribution(site / "far-7.dist-info")

    (site / "sub").mkdir()
    record(site / "far-7.dist-info", "Name: far\nVersion: 7\n")
    monkeypatch.setattr(sys, "path", [str(site / "sub")])
    assert version("far") is None
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Elsewhere])
    assert version("far") == "7"


def test_metadata_that_states_no_version_is_left_to_pythons_own_library(site: Path) -> None:
    record(site / "bare-2.dist-info", "Name: bare\n\nVersion: 2\n")
    assert version("bare") == importlib.metadata.version("bare")


def test_pythons_own_library_isnt_imported_for_it() -> None:
    program = (
        "import sys; from hasten.core.versions import installed_version as version; "
        "print(version('numpy') is not None, 'importlib.metadata' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "True False\n"

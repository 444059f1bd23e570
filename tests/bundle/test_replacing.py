"""What a new bundle may take the place of: an older one as it was written, and nothing else."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.support.bundles import forge, stated
from tests.support.jobs import job_in

from hasten.bundle import Part, folder, read, replaceable, write
from hasten.bundle.manifest import untimed_yet
from hasten.certificate.ledger import Ledger
from hasten.core.invocation import Invocation
from hasten.core.progress import nobody
from hasten.errors import InputError
from hasten.optimization.delivery import write_interim
from hasten.optimization.job import claimed
from hasten.optimization.judge import Shipment
from hasten.optimization.order import order_of
from hasten.optimization.ready import Ready

ADVICE = "it is not replaced: give another out= or remove it"


def content(path: Path) -> dict[str, bytes | None]:
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
    }


def write_anew(path: Path, winner: Part) -> None:
    write(path, stated(winner, None, why="newer"), {})


def interim(path: Path) -> None:
    job = job_in(path.parent / "elsewhere", out=path)
    write_interim(job, cast(Ready, SimpleNamespace()), cast(Shipment, SimpleNamespace()))


def claim(path: Path) -> None:
    order = order_of(out=path)
    with claimed(order, Invocation(), resume=False, listen=nobody, notes=(), ledger=Ledger(None)):
        pass


def refused(path: Path, winner: Part) -> str:
    """What is said before any work, during a run, and at its end: always the same; nothing changes."""
    before = content(path.parent)
    said = set()
    attempts: list[Callable[[], object]] = [
        lambda: claim(path),
        lambda: interim(path),
        lambda: write_anew(path, winner),
    ]
    for attempt in attempts:
        with pytest.raises(InputError) as error:
            attempt()
        said.add(str(error.value))
    assert content(path.parent) == before
    (only,) = said
    return only


def test_nothing_and_a_bundle_as_it_was_written_may_be_replaced(
    tmp_path: Path, bundle: Path
) -> None:
    assert replaceable(tmp_path / "none") is None
    found = replaceable(bundle)
    assert found is not None
    assert found["why"] == "sure enough"


@pytest.mark.parametrize("text", ['{"manifest_version": 3, "name": "mine"}', '{"files": {}}'])
def test_another_programs_folder_with_a_manifest_is_never_replaced(
    tmp_path: Path, winner: Part, text: str
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(text)
    (app / "background.js").write_text("years of work")
    assert refused(app, winner) == f"{app}: the manifest is damaged: it states no schema; {ADVICE}"


def test_a_file_and_a_folder_without_a_manifest_are_never_replaced(
    tmp_path: Path, winner: Part
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in ("file", "link"):
        path = tmp_path / name
        assert refused(path, winner) == (
            f"{path} exists and is not a bundle; give another out= or remove it"
        )


@pytest.mark.parametrize("name", ["notes.txt", "model/thesis.txt", "evidence/.hidden"])
def test_a_bundle_with_something_else_in_it_is_never_replaced(
    bundle: Path, winner: Part, name: str
) -> None:
    (bundle / name).write_text("years of work")
    assert refused(bundle, winner) == (
        f"{bundle} holds {name!r}, which is not part of the bundle; {ADVICE}"
    )


def test_a_bundle_with_a_link_in_it_is_never_replaced(bundle: Path, winner: Part) -> None:
    (bundle / "data").symlink_to(bundle.parent)
    assert (
        refused(bundle, winner)
        == f"{bundle} holds 'data', which is not part of the bundle; {ADVICE}"
    )


def test_what_an_unfinished_run_certified_gives_way_to_nothing_uncertified(
    tmp_path: Path, winner: Part
) -> None:
    path = tmp_path / "b"
    write(path, stated(winner, None, why=untimed_yet("sure enough")), {})
    before = content(path)
    interim(path)
    assert content(path) == before
    write_anew(path, winner)  # but its own run's end, or another's certificate, takes its place
    assert read(path).why == "newer"


def test_a_damaged_bundle_is_never_replaced(bundle: Path, winner: Part) -> None:
    (bundle / "report.html").write_text("<p>my own report")
    assert refused(bundle, winner) == (
        f"{bundle}: report.html has 16 bytes, but 3 were written; {ADVICE}"
    )
    (bundle / "report.html").unlink()
    assert refused(bundle, winner) == f"{bundle}: report.html is missing; {ADVICE}"
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace("sure enough", "very sure!!"))
    assert refused(bundle, winner) == (
        f"{bundle}: the manifest was changed after it was written; {ADVICE}"
    )


def test_a_bundle_by_a_newer_version_is_never_replaced(bundle: Path, winner: Part) -> None:
    forge(bundle, lambda record: record.update(schema=2))
    assert refused(bundle, winner) == (
        f"{bundle} was written by a newer version of hasten (schema 2, this one reads 1); upgrade "
        f"hasten; {ADVICE}"
    )


def test_a_manifest_that_lists_no_files_is_damaged(bundle: Path, winner: Part) -> None:
    forge(bundle, lambda record: record.update(files=None))
    assert refused(bundle, winner) == (
        f"{bundle}: the manifest is damaged: a dict record can't be read: Expected `object`, got "
        f"`null`; {ADVICE}"
    )


def test_large_files_are_not_hashed_to_see_whether_they_may_be_replaced(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "file_digest", None)
    assert replaceable(bundle) is not None


# -- killed while it is replaced

KILLED = """
import os, pathlib, shutil, sys
from dataclasses import replace
from hasten.bundle import read, write
path = pathlib.Path(sys.argv[1])
old = read(path)
inside = replace(old.winner, artifact=replace(old.winner.artifact, path=path / old.winner.artifact.path))
rename = pathlib.Path.rename
def last(*words, **named):
    os._exit(7)
def rename_and_end(*words):
    rename(*words)
    os._exit(7)
shutil.rmtree, pathlib.Path.rename = last, rename_and_end
write(path, replace(old, winner=inside, exact=None, why="newer"), {})
"""


def test_a_kill_while_a_bundle_is_replaced_leaves_a_whole_one(bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(bundle)], check=False)
    assert done.returncode == 7
    assert read(bundle).why == "newer"


@pytest.mark.parametrize("kind", ["no such call", "not on this disk"])
def test_where_names_can_not_be_exchanged_an_older_bundle_is_replaced_too(
    bundle: Path, winner: Part, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    library = SimpleNamespace() if kind == "no such call" else SimpleNamespace(renameat2=refusing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    write_anew(bundle, winner)
    assert read(bundle).why == "newer"
    assert [p for p in bundle.parent.iterdir() if p.name.startswith(".")] == []


def refusing(*words: object) -> int:
    return -1

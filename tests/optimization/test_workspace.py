"""A run's work folder: who may have it, what is removed, and what tells data apart."""

import fcntl
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.parts import data_digest, lay_out
from hasten.optimization import workspace
from hasten.optimization.workspace import JOURNAL, check_same_run, claimed_folder, discard


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for a folder as often as ever, without the pauses between."""
    monkeypatch.setattr(workspace, "_LOCK_PAUSE_S", 0.0)


def refused(folder: Path, *, resume: bool = False) -> str:
    with pytest.raises(InputError) as error, claimed_folder(folder, resume=resume):
        pass
    return str(error.value)


def stopped(folder: Path) -> Path:
    """A run that began and was stopped."""
    with claimed_folder(folder, resume=False) as journal:
        check_same_run(journal, {"model": "m"})
    return folder


# -- whose it is


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_nobody_is_told_to_remove_a_live_runs_folder(
    tmp_path: Path, resume: bool, begun: bool
) -> None:
    folder = tmp_path / "b.work"
    with claimed_folder(folder, resume=False) as journal:
        if begun:
            check_same_run(journal, {"model": "m"})
        assert refused(folder, resume=resume) == (
            f"another run is using {folder}: wait for it, or stop it"
        )


def test_a_run_that_ended_just_now_and_removed_its_folder_still_counts_as_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(tmp_path / "b.work")
    monkeypatch.setattr(fcntl, "flock", lambda file, how: shutil.rmtree(folder))
    assert refused(folder) == f"another run is using {folder}: wait for it, or stop it"


def test_a_stopped_run_is_gone_on_with_or_removed(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "b.work")
    assert refused(folder) == (
        f"{folder} contains an unfinished run: continue it with resume=True, or remove that folder"
    )
    with claimed_folder(folder, resume=True) as journal:
        assert journal.last("begin") is not None


def test_where_there_is_nothing_to_resume_nothing_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "b.work"
    said = f"nothing to resume: there is no {folder / JOURNAL}; run without resume=True"
    assert refused(folder, resume=True) == said
    assert not folder.exists()
    folder.mkdir()
    assert refused(folder, resume=True) == said
    assert list(folder.iterdir()) == []
    (folder / JOURNAL).touch()
    assert refused(folder, resume=True) == said


@pytest.mark.parametrize(
    "line", ['{"kind": "trial", "trial": {}}', '{"kind": "begin"}', '{"kind": "begin", "facts": 1}']
)
def test_a_journal_that_does_not_begin_as_one_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / JOURNAL).write_text(f"{line}\n")
    assert refused(tmp_path, resume=True) == (
        f"{tmp_path / JOURNAL} doesn't begin as the journal of a run: remove {tmp_path}, and run without "
        "resume=True"
    )


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("which", ["folder", "journal"])
@pytest.mark.parametrize("how", ["owner", "rights"])
def test_a_work_folder_that_others_may_have_written_is_not_used(
    tmp_path: Path, begun: bool, which: str, how: str
) -> None:
    folder = tmp_path / "b.work"
    if begun:
        stopped(folder)
    else:
        folder.mkdir(mode=0o700)
        (folder / JOURNAL).touch(mode=0o600)
    path = folder if which == "folder" else folder / JOURNAL
    if how == "rights":
        path.chmod(0o777)
        why = "every user may write to it"
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
        why = "it belongs to another user (number 12345)"
    else:
        pytest.skip("only root can give a file to another user")
    assert refused(folder, resume=begun) == (
        f"{path} can't be trusted, since {why}: remove {folder}, and run without resume=True"
    )


def test_a_run_under_any_mask_can_be_resumed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = stopped(tmp_path / "b.work")
    finally:
        os.umask(before)
    with claimed_folder(folder, resume=True) as journal:
        assert journal.last("begin") is not None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_in_its_place_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "b.work"
    if kind == "folder":
        folder.mkdir()
    mine = folder / "thesis.txt" if kind == "folder" else folder
    mine.write_text("years of work")
    assert (
        refused(folder) == f"{folder} is needed as a work folder, but contains something else; "
        "move it"
    )
    discard(folder)
    assert mine.read_text() == "years of work"
    assert list(tmp_path.rglob(JOURNAL)) == []


def test_what_a_damaged_journal_says_to_do_works(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "b.work")
    (folder / "search").mkdir()
    with (folder / JOURNAL).open("ab") as file:
        file.write(b"{\n")
    assert refused(folder, resume=True) == (
        f"{folder / JOURNAL}: line 2 is damaged; remove {folder} to start again"
    )
    shutil.rmtree(folder)
    stopped(folder)


# -- removed


def test_a_stopped_runs_folder_is_discarded(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "b.work")
    (folder / "search").mkdir()
    discard(folder)
    assert not folder.exists()
    discard(folder)  # nothing there is nothing to do


def test_a_live_runs_folder_is_not_discarded(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "b.work")
    with claimed_folder(folder, resume=True):
        discard(folder)
        assert (folder / JOURNAL).exists()


@pytest.mark.parametrize("text", ["", "dear diary", '{"kind": "diary"}\n'])
def test_another_programs_journal_is_not_discarded(tmp_path: Path, text: str) -> None:
    (tmp_path / JOURNAL).write_text(text)
    discard(tmp_path)
    assert (tmp_path / JOURNAL).read_text() == text


# -- what tells data apart


def digest_of(folder: Path, labels: Any) -> str:
    x = np.arange(40, dtype=np.float32).reshape(40, 1)
    data = ArrayDataset({"x": x}, labels=labels)
    return data_digest(lay_out(data, folder, calibration=4, seed=0, training=None))


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(40),
        np.array([f"kind {i}" for i in range(40)]),
        np.arange(40).astype("datetime64[D]"),
        np.arange(40.0).reshape(40, 1),
        np.zeros((40, 0)),
        np.arange(40) % 2 == 0,
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_the_same_labels_have_one_digest_and_others_another(tmp_path: Path, labels: Array) -> None:
    one = digest_of(tmp_path, labels)
    assert digest_of(tmp_path, labels.copy(order="F")) == one
    assert digest_of(tmp_path, np.repeat(labels, 2, axis=0)[::2]) == one
    others = [None, labels.reshape(40, -1, 1)]
    if labels.size:
        others.append(labels[::-1])
    assert one not in [digest_of(tmp_path, other) for other in others]


def test_labels_of_another_type_are_others(tmp_path: Path) -> None:
    labels = np.zeros(40, np.int32)
    found = {digest_of(tmp_path, labels.astype(kind)) for kind in ("i4", "f4", "u4")}
    assert len(found) == 3


def test_the_digest_of_large_labels_takes_little_memory(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).random((40, 12_500))
    x = np.arange(40, dtype=np.float32).reshape(40, 1)
    parts = lay_out(
        ArrayDataset({"x": x}, labels=labels), tmp_path, calibration=4, seed=0, training=None
    )
    tracemalloc.start()
    try:
        data_digest(parts)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * labels.nbytes

"""Archives that claim to unpack to more than their size allows."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from tests.support.bombs import padded, with_little_unasked

from hasten.core.archives import excess


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("a", b"a" * 100)
    return path


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "a.zip")
    with path.open("rb") as file:
        assert excess(file) == ""
    said = padded(path, "zeros")
    with path.open("rb") as file:
        assert excess(file) == ""  # as little as any may
        with_little_unasked(monkeypatch)
        assert excess(file) == said


def test_entries_that_share_their_bytes_are_counted_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_little_unasked(monkeypatch)
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as new:
        new.writestr("a", bytes(200_000))
        new.filelist += new.filelist * 29
        new._didModify = True  # type: ignore[attr-defined]
    assert excess(plain).endswith("would unpack to 6,000,000, more than 20 times as many")


def test_an_archive_with_something_behind_its_list_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    with path.open("ab") as file:
        file.write(b"more")
    with path.open("rb") as file:
        assert excess(file) == "it doesn't end with the list of its entries"


def test_what_is_no_archive_is_none() -> None:
    with pytest.raises(zipfile.BadZipFile):
        excess(io.BytesIO(b"no"))

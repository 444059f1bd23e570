"""The folder: written whole or not at all, and every file checked before it is used."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hasten.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    Part,
    check_artifact,
    check_engines,
    check_values,
    one_line,
)
from hasten.engines.base import Artifact
from hasten.errors import InputError, IntegrityError
from hasten.records import digest, file_digest, from_record, read_json, to_record

_MANIFEST_BYTES = 4 << 20
"""30,000 files' worth; read, it takes 50 times as much memory at worst."""


def write(
    path: Path, manifest: Manifest, evidence: Mapping[str, Any], extra: Mapping[str, bytes] = {}
) -> Manifest:
    """Write a bundle beside its place and rename it, so that it is whole or absent.

    Args:
        path: The folder to be; an older bundle there is replaced.
        manifest: With the parts' artifacts where they were built.
        evidence: File name -> record, written as JSON under `evidence/`.
        extra: File name -> bytes, written as they are.

    Returns:
        The manifest as written; its sentences are on one line each.

    Raises:
        InputError: the disk is full, `path` is there and is no bundle, or the model's own names
            have control characters.
    """
    if path.exists() and not (path / MANIFEST).exists():
        raise InputError(f"{path} exists and is no bundle; give another --out or remove it")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        (beside / "evidence").mkdir(parents=True)
        winner, exact = _moved_in(manifest.winner, beside, "model"), manifest.exact
        if exact is not None:
            same = exact == manifest.winner
            exact = winner if same else _moved_in(exact, beside, "exact")
        for name, record in evidence.items():
            _put_json(beside / "evidence" / name, record)
        for name, data in extra.items():
            (beside / name).write_bytes(data)
        manifest = replace(_legible(manifest), winner=winner, exact=exact, files=_files(beside))
        record = to_record(manifest)
        try:
            check_values(record)
        except IntegrityError as error:
            raise InputError(f"can't write {path}: {error}; rename it") from error
        _put_json(beside / MANIFEST, {**record, "digest": digest(record)})
        _swap(beside, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def _moved_in(item: Part, folder: Path, name: str) -> Part:
    """Copy a part's files into `folder/name` and point the part at them, relative to `folder`."""
    (folder / name).mkdir()
    base = item.artifact.path.parent
    for file in (item.artifact.path, *item.artifact.files):
        goal = folder / name / file.relative_to(base)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, goal)
    artifact = replace(
        item.artifact,
        path=Path(name) / item.artifact.path.name,
        files=tuple(Path(name) / file.relative_to(base) for file in item.artifact.files),
        custom_ops=(),
    )
    return replace(item, artifact=artifact)


def _legible(manifest: Manifest) -> Manifest:
    """Put what people and runtimes wrote freely on one line each."""
    certificate = manifest.certificate
    if certificate is not None:
        sentences = {key: one_line(text) for key, text in certificate.items() if type(text) is str}
        certificate = {**certificate, **sentences}
    return replace(manifest, why=one_line(manifest.why), certificate=certificate)


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    """List every file of a folder as a manifest does."""
    inside = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): (file_digest(file), file.stat().st_size)
        for file in inside
    }


def _put_json(file: Path, record: Any) -> None:
    """Write a record as JSON for people to read; the folder's renaming is what makes it whole."""
    file.write_bytes(json.dumps(to_record(record), indent=1).encode() + b"\n")


def _swap(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read(path: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Raises:
        InputError: there is no bundle.
        IntegrityError: damaged, truncated, tampered with, or written by a newer version.
    """
    if not path.exists():
        raise InputError(f"no bundle at {path}: no such file or folder")
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path} is no bundle: it has no {MANIFEST}")
    if (path / MANIFEST).stat().st_size > _MANIFEST_BYTES:
        raise IntegrityError(f"{path}: the manifest is larger than {_MANIFEST_BYTES >> 20} MiB")
    try:
        manifest = _read_manifest(path)
    except RecursionError as error:
        raise IntegrityError(f"{path}: the manifest is damaged: it is nested too deep") from error
    for name, (sha256, size_bytes) in manifest.files.items():
        _check_file(path, name, sha256, size_bytes)
    return manifest


def _read_manifest(path: Path) -> Manifest:
    """Read the manifest itself; its own digest first, since what is damaged says nothing."""
    record = read_json(path / MANIFEST)
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise IntegrityError(f"{path}: the manifest is damaged: it states no schema")
    if record["schema"] > SCHEMA:
        raise IntegrityError(
            f"{path} was written by a newer version of hasten (schema {record['schema']!s:.20}, this "
            f"one reads {SCHEMA}); upgrade hasten"
        )
    stated = record.pop("digest", None)
    if stated != digest(record):
        raise IntegrityError(f"{path}: the manifest was changed after it was written")
    try:
        check_values(record)
        manifest = from_record(Manifest, record)
        check_engines(manifest)
    except InputError as error:
        raise IntegrityError(f"{path}: the manifest is damaged: {error}") from error
    return manifest


def _inside(path: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    # One name for one file, else a large one could be listed, and read, without end.
    strange = pure.is_absolute() or pure.as_posix() != name
    # Neither ".." nor a link on the way. `Path.resolve` would raise where links go in circles.
    if strange or Path(os.path.realpath(path / pure)) != Path(os.path.realpath(path)) / pure:
        raise IntegrityError(f"{path}: {name!r} leads out of the bundle")
    return path / pure


def _check_file(path: Path, name: str, sha256: str, size_bytes: int) -> None:
    file = _inside(path, name)
    try:
        if not file.is_file():
            raise IntegrityError(f"{path}: {name} is missing")
        if (size := file.stat().st_size) != size_bytes:
            raise IntegrityError(f"{path}: {name} has {size:,} bytes, {size_bytes:,} were written")
        if file_digest(file) != sha256:
            raise IntegrityError(f"{path}: {name} was changed after it was written")
    except OSError as error:
        raise IntegrityError(f"{path}: {name:.100} can't be read: {error.strerror}") from error


def artifact_of(path: Path, item: Part, manifest: Manifest, custom_ops: Sequence[Path]) -> Artifact:
    """Return a part's artifact with its paths inside the bundle, none of them outside it.

    Raises:
        IntegrityError: a path leads out, or isn't among the checked files; or no model can take or
            give what it says.
        InputError: operator libraries are missing, or others than those that were certified.
    """
    for file in (item.artifact.path, *item.artifact.files):
        if file.as_posix() not in manifest.files:
            raise IntegrityError(f"{path}: {file} is not listed in the manifest")
    try:
        check_artifact(item.artifact)
    except IntegrityError as error:
        raise IntegrityError(
            f"{path}: the model {item.label!r:.100} is damaged: {error}"
        ) from error
    given = tuple(file_digest(library) for library in custom_ops)
    if given != item.custom_ops:
        raise InputError(
            f"this model needs {len(item.custom_ops)} operator libraries, the same files as when it "
            f"was made; got {len(given)}{' others' if len(given) == len(item.custom_ops) else ''}"
        )
    return replace(
        item.artifact,
        path=_inside(path, item.artifact.path.as_posix()),
        files=tuple(_inside(path, file.as_posix()) for file in item.artifact.files),
        custom_ops=tuple(custom_ops),
    )

"""A bundle: a folder with the model, its certificate and its evidence. Write it, check it, load it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from hasten.engines.base import Artifact, Engine, Session
from hasten.errors import InputError, IntegrityError
from hasten.pipeline.base import Pipeline
from hasten.records import (
    digest,
    file_digest,
    from_record,
    read_json,
    to_record,
)
from hasten.target import Target
from hasten.tensors import Array, TensorSpec, check_tensors

SCHEMA = 1
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 << 20
Status: TypeAlias = Literal["certified", "exact", "uncertified"]


class NotCertifiedHere(UserWarning):
    """A bundle is used outside what its certificate covers."""


@dataclass(frozen=True)
class Part:
    """A model that a bundle holds, and how to run it. Paths are relative to the bundle.

    Attributes:
        label: What it is, for people.
        passes: The records of the passes that made it.
        engine: The record of the engine's settings.
        artifact: What the engine opens.
        custom_ops: SHA-256 of each operator library that it needs; the libraries themselves are
            native code, so a bundle never carries them and `load` takes them by name.
    """

    label: str
    passes: tuple[dict[str, Any], ...]
    engine: dict[str, Any]
    artifact: Artifact
    custom_ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a bundle states about itself.

    Attributes:
        status: "certified"; "exact" (the original precision, so no test is needed); or
            "uncertified".
        why: The status in words.
        winner: The model that `load` opens.
        exact: The exact model, or None with `--no-exact`.
        metric: The metric's record.
        certificate: The judgement's fields, what it covers, the population; None where the
            winner was not judged.
        source_sha256: Of the model that was given.
        sealed: How many samples were sealed and the SHA-256 over their hashes.
        target: The device.
        environment: Versions and host, as the measurements were taken.
        pipeline: What the inputs went through before; None where the data came as tensors.
        created: ISO 8601, UTC.
        files: Relative path -> [SHA-256, size in bytes].
        schema: Version of this record.
    """

    status: Status
    why: str
    winner: Part
    exact: Part | None
    metric: dict[str, Any]
    certificate: dict[str, Any] | None
    source_sha256: str
    sealed: dict[str, Any]
    target: Target
    environment: dict[str, str]
    pipeline: Pipeline | None
    created: str
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    schema: int = SCHEMA


def part(label: str, passes: Sequence[Any], engine: Engine, artifact: Artifact) -> Part:
    """Describe a built candidate; its paths stay where it was built until `write`."""
    hashes = tuple(file_digest(path) for path in artifact.custom_ops)
    records = tuple(to_record(step) for step in passes)
    return Part(label, records, to_record(engine), artifact, hashes)


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
        The manifest as written.

    Raises:
        InputError: the disk is full, or `path` is there and is no bundle.
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
        manifest = replace(manifest, winner=winner, exact=exact)
        for name, record in evidence.items():
            _put_json(beside / "evidence" / name, record)
        for name, data in extra.items():
            (beside / name).write_bytes(data)
        inside = sorted(file for file in beside.rglob("*") if file.is_file())
        files = {
            file.relative_to(beside).as_posix(): (file_digest(file), file.stat().st_size)
            for file in inside
        }
        manifest = replace(manifest, files=files)
        record = to_record(manifest)
        _put_json(beside / MANIFEST, {**record, "digest": digest(record)})
        _swap(beside, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


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
    record = read_json(path / MANIFEST)
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise IntegrityError(f"{path}: the manifest is damaged: it states no schema")
    if record["schema"] > SCHEMA:
        raise IntegrityError(
            f"{path} was written by a newer version of hasten (schema {record['schema']}, this one "
            f"reads {SCHEMA}); upgrade hasten"
        )
    stated = record.pop("digest", None)
    if stated != digest(record):
        raise IntegrityError(f"{path}: the manifest was changed after it was written")
    manifest = from_record(Manifest, record)
    for name, (sha256, size_bytes) in manifest.files.items():
        _check_file(path, name, sha256, size_bytes)
    return manifest


def _inside(path: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    file = path / pure
    strange = pure.is_absolute() or "\0" in name
    # Neither ".." nor a link on the way. `Path.resolve` would raise where links go in circles.
    if strange or Path(os.path.realpath(file)) != Path(os.path.realpath(path)) / pure:
        raise IntegrityError(f"{path}: {name!r} leads out of the bundle")
    return file


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
        IntegrityError: a path leads out, or isn't among the checked files.
        InputError: operator libraries are missing, or others than those that were certified.
    """
    for file in (item.artifact.path, *item.artifact.files):
        if file.as_posix() not in manifest.files:
            raise IntegrityError(f"{path}: {file} is not listed in the manifest")
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


def differences(manifest: Manifest, here: Target, versions: Mapping[str, str]) -> list[str]:
    """Say where this machine differs from what the certificate covers; empty where it doesn't."""
    engine = manifest.winner.engine["type"]
    facts = [
        ("processor", manifest.target.processor, here.processor),
        ("instruction sets", " ".join(manifest.target.isa), " ".join(here.isa)),
        (engine, manifest.environment.get(engine, "none"), versions.get(engine, "none")),
    ]
    if here.threads < manifest.target.threads:  # with more, it still runs on as many as there
        facts.append(("threads", str(manifest.target.threads), str(here.threads)))
    return [f"{name}: {there} there, {now} here" for name, there, now in facts if there != now]


class Loaded:
    """An open bundle: a callable with the model's own inputs and outputs.

    Attributes:
        manifest: What the bundle states.
        not_certified: Why the certificate doesn't hold here; empty where it does.

    Args:
        certified: The inputs of one request that a certificate covers; empty for any.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        close: contextlib.ExitStack,
        notes: Sequence[str],
        certified: Sequence[TensorSpec] = (),
    ) -> None:
        self.manifest = manifest
        self.not_certified = tuple(notes)
        self._session = session
        self._close = close
        self._names = tuple(spec.name for spec in session.inputs)
        self._only = session.inputs[0] if len(session.inputs) == 1 else None
        self._certified = {spec.name: spec.shape for spec in certified}

    def __call__(self, *arrays: Any, **named: Any) -> dict[str, Array]:
        """Answer one request.

        Args:
            *arrays: The inputs in the model's order, or one mapping of input name to array.
            **named: Or the inputs by name.

        Returns:
            Arrays by output name.

        Raises:
            InputError: which input doesn't fit, and what the model takes.
            CandidateError: the engine failed.
        """
        only = self._only
        if only is not None and len(arrays) == 1 and type(arrays[0]) is np.ndarray and not named:
            array = arrays[0]
            if only.fits(array) and array.flags.c_contiguous:
                self._warn_of({only.name: array})
                return self._session.run({only.name: array})
        tensors = self._tensors(arrays, named)
        self._warn_of(tensors)
        return self._session.run(tensors)

    def _tensors(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            named = {**arrays[0], **named}
            arrays = ()
        if len(arrays) > len(self._names):
            raise InputError(f"the model takes {len(self._names)} inputs; got {len(arrays)}")
        by_place = dict(zip(self._names, arrays, strict=False))
        if twice := by_place.keys() & named.keys():
            raise InputError(f"input {min(twice)!r} is given twice, by its place and by its name")
        tensors = {}
        for name, array in {**by_place, **named}.items():
            try:
                tensors[name] = np.asarray(array, order="C")
            except ValueError as error:
                raise InputError(f"input {name!r} is no array: {error}") from error
        check_tensors(tensors, self._session.inputs)
        return tensors

    def _warn_of(self, tensors: Mapping[str, Array]) -> None:
        """Say once that requests have another shape than the certified ones: another batch size."""
        for name, shape in self._certified.items():
            if tensors[name].shape != shape:
                self._certified = {}
                note = f"{name} of shape {list(shape)} there, {list(tensors[name].shape)} here"
                self.not_certified += (note,)
                warnings.warn(f"not certified here: {note}", NotCertifiedHere, stacklevel=3)
                return

    def close(self) -> None:
        """Free the engine."""
        self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    which: Literal["winner", "exact"] = "winner",
    custom_ops: Sequence[Path] = (),
) -> Loaded:
    """Check a bundle and open its model on the engine that it names.

    Args:
        path: The bundle's folder.
        which: The winner, or the exact model that it was compared to.
        custom_ops: The libraries with the user's own operators, the same files as at the making.

    Raises:
        InputError: no bundle, or it holds no exact model, or the engine isn't installed.
        CandidateError: the engine can't open the model here.
        IntegrityError: damaged, truncated, tampered with, or from a newer version.

    Warns:
        NotCertifiedHere: this machine or engine version isn't what was certified, or it has fewer
            threads to give; a call warns once where its shapes aren't.
    """
    from hasten.measure.environment import versions

    folder = Path(path)
    manifest = read(folder)
    item = manifest.winner if which == "winner" else manifest.exact
    if item is None:
        raise InputError(f"{folder} was made with --no-exact: it holds no exact model")
    engine = from_record(Engine, item.engine)
    engine.version()
    here = Target.host()
    notes = differences(manifest, here, versions())
    if manifest.status == "uncertified":
        notes.insert(0, manifest.why)
    if notes and which == "winner" and manifest.status != "exact":
        warnings.warn(f"not certified here: {'; '.join(notes)}", NotCertifiedHere, stacklevel=2)
    closing = contextlib.ExitStack()
    artifact = artifact_of(folder, item, manifest, custom_ops)
    threads = min(manifest.target.threads, here.threads)
    session = closing.enter_context(engine.open(artifact, here.with_threads(threads)))
    judged = which == "winner" and manifest.status == "certified"
    return Loaded(manifest, session, closing, notes, artifact.request if judged else ())

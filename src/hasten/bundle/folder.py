"""Write a bundle's folder whole or not at all, and check every file before it is used."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hasten.bundle.manifest import (
    MANIFEST,
    MANIFEST_BYTES,
    SCHEMA,
    SIGNATURE,
    Manifest,
    Part,
    check_artifact,
    check_engines,
    check_pipeline,
    check_sequences,
    check_tables,
    check_values,
    naming_packages,
    one_line,
)
from hasten.bundle.requests import REQUESTS, check_requests, packed, shapes_of
from hasten.core.growth import check_growth
from hasten.core.presence import is_there
from hasten.core.ranges import check_ranges
from hasten.core.records import bounded_bytes, digest, file_digest, from_record, to_record
from hasten.core.tensors import Tensors
from hasten.core.words import amount
from hasten.engines.checked import CheckedArtifact, check_external
from hasten.errors import InputError, IntegrityError, UnknownMember

if TYPE_CHECKING:
    from hasten.bundle.signatures import PublicKey

EVIDENCE, REPORT = "evidence/", "report.html"
"""Begin of the paths of a run's records in a bundle, and the path of its report."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of linux/fcntl.h and linux/fs.h for renameat2; see man 2 rename."""


def write(
    path: Path,
    manifest: Manifest,
    evidence: Mapping[str, Any],
    extra: Mapping[str, bytes] = {},
    requests: Sequence[Tensors] = (),
) -> Manifest:
    """Write a bundle under a temporary name and rename it, so that it is whole or absent.

    Args:
        path: Folder of the new bundle; an older bundle there is replaced if it is `replaceable`.
        manifest: Manifest whose parts point at the artifacts where they were built.
        evidence: File name -> record, written as JSON under `evidence/`.
        extra: File name -> bytes, written unchanged.
        requests: Samples of the data, as the winner takes them: see `hasten.bundle.requests`.

    Returns:
        The manifest as written, with each of its sentences on one line.

    Raises:
        InputError: the disk is full, what is at `path` isn't replaceable, a request doesn't fit the
            winner, or the model's own names have control characters.
    """
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
        if requests:
            specs = winner.artifact.inputs if manifest.shapes else winner.artifact.request
            (beside / REQUESTS).write_bytes(packed(requests, specs))
        manifest = replace(
            _legible(manifest),
            winner=winner,
            exact=exact,
            requests=len(requests),
            request_shapes=shapes_of(requests, winner.artifact.request),
            files=_files(beside),
        )
        record = to_record(manifest)
        try:
            check_values(record)
        except IntegrityError as error:
            raise InputError(f"can't write {path}: {error}; rename it") from error
        _put_manifest(beside, record)
        put_in_place(beside, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        discard(beside)
    return manifest


def lean_copy(
    folder: Path, manifest: Manifest, out: Path, *, keep_exact: bool, keep_evidence: bool
) -> Path:
    """Copy a bundle without what nobody needs who only wants its answers, and return the new folder.

    Args:
        folder: The bundle's folder.
        manifest: Its manifest.
        out: Folder that doesn't exist.
        keep_exact: Whether to keep the exact model.
        keep_evidence: Whether to keep the records of the run and its report.

    Raises:
        InputError: there is no room.
    """
    winner, exact = manifest.winner.artifact, manifest.exact
    kept = {winner.path.as_posix(), *(file.as_posix() for file in winner.files)}
    gone: set[str] = set()
    if exact is not None and not keep_exact:
        gone = {file.as_posix() for file in (exact.artifact.path, *exact.artifact.files)} - kept
    if not keep_evidence:
        gone |= {name for name in manifest.files if name.startswith(EVIDENCE) or name == REPORT}
    files = {name: stated for name, stated in manifest.files.items() if name not in gone}
    lean = replace(manifest, exact=exact if keep_exact else None, files=files)
    try:
        for name in files:
            goal = out / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, goal)
        _put_manifest(out, to_record(lean))
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror or error}") from error
    return out


def _put_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write a manifest with its digest."""
    _put_json(folder / MANIFEST, {**record, "digest": digest(record)})


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
    """Put each text that people and runtimes wrote freely on one line."""
    certificate = manifest.certificate
    if certificate is not None:
        sentences = {key: one_line(text) for key, text in certificate.items() if type(text) is str}
        certificate = {**certificate, **sentences}
    return replace(manifest, why=one_line(manifest.why), certificate=certificate)


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    """Map the relative path of every file in a folder to its SHA-256 and its size in bytes."""
    inside = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): (file_digest(file), file.stat().st_size)
        for file in inside
    }


def _put_json(file: Path, record: Any) -> None:
    """Write a record as indented JSON; not atomic, since the whole folder is renamed afterwards."""
    file.write_bytes(json.dumps(to_record(record), indent=1).encode() + b"\n")


def put_in_place(new: Path, path: Path) -> None:
    """Move a new folder to `path`; an old bundle may be left under the new folder's former name.

    Raises:
        InputError: `path` exists and isn't replaceable, or can't be renamed.
    """
    try:
        if replaceable(path) is None:
            new.rename(path)
        elif not _exchanged(new, path):
            _renamed(new, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {not_replaced(error)}") from error


def not_replaced(error: OSError) -> str:
    """Say why a path can't be written or get another's name, and what to do about it where that isn't plain."""
    said = error.strerror or str(error)
    if error.errno == errno.EBUSY:
        said += "; a mount point has to keep its name: mount the folder around it instead"
    elif error.errno == errno.EXDEV:
        said += "; a folder of a container's image has to keep its name: mount the folder around it"
    return said


def _renamed(new: Path, path: Path) -> None:
    """Put a new folder in an old one's place where the names can't be exchanged at once."""
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(path)
        raise
    discard(old)


def discard(path: Path) -> None:
    """Remove a folder, or the link to one whose name another took, if it is there."""
    with contextlib.suppress(OSError):
        if path.is_symlink():
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names atomically, so that a killed process leaves a folder under both.

    Returns:
        Whether the names were exchanged; False, with nothing done, if the C library or the file
        system can't.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0


def replaceable(path: Path) -> dict[str, Any] | None:
    """Check that a new bundle may replace whatever is at `path`; contents aren't hashed.

    Returns:
        The manifest's record of the bundle at `path`; None if `path` doesn't exist.

    Raises:
        InputError: `path` is not a bundle, or is a damaged one, one by a newer version, or one that
            holds other files too.
    """
    todo = "give another out= or remove it"
    if not os.path.lexists(path):
        return None
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path} exists and is not a bundle; {todo}")
    try:
        record, files = _record(manifest_bytes(path), path)
        for name, (_, size_bytes) in files.items():
            _check_size(path, name, size_bytes)
    except IntegrityError as error:
        raise InputError(f"{error}; it is not replaced: {todo}") from error
    if strange := unlisted(path, files):
        raise InputError(
            f"{path} holds {strange!r:.100}, which is not part of the bundle; it is not replaced: {todo}"
        )
    return record


def unlisted(path: Path, files: Container[str]) -> str:
    """Return the path of a file or a link in a bundle's folder that isn't part of it; "" if all are."""
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        known = name in (MANIFEST, SIGNATURE) or name in files
        if (file.is_symlink() or not file.is_dir()) and not known:
            return name
    return ""


def read(path: Path, trusted: Sequence[PublicKey] = ()) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        path: The bundle's folder.
        trusted: Keys, one of which the bundle must be signed by; none where unsigned ones will do.

    Raises:
        InputError: there is no bundle at `path`.
        IntegrityError: the bundle is damaged, truncated, tampered with, written by a newer version, or
            not signed by such a key.
    """
    manifest = read_sizes(path, trusted)
    for name, (sha256, size_bytes) in manifest.files.items():
        check_file(path, name, sha256, size_bytes)
    return manifest


def read_sizes(path: Path, trusted: Sequence[PublicKey] = ()) -> Manifest:
    """Read a bundle's manifest and check the size of every file against it.

    A folder that has to be signed holds nothing else than what the signature covers, since a runtime
    might look for files beside those that it is given.

    Raises:
        InputError: there is no bundle at `path`.
        IntegrityError: the manifest is damaged or isn't signed by a key of `trusted`, or a file has
            another size.
    """
    if not is_there(path):
        raise InputError(f"no bundle at {path}: no such file or folder")
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST}")
    manifest = parsed(manifest_bytes(path, trusted), path)
    for name, (_, size_bytes) in manifest.files.items():
        _check_size(path, name, size_bytes)
    if trusted and (strange := unlisted(path, manifest.files)):
        raise IntegrityError(
            f"{path} can't be trusted: it holds {strange!r:.100}, which its signature doesn't "
            "cover; remove that file"
        )
    return manifest


def manifest_bytes(path: Path, trusted: Sequence[PublicKey] = (), said: str = "") -> bytes:
    """Read a manifest's file once: what was checked is what is used.

    Args:
        path: Folder with the manifest.
        trusted: Keys, one of which must have signed it; none where an unsigned one will do.
        said: Name of the bundle for messages; by default the folder's.

    Raises:
        IntegrityError: it can't be read, is too large, or isn't signed by such a key.
    """
    said = said or str(path)
    try:
        data = bounded_bytes(path / MANIFEST, MANIFEST_BYTES)
    except OSError as error:
        raise IntegrityError(f"{said}: the manifest can't be read: {error.strerror}") from error
    if len(data) > MANIFEST_BYTES:
        raise IntegrityError(f"{said}: the manifest is larger than {MANIFEST_BYTES >> 20} MiB")
    if trusted:
        from hasten.bundle.signatures import check_signed

        check_signed(data, path / SIGNATURE, trusted, said)
    return data


def parsed(data: bytes, path: Path, said: str = "") -> Manifest:
    """Return a manifest of which all that it states was checked; no other file is looked at.

    Args:
        data: Bytes of the manifest's file.
        path: Folder with the manifest.
        said: Name of the bundle for messages; by default the folder's.

    Raises:
        IntegrityError: the manifest is damaged, tampered with, written by a newer version, or names a
            step that isn't installed.
    """
    said = said or str(path)
    record, _ = _record(data, path, said)
    try:
        with naming_packages(record.get("environment")):
            manifest = from_record(Manifest, record)
        check_engines(manifest)
        check_pipeline(manifest)
        check_sequences(manifest)
        check_requests(manifest)
        check_tables(manifest)
        check_ranges(manifest.ranges, manifest.winner.artifact.inputs)
        check_growth(manifest.growth)
        if manifest.comparison is not None:
            manifest.comparison.check()
    except UnknownMember as error:
        raise IntegrityError(f"{said}: {error}") from error
    except InputError as error:
        raise IntegrityError(f"{said}: the manifest is damaged: {error}") from error
    return manifest


def _record(
    data: bytes, path: Path, said: str = ""
) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Read the manifest's record and the files that it lists.

    The manifest's own digest is checked first, since nothing in a damaged manifest can be trusted.
    """
    said = said or str(path)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path / MANIFEST} can't be read as JSON: {error}") from error
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise IntegrityError(f"{said}: the manifest is damaged: it states no schema")
    if record["schema"] > SCHEMA:
        raise IntegrityError(
            f"{said} was written by a newer version of hasten (schema {record['schema']!s:.20}, this "
            f"one reads {SCHEMA}); upgrade hasten"
        )
    stated = record.pop("digest", None)
    try:
        unchanged = stated == digest(record)
    except RecursionError as error:
        raise IntegrityError(f"{said}: the manifest is damaged: it is nested too deeply") from error
    if not unchanged:
        raise IntegrityError(f"{said}: the manifest was changed after it was written")
    try:
        check_values(record)
        return record, from_record(dict[str, tuple[str, int]], record.get("files"))
    except IntegrityError as error:
        raise IntegrityError(f"{said}: the manifest is damaged: {error}") from error


def path_inside(path: Path, name: str) -> Path:
    """Return where a file of a bundle is.

    Args:
        path: The bundle's folder.
        name: Path of the file in it.

    Raises:
        IntegrityError: the name leads out of the bundle, or isn't the usual one for its file.
    """
    pure = PurePosixPath(name)
    # Each file may have one name only: otherwise a large file could be listed, and hashed, many times.
    strange = pure.is_absolute() or pure.as_posix() != name
    # The path may hold neither ".." nor a link. `Path.resolve` would raise on circular links.
    if strange or Path(os.path.realpath(path / pure)) != Path(os.path.realpath(path)) / pure:
        raise IntegrityError(f"{path}: {name!r} leads out of the bundle")
    return path / pure


def check_file(path: Path, name: str, sha256: str, size_bytes: int) -> None:
    """Check a file of a bundle against what its manifest states.

    Raises:
        IntegrityError: it is missing, leads out of the bundle, or has other bytes.
    """
    file = _check_size(path, name, size_bytes)
    with _reading(path, name):
        if file_digest(file) != sha256:
            raise IntegrityError(f"{path}: {name} was changed after it was written")


def _check_size(path: Path, name: str, size_bytes: int) -> Path:
    file = path_inside(path, name)
    with _reading(path, name):
        if not file.is_file():
            raise IntegrityError(f"{path}: {name} is missing")
        if (size := file.stat().st_size) != size_bytes:
            raise IntegrityError(
                f"{path}: {name} has {size:,} bytes, but {size_bytes:,} were written"
            )
    return file


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IntegrityError(f"{path}: {name:.100} can't be read: {error.strerror}") from error


def artifact_of(
    path: Path, item: Part, manifest: Manifest, custom_ops: Sequence[Path]
) -> CheckedArtifact:
    """Return a part's artifact with absolute paths, all of them checked to be inside the bundle.

    Its files' bytes aren't checked here, but whenever an engine opens it; see `private`. Libraries of
    operators are checked here, and again when an engine loads them.

    Args:
        path: The bundle's folder.
        item: Part of the manifest.
        manifest: The bundle's manifest.
        custom_ops: Libraries with the user's own operators.

    Raises:
        IntegrityError: a path leads out of the bundle or isn't among the checked files, an ONNX file
            keeps weights elsewhere, or the stated inputs and outputs are impossible.
        InputError: operator libraries are missing, or differ from those that were certified.
    """
    found = stated_artifact(str(path), item, manifest, custom_ops, partial(path_inside, path))
    check_external(found.path, [*found.files], str(path / item.artifact.path))
    return found


def stated_artifact(
    said: str,
    item: Part,
    manifest: Manifest,
    custom_ops: Sequence[Path],
    inside: Callable[[str], Path],
) -> CheckedArtifact:
    """Return a part's artifact as a manifest states it, without a look at its files, which needn't be there.

    Args:
        said: Name of the bundle for messages.
        item: Part of the manifest.
        manifest: The bundle's manifest.
        custom_ops: Libraries with the user's own operators.
        inside: Function that returns where a file of the bundle is, or will be.

    Raises:
        IntegrityError: a path isn't among the checked files, or the stated inputs and outputs are impossible.
        InputError: operator libraries are missing, or differ from those that were certified.
    """
    for file in (item.artifact.path, *item.artifact.files):
        if file.as_posix() not in manifest.files:
            raise IntegrityError(f"{said}: {file} is not listed in the manifest")
    try:
        check_artifact(item.artifact)
    except IntegrityError as error:
        raise IntegrityError(
            f"{said}: the model {item.label!r:.100} is damaged: {error}"
        ) from error
    given = tuple(file_digest(library) for library in custom_ops)
    if given and not item.custom_ops:
        raise InputError(
            f"this model needs no operator library; got {len(given)}: leave out custom_ops="
        )
    if given != item.custom_ops:
        needed = amount(len(item.custom_ops), "operator library", "operator libraries")
        raise InputError(
            f"this model needs {needed}, the same files as those that it was made with; got "
            f"{len(given)}{' with other contents' if len(given) == len(item.custom_ops) else ''}: name "
            "them by custom_ops="
        )
    names = [file.as_posix() for file in (item.artifact.path, *item.artifact.files)]
    files = tuple(inside(name) for name in names)
    return CheckedArtifact(
        path=files[0],
        inputs=item.artifact.inputs,
        outputs=item.artifact.outputs,
        request=item.artifact.request,
        files=files[1:],
        custom_ops=tuple(custom_ops),
        digests={file: manifest.files[name][0] for file, name in zip(files, names, strict=True)},
        library_digests=dict(zip(custom_ops, given, strict=True)),
    )

"""JSON form of frozen dataclasses, and writing of files that are whole or absent.

A value of an open family (an engine, a pass, a metric, a pipeline step) is written with a `type`:
its name in the family's registry, or its import path where it isn't registered. A bundle is
untrusted input, so a reader follows an import path only where the caller trusts the record, or that path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import hashlib
import inspect
import json
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from hasten.core.objects import import_path, load_object
from hasten.core.registry import Registry
from hasten.errors import InputError, IntegrityError, UnknownMember, visible

T = TypeVar("T")
_DEVICES = Path("/dev")
_PLAIN = frozenset((int, float, str, bool, type(None)))
"""Types that JSON has itself."""


class Value:
    """Base of the open families; each member is a frozen dataclass listed in `registry`.

    Attributes:
        registry: Members of the family by name.
    """

    registry: ClassVar[Registry]

    @classmethod
    def member(cls, name: str, *, trusted: bool | Collection[str] = False) -> type[Self]:
        """Import the member of the family that has this name.

        Args:
            name: Name in the registry.
            trusted: Import paths that are accepted though they aren't in the registry; True for all.

        Raises:
            KeyError: the registry has no such name.
            InputError: the member can't be imported.
            IntegrityError: the object found isn't a member of this family.
        """
        accepted = trusted if isinstance(trusted, bool) else name in trusted
        by_path = accepted and ":" in name and name not in cls.registry
        found = load_object(name) if by_path else cls.registry.load(name)
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise IntegrityError(f"{name} is not a {cls.__name__}")
        return found

    @classmethod
    def paths(cls, names: Iterable[str]) -> frozenset[str]:
        """Return the import paths among names that a user gave, and how records write those members.

        Raises:
            InputError: one can't be imported.
            IntegrityError: one isn't a member of this family.
        """
        given = {name: cls.member(name, trusted=True) for name in names if ":" in name}
        return frozenset((*given, *map(import_path, given.values())))

    @classmethod
    def members(cls) -> dict[str, type[Self]]:
        """Import every member of the family, by name.

        Raises:
            InputError: a plug-in can't be imported, or isn't of this family.
        """
        return {name: cls.member(name) for name in cls.registry}


def type_name(value: Value) -> str:
    """Return the `type` that a value is written with: its registered name, else its import path."""
    return value.registry.name_of(type(value)) or import_path(type(value))


def to_record(value: Any) -> Any:
    """Turn frozen dataclasses into values that `json.dumps` takes, fields in order.

    A field whose metadata has `"in records": False` is left out, so that versions without it read the record.
    """
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {
            field.name: to_record(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("in records", True)
        }
        return {"type": type_name(value), **record} if isinstance(value, Value) else record
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_record(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        if _PLAIN.issuperset(map(type, value)):  # as raw samples are, by the hundred thousand
            return list(value)
        return [to_record(item) for item in value]
    return value


def from_record(cls: type[T], record: Any, *, trusted: bool | Collection[str] = False) -> T:
    """Read a record back, with strict types.

    Args:
        cls: Dataclass, or base class of an open family.
        record: Output of `to_record`, as JSON gives it back.
        trusted: Import paths that are accepted though they aren't in a registry; True for all, which only
            a record that this very run made may have.

    Raises:
        IntegrityError: the record doesn't fit the type.
    """

    def decode(kind: type, obj: Any) -> Any:
        if issubclass(kind, Value):
            return _decode_value(kind, obj, trusted=trusted)
        if issubclass(kind, Path):
            if not isinstance(obj, str):
                raise TypeError(f"expected a path as `str`, got `{type(obj).__name__}`")
            return Path(obj)
        raise IntegrityError(f"a record of type {kind.__name__} can't be read")

    try:
        if isinstance(cls, type) and issubclass(cls, Value) and not dataclasses.is_dataclass(cls):
            return decode(cls, record)  # type: ignore[no-any-return]
        # JSON keys are always text, so str_keys reads the integers of a dict[int, ...] from text.
        return msgspec.convert(record, cls, strict=True, str_keys=True, dec_hook=decode)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter: lone surrogates
        raise IntegrityError(f"a {cls.__name__} record can't be read: {error}") from error


def _decode_value(kind: type[Value], obj: Any, *, trusted: bool | Collection[str]) -> Any:
    if not isinstance(obj, dict) or not isinstance(obj.get("type"), str):
        raise IntegrityError(f"a {kind.__name__} record has no type: {obj!r:.200}")
    name = obj["type"]
    try:
        cls = kind.member(name, trusted=trusted)
    except KeyError:
        noun, known = kind.registry.noun, ", ".join(kind.registry)
        raise UnknownMember(
            f"the {noun} {name!r:.100}",
            f"{kind.registry.group}:{name}",
            f"it's no {noun} of hasten's own; there are: {known}",
        ) from None
    if not dataclasses.is_dataclass(cls):
        raise IntegrityError(f"{name} is not a dataclass")
    fields = {key: item for key, item in obj.items() if key != "type"}
    unknown = fields.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise IntegrityError(
            f"{name} has no setting {visible(', '.join(sorted(map(str, unknown))))}"
        )
    return from_record(cls, fields, trusted=trusted)


def canonical(record: Any) -> bytes:
    """Return the canonical JSON of a record, the one text that hashes are taken of."""
    return json.dumps(to_record(record), sort_keys=True, separators=(",", ":")).encode()


def digest(record: Any) -> str:
    """Return the SHA-256 of a record's canonical JSON, in hex."""
    return hashlib.sha256(canonical(record)).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; the file is read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(function: Any) -> str | None:
    """Return the SHA-256 of the file that defines a function; None where there is no such file."""
    try:
        return file_digest(Path(inspect.getfile(function)))
    except (TypeError, OSError):
        return None


def with_name(path: Path) -> Path:
    """Return a path that ends in a name, from which others beside it are made: "." and ".." end in none.

    Raises:
        InputError: it is the root of all folders, which has no name.
    """
    found = path.resolve() if path.name in ("", "..") else path
    if not found.name:
        raise InputError(f"{found} is the root of all folders: give a path within it")
    return found


def check_replaceable(path: Path) -> None:
    """Check that a file may be renamed to a path: a device or a pipe there would be lost.

    Raises:
        InputError: it is a device, a pipe or a socket, or lies in /dev, where links such as /dev/stdout lead to one.
        OSError: it can't be looked at.
    """
    special = path.exists() and not path.is_file() and not path.is_dir()
    if special or path.parent.resolve() == _DEVICES:
        raise InputError(
            f"can't write {path}: a file would replace the device, pipe or link there; give a file's name"
        )


def write_whole(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path` and rename it, so that `path` is never partial.

    Raises:
        InputError: it can't be written, or is a device or a pipe.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        check_replaceable(path)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise InputError(f"can't write {path}: {error.strerror or error}") from error


def write_json(path: Path, record: Any) -> None:
    """Write a record as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(to_record(record), indent=1).encode() + b"\n")


def bounded_bytes(path: Path, most: int) -> bytes:
    """Return a file's bytes, at most one more than `most`, which tells that there are too many.

    Raises:
        OSError: it can't be read, or is no regular file: a pipe would be waited for without end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it isn't a regular file")
        with open(descriptor, "rb", closefd=False) as file:  # of a descriptor
            return file.read(most + 1)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        IntegrityError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} can't be read as JSON: {error}") from error


def leaves(record: Any) -> Iterator[str | int | float]:
    """Yield every key, text and number of a record."""
    left = [record]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
        elif value is not None:
            yield value


def check_integers(record: Any) -> None:
    """Check the whole numbers of a record that a stranger may have written.

    Raises:
        IntegrityError: one takes more than 64 bits; Python refuses to print those of thousands of digits.
    """
    for value in leaves(record):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise IntegrityError("it has a number that is larger than 64 bits")

"""Sign bytes and check signatures in minisign's format: Ed25519 over BLAKE2b-512.

The format is that of https://jedisct1.github.io/minisign/#signature-format. Signatures and keys that have
no password go both ways between this module and the tool.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hasten.bundle.manifest import one_line
from hasten.core.records import bounded_bytes
from hasten.errors import InputError, IntegrityError

MOST_BYTES = 16 << 10
"""Largest file of a signature or a key that is read; minisign's comments have at most 9 KiB."""
_KEY, _PREHASHED, _CHECKSUM, _NO_PASSWORD = b"Ed", b"ED", b"B2", b"\0\0"
_UNTRUSTED, _TRUSTED = b"untrusted comment: ", b"trusted comment: "
_ID_BYTES, _KEY_BYTES, _SIGNATURE_BYTES, _SECRET_BYTES = 8, 32, 64, 158
_SECRET_ID, _SECRET_SEED, _SECRET_POINT = slice(54, 62), slice(62, 94), slice(94, 126)
_KEY_TEXT = re.compile(r"RW[Q-T][A-Za-z0-9+/]{53}")
"""A public key as it stands in its file: 42 bytes, the first of which are "Ed"."""
_SHOWN = 200


@dataclass(frozen=True)
class PublicKey:
    """Public key by which bundles are trusted.

    Attributes:
        text: The key as it stands in its file: 56 characters of base64.

    Raises:
        InputError: the text is no such key.
    """

    text: str

    def __post_init__(self) -> None:
        """Check the text."""
        if not _KEY_TEXT.fullmatch(self.text):
            raise InputError(
                f"{self.text!r:.80} isn't a public key: minisign's keys have 56 characters and "
                "begin with RW"
            )

    @property
    def key_id(self) -> bytes:
        """The 8 bytes by which a signature names its key."""
        return base64.b64decode(self.text)[2:10]

    @property
    def point(self) -> bytes:
        """The 32 bytes of Ed25519."""
        return base64.b64decode(self.text)[10:]

    @property
    def name(self) -> str:
        """Name of the key as minisign shows it."""
        return _name(self.key_id)


KeyLike: TypeAlias = "str | os.PathLike[str] | PublicKey"
Trusted: TypeAlias = "KeyLike | Sequence[KeyLike] | None"


@dataclass(frozen=True)
class SecretKey:
    """Secret key that signs bundles.

    Attributes:
        key_id: The 8 bytes by which signatures name it.
        seed: The 32 bytes from which Ed25519 makes the rest.
    """

    key_id: bytes
    seed: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The public key that checks what this one signs."""
        point = bytes(_nacl().SigningKey(self.seed).verify_key)
        return PublicKey(base64.b64encode(_KEY + self.key_id + point).decode())

    def sign(self, data: bytes, comment: str) -> bytes:
        """Return the file of a signature over some bytes.

        Args:
            data: Bytes to sign.
            comment: Line that is signed, too.
        """
        key, said = _nacl().SigningKey(self.seed), comment.encode()
        signature = key.sign(hashlib.blake2b(data).digest()).signature
        sealed = key.sign(signature + said).signature
        lines = (
            _UNTRUSTED + f"signature by the key {_name(self.key_id)}".encode(),
            base64.b64encode(_PREHASHED + self.key_id + signature),
            _TRUSTED + said,
            base64.b64encode(sealed),
        )
        return b"\n".join(lines) + b"\n"


@dataclass(frozen=True)
class Signature:
    """Signature as its file states it; nothing of it is checked against a key.

    Attributes:
        key_id: The 8 bytes that name the key.
        signature: Signature over the BLAKE2b-512 hash of the signed bytes.
        comment: Comment that is signed, too.
        sealed: Signature over the one before and the comment.
    """

    key_id: bytes
    signature: bytes
    comment: bytes
    sealed: bytes

    @property
    def name(self) -> str:
        """Name of its key as minisign shows it."""
        return _name(self.key_id)

    @property
    def said(self) -> str:
        """The comment for people, on one line."""
        return one_line(self.comment.decode(errors="replace"))[:_SHOWN]

    def fits(self, data: bytes, key: PublicKey) -> str:
        """Say why this isn't a key's signature over some bytes; "" where it is."""
        from nacl.exceptions import BadSignatureError

        verify = _nacl().VerifyKey(key.point).verify
        try:
            verify(hashlib.blake2b(data).digest(), self.signature)
        except BadSignatureError:
            return (
                "its signature is for another manifest: the manifest or the signature was "
                "changed, or the signature belongs to another bundle"
            )
        try:
            verify(self.signature + self.comment, self.sealed)
        except BadSignatureError:
            return "the comment of its signature was changed"
        return ""


def keys_of(trusted: Trusted) -> tuple[PublicKey, ...]:
    """Return the public keys that a caller trusts, each once; none for None.

    Args:
        trusted: A key, the path of its file, or several.

    Raises:
        InputError: there is no key, a file holds none, or what checks signatures isn't installed.
    """
    if trusted is None:
        return ()
    several = [trusted] if isinstance(trusted, (str, os.PathLike, PublicKey)) else trusted
    if not isinstance(several, Sequence) or not several:
        raise InputError(
            "trusted= takes a public key, the path of its file, or a list of these: got "
            f"{trusted!r:.80}"
        )
    found = tuple(dict.fromkeys(key for one in several for key in _keys(one)))
    _nacl()
    return found


def sources_of(trusted: Trusted) -> tuple[str, ...]:
    """Return keys as their text, and files of keys as absolute paths, so that the files can be read again.

    Args:
        trusted: Keys and files of keys that `keys_of` has already checked.
    """
    if trusted is None:
        return ()
    several = [trusted] if isinstance(trusted, (str, os.PathLike, PublicKey)) else trusted
    return tuple(one.text if isinstance(one, PublicKey) else _source(one) for one in several)


def _source(given: str | os.PathLike[str]) -> str:
    text = os.fspath(given)
    return text if is_key(text) else str(Path(text).absolute())


def is_key(text: str) -> bool:
    """Whether a text is a public key, and so no path."""
    return _KEY_TEXT.fullmatch(text) is not None


def _keys(given: KeyLike) -> list[PublicKey]:
    if isinstance(given, PublicKey):
        return [given]
    if isinstance(given, str) and is_key(given):
        return [PublicKey(given)]
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(
            f"trusted= takes public keys and the paths of their files: got {given!r:.80}"
        )
    path = Path(given)
    lines = _lines(path)
    for line in lines:
        if not is_key(line):
            secret = len(lines) == 1 and line.startswith("RW")
            kind = "a secret key: give the public key" if secret else "no public key"
            raise InputError(f"{path} holds {kind}")
    return [PublicKey(line) for line in lines]


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of keys that aren't comments.

    Raises:
        InputError: the file can't be read, or has none.
    """
    try:
        data = bounded_bytes(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"can't read the key {path}: {error.strerror or error}") from error
    kept = [line.strip() for line in data.splitlines() if not line.startswith(_UNTRUSTED)]
    lines = [line for line in kept if line]
    if len(data) > MOST_BYTES or not lines or not all(line.isascii() for line in lines):
        raise InputError(f"{path} isn't a key file such as minisign and hasten keygen write")
    return [line.decode() for line in lines]


def secret_key(path: Path) -> SecretKey:
    """Read a secret key that has no password.

    Raises:
        InputError: the file can't be read, or holds no such key.
    """
    try:
        (line,) = _lines(path)
        data = base64.b64decode(line, validate=True)
    except ValueError:
        data = b""
    if len(data) != _SECRET_BYTES or data[:2] != _KEY or data[4:6] != _CHECKSUM:
        raise InputError(f"{path} holds no secret key of minisign or hasten keygen")
    if data[2:4] != _NO_PASSWORD:
        raise InputError(
            f"the key {path} has a password, and hasten doesn't ask for passwords: sign a "
            f"bundle's folder with minisign -S -s {path} -m BUNDLE/manifest.json"
        )
    key = SecretKey(data[_SECRET_ID], data[_SECRET_SEED])
    if key.public.point != data[_SECRET_POINT]:
        raise InputError(f"the key {path} is damaged: its two halves don't match")
    return key


def new_keys(path: Path) -> tuple[Path, PublicKey]:
    """Make a pair of keys without a password, and write each into a file of its own.

    Args:
        path: File of the secret key, which only this user may read. The public one is beside it, with the
            suffix .pub.

    Returns:
        The file of the public key, and the key.

    Raises:
        InputError: one of the files is there already, or can't be written.
    """
    if path.is_dir():
        raise InputError(f"can't write the secret key {path}: it is a folder; give a file's name")
    beside = path.with_suffix(".pub")
    if beside == path:
        raise InputError(
            f"{path} is the name of the public key's file: give another name for the secret key"
        )
    key = SecretKey(secrets.token_bytes(_ID_BYTES), secrets.token_bytes(_KEY_BYTES))
    public = key.public
    halves = key.key_id + key.seed + public.point
    secret = (_KEY + _NO_PASSWORD + _CHECKSUM).ljust(_SECRET_ID.start, b"\0") + halves
    _write(path, "secret", key, secret.ljust(_SECRET_BYTES, b"\0"), 0o600)
    _write(beside, "public", key, base64.b64decode(public.text), 0o644)
    return beside, public


def _write(path: Path, kind: str, key: SecretKey, data: bytes, mode: int) -> None:
    """Write a key's file, which isn't there yet."""
    text = _UNTRUSTED + f"hasten {kind} key {_name(key.key_id)}\n".encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # of a descriptor
            file.write(text + base64.b64encode(data) + b"\n")
    except OSError as error:
        raise InputError(f"can't write the {kind} key {path}: {error.strerror}") from error


def signature_in(file: Path, said: str) -> Signature | None:
    """Read a signature; None where there is no file.

    Args:
        file: File of the signature.
        said: Name of the bundle for messages.

    Raises:
        IntegrityError: the file is no signature, or can't be read.
    """
    try:
        return _parsed(bounded_bytes(file, MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f"it can't be read: {error.strerror}"
    except ValueError as error:
        why = str(error)
    raise IntegrityError(f"{said}: its signature {file.name} is damaged: {why}")


def _parsed(data: bytes) -> Signature:
    """Read a signature's file.

    Raises:
        ValueError: it isn't one; the message says why.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 10} KiB")
    lines = [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
    if len(lines) != 4 or not (lines[0].startswith(_UNTRUSTED) and lines[2].startswith(_TRUSTED)):
        raise ValueError("it doesn't have the four lines of minisign's signatures")
    try:
        stated, sealed = (base64.b64decode(lines[number], validate=True) for number in (1, 3))
    except ValueError as error:
        raise ValueError("it isn't base64") from error
    if len(stated) != 2 + _ID_BYTES + _SIGNATURE_BYTES or len(sealed) != _SIGNATURE_BYTES:
        raise ValueError("its signatures are cut off or too long")
    if stated[:2] == _KEY:
        raise ValueError(
            "it has minisign's legacy format: sign without -l, or with -H before minisign 0.10"
        )
    if stated[:2] != _PREHASHED:
        raise ValueError("its format is unknown")
    key_id, signature = stated[2 : 2 + _ID_BYTES], stated[2 + _ID_BYTES :]
    return Signature(key_id, signature, lines[2].removeprefix(_TRUSTED), sealed)


def check_signed(data: bytes, file: Path, trusted: Sequence[PublicKey], said: str) -> Signature:
    """Check that some bytes are signed by one of several keys.

    Args:
        data: The bytes: a bundle's manifest.
        file: File of the signature.
        trusted: Keys, one of which it must be.
        said: Name of the bundle for messages.

    Raises:
        IntegrityError: they aren't; the message says why.
    """
    found = signature_in(file, said)
    only = f"only bundles signed by the key {' or '.join(key.name for key in trusted)} are trusted"
    if found is None:
        raise IntegrityError(f"{said} isn't signed, and {only}: get a signed one, or sign it")
    its = [key for key in trusted if key.key_id == found.key_id]
    if not its:
        raise IntegrityError(f"{said} is signed by the key {found.name}, and {only}")
    reasons = [found.fits(data, key) for key in its]
    if all(reasons):
        raise IntegrityError(f"{said} can't be trusted: {reasons[0]}")
    return found


def _name(key_id: bytes) -> str:
    return f"{int.from_bytes(key_id, 'little'):016X}"


def _nacl() -> Any:
    """Return the module of Ed25519.

    Raises:
        InputError: it isn't installed.
    """
    try:
        from nacl import signing
    except ImportError as error:
        raise InputError(
            f"signatures need the module {error.name}: pip install 'hasten[sign]'"
        ) from error
    return signing

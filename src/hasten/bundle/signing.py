"""Sign a bundle, and say who signed one."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from hasten.bundle.folder import check_file, manifest_bytes, parsed, unlisted
from hasten.bundle.manifest import MANIFEST, SIGNATURE
from hasten.bundle.packing.names import is_address, is_packed
from hasten.bundle.packing.unpacking import beside, unpack
from hasten.bundle.packing.writer import pack
from hasten.bundle.signatures import (
    PublicKey,
    SecretKey,
    check_signed,
    secret_key,
    signature_in,
)
from hasten.core.presence import is_file, path_text
from hasten.errors import InputError


def sign(bundle: str | os.PathLike[str], key: str | os.PathLike[str]) -> PublicKey:
    """Sign a bundle, after every file of it was checked; an older signature is replaced.

    The signature is a file of the bundle, `manifest.json.minisig`. It is over the manifest, which states
    the hash of every other file. It says who made the bundle, not that the bundle is right.

    Args:
        bundle: The bundle's folder, or a packed one, which is packed again with its signature.
        key: File of a secret key without a password, as minisign -G -W or hasten keygen write it.

    Returns:
        The public key that checks the signature.

    Raises:
        InputError: there is no bundle, it holds files that its manifest doesn't list, the key can't be
            read, or the signature can't be written.
        IntegrityError: the bundle is damaged.
    """
    by, place = secret_key(Path(path_text(key))), Path(path_text(bundle))
    if is_address(bundle):
        raise InputError(f"{bundle} is an address: download the bundle, and sign the file")
    if not is_packed(place):
        _sign_folder(place, by, place)
        return by.public
    with beside(place.absolute()) as work:
        folder = unpack(place, work / "bundle")
        _sign_folder(folder, by, place)
        pack(folder, place)
    return by.public


def _sign_folder(path: Path, key: SecretKey, said: Path) -> None:
    """Write the signature of a bundle's folder, which messages name by its own path or a packed file's."""
    if not is_file(path / MANIFEST):
        raise InputError(f"no bundle at {said}: there is no {MANIFEST}")
    data = manifest_bytes(path)
    files = parsed(data, path, str(said)).files
    for name, stated in files.items():
        check_file(path, name, *stated)
    if strange := unlisted(path, files):
        raise InputError(
            f"{said} holds {strange!r:.100}, which its manifest doesn't list: a signature wouldn't cover it; "
            "remove it first"
        )
    signature = key.sign(data, f"timestamp:{int(time.time())}\tfile:{MANIFEST}\thashed")
    # A name within the folder would be one file more than the bundle has, if this process is killed.
    goal = path.resolve()
    new = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.minisig")
    try:
        new.write_bytes(signature)
        new.replace(goal / SIGNATURE)
    except OSError as error:
        raise InputError(f"can't write {path / SIGNATURE}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


def signer_in_words(folder: Path, trusted: Sequence[PublicKey] = ()) -> str:
    """Say in one line who signed a bundle.

    Args:
        folder: The bundle's folder.
        trusted: Keys that its signature is checked with; without any it is only read.

    Raises:
        IntegrityError: it isn't signed by one of the keys, or its signature can't be read.
    """
    if trusted:
        data = manifest_bytes(folder)
        found = check_signed(data, folder / SIGNATURE, trusted, str(folder))
        return f"signed by the key {found.name}, which you trust: {found.said}"
    stated = signature_in(folder / SIGNATURE, str(folder))
    if stated is None:
        return "unsigned"
    return f"said to be signed by the key {stated.name}: give its public key to check that"

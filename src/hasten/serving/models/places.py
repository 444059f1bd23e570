"""Read what the command line serves, bundles and chains of them, by name and version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.bundle import MANIFEST
from hasten.bundle.packing.names import SUFFIX, is_address, is_packed
from hasten.bundle.signatures import PublicKey
from hasten.core.presence import is_there
from hasten.errors import InputError
from hasten.inputs.chains import Chain, chain_of, is_chain


@dataclass(frozen=True)
class ChainPlace:
    """A chain to serve.

    Attributes:
        chain: The chain.
        members: Names under which its models are served, by their nodes' names.
        certificate: File in which the chain's certificate is kept, if it was tested; None for no place.
    """

    chain: Chain
    members: dict[str, str]
    certificate: Path | None = None


def chain_places(
    arguments: Sequence[str], trusted: Sequence[PublicKey] = ()
) -> tuple[list[str], list[tuple[str, str, Path, ChainPlace]]]:
    """Find the chains among the command line's bundles, and check them.

    Each model of a chain is served too, as CHAIN.NODE, and a bundle that is several of them once.

    Args:
        arguments: The command line's bundles.
        trusted: Keys, one of which must have signed each bundle of a chain; none where unsigned ones will do.

    Returns:
        The command line with the chains' models in place of the chains; and name, version, folder of
        the first bundle, and place of each chain.

    Raises:
        InputError: a chain has no name, is given twice, or can't be used.
    """
    plain: list[str] = []
    chains: list[tuple[str, str, Path, ChainPlace]] = []
    for text in arguments:
        left, equals, right = text.partition("=")
        named = bool(equals) and "/" not in left
        if not is_chain(right if named else text):
            plain.append(text)
            continue
        name, version, path = _parts(text)
        version = version or "1"
        if not named:
            if "+" in text:
                raise InputError(f"{text!r:.200}: a chain needs a name: write NAME={text:.200}")
            name = path.stem
        _check_name(name, text)
        if any(each[:2] == (name, version) for each in chains):
            raise InputError(f"version {version} of {name!r} is given twice")
        from hasten.bundle.chains.certificate import certificate_file  # they open bundles
        from hasten.bundle.chains.opened import check_chain

        chain = chain_of(right if named else text)
        check_chain(chain, trusted)
        members: dict[str, str] = {}
        served: dict[Path, str] = {}
        for model in chain.models:
            folder = Path(model.bundle).resolve()
            if folder not in served:
                served[folder] = f"{name}.{model.name}"
                plain.append(f"{served[folder]}:{version}={folder}")
            members[model.name] = served[folder]
        first = Path(chain.roots[0].bundle)
        kept = certificate_file(right if named else text)
        kept = None if kept is None else kept.absolute()
        chains.append((name, version, first, ChainPlace(chain, members, kept)))
    return plain, chains


def places(arguments: Sequence[str]) -> list[tuple[str, str, Path]]:
    """Parse the command line's bundles: PATH, NAME=PATH or NAME:VERSION=PATH.

    A repeated name without a version gets the next version number.

    Returns:
        Name, version and folder of each, sorted by name and version.

    Raises:
        InputError: a name is missing, a version isn't a number or is given twice, or a path holds no
            bundle.
    """
    found: list[tuple[str, str, Path]] = []
    for text in arguments:
        name, version, path = _parts(text)
        address = text.partition("=")[2] or text
        if is_address(address):
            raise InputError(
                f"{address} is an address, and only hasten.load opens addresses: download the "
                "file first"
            )
        if not is_there(path):
            raise InputError(f"no bundle at {path}: no such file or folder")
        if not is_packed(path) and not (path / MANIFEST).is_file():
            raise InputError(
                f"{path} is not a bundle, because it has no {MANIFEST}: give a folder that "
                "hasten optimize wrote"
            )
        _check_name(name, text)
        taken = {each[1] for each in found if each[0] == name}
        version = version or str(1 + max(map(int, taken), default=0))
        if version in taken:
            raise InputError(f"version {version} of {name!r} is given twice")
        found.append((name, version, path))
    return sorted(found, key=lambda each: (each[0], int(each[1])))


def _check_name(name: str, text: str) -> None:
    """Check that a name consists of characters that clients can send.

    Raises:
        InputError: the name has unprintable characters.
    """
    if not name.isprintable():
        raise InputError(f"{text!r}: clients couldn't ask for the name {name!r}: give NAME=PATH")


def _parts(text: str) -> tuple[str, str, Path]:
    left, equals, right = text.partition("=")
    if not equals or "/" in left:
        path = Path(text)
        name = path.name or path.resolve().name
        return name.removesuffix(SUFFIX).removesuffix(".hasten") or name, "", path
    name, _, version = left.partition(":")
    if not name or (version and not (version.isascii() and version.isdigit() and int(version))):
        raise InputError(
            f"{text!r}: write NAME=PATH or NAME:VERSION=PATH; got the version {version!r}, which must "
            "be a whole number of at least 1"
            if name
            else f"{text!r}: there is no name before the equals sign; write NAME=PATH"
        )
    return name, version.lstrip("0"), Path(right)

"""A chain's own certificate, kept in a file beside it, and whether it holds here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.bundle.machines import differences
from hasten.bundle.manifest import Manifest, one_line
from hasten.bundle.requirements import distributions, programs
from hasten.core.devices import at_hand
from hasten.core.records import bounded_bytes, digest, from_record, to_record
from hasten.core.target import Target
from hasten.errors import IntegrityError
from hasten.inputs.chains import Chain, Model
from hasten.inputs.chains.reading import SUFFIXES, is_chain

SUFFIX = ".certificate.json"
SCHEMA = 1
_MOST_BYTES = 1 << 20
"""Largest size of a certificate's file."""
_LONGEST_NAME = 240
"""Longest name of a file, in bytes: one that is being written has a few more."""


@dataclass(frozen=True)
class Machine:
    """The machine on which one model of a chain answered in the test.

    Attributes:
        target: Device that it was on.
        environment: Versions and facts of the host.
    """

    target: Target
    environment: dict[str, str]


@dataclass(frozen=True)
class ChainCertificate:
    """Result of a test of a chain's own decisions.

    Attributes:
        claim: Verdict in a sentence.
        kind: "fresh data", or "further look" where the pictures were looked at before.
        judgement: Fields of the verdict.
        used: Number of pictures.
        left_out: Number of pictures that were left out, because a bundle was made with them.
        nodes: SHA-256 of each node's settings, and of the bundle of a model, by the node's name.
        machines: Machine of each model, by its node's name.
        created: Time of creation, ISO 8601, UTC.
        schema: Version of this record.
    """

    claim: str
    kind: str
    judgement: dict[str, Any]
    used: int
    left_out: int
    nodes: dict[str, str]
    machines: dict[str, Machine]
    created: str
    schema: int = SCHEMA

    def lapse(self, chain: Chain, manifests: Mapping[str, Manifest]) -> str:
        """Return why the certificate doesn't hold for a chain on this machine; "" if it does.

        Args:
            chain: The chain.
            manifests: Manifests of its bundles, by their nodes' names.
        """
        here = node_digests(chain, manifests)
        changed = [name for name in here | self.nodes if here.get(name) != self.nodes.get(name)]
        if changed:
            return (
                f"its certificate is of another chain: {', '.join(sorted(changed))} changed since"
            )
        found = []
        for name, manifest in manifests.items():
            there, now = self.machines.get(name), machine_of(manifest)
            if there is None:
                return f"its certificate doesn't say on which machine {name} answered"
            stated = replace(manifest, target=there.target, environment=there.environment)
            notes = differences(stated, now.target, now.environment)
            found += [f"{name}: {note}" for note in notes]
        return f"not certified here: {'; '.join(found)}" if found else ""


def certificate_file(given: Any) -> Path | None:
    """Return the file in which a chain's certificate is kept; None for a chain that has no place.

    It is beside a chain's file, under its name, and for a line in the first bundle's folder.

    Args:
        given: The chain, in any form that `hasten.chain` takes.
    """
    if not isinstance(given, (str, os.PathLike)) or not is_chain(given):
        return None
    text = os.fspath(given)
    if text.endswith(SUFFIXES):
        return Path(text).with_suffix(SUFFIX)
    words = [Path(word.strip()) for word in text.split("+")]
    name = "+".join(word.name for word in words) + SUFFIX
    fits = bool(words[0].name) and len(os.fsencode(name)) <= _LONGEST_NAME
    return words[0].with_name(name) if fits else None


def node_digests(chain: Chain, manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Return the SHA-256 of what each node does, by its name: where a bundle stands doesn't matter.

    Args:
        chain: The chain.
        manifests: Manifests of its bundles, by their nodes' names.
    """
    found = {}
    for node in chain.nodes:
        record = to_record(node)
        if isinstance(node, Model):
            manifest = manifests[node.name]
            parts = (manifest.winner, manifest.exact, manifest.pipeline, manifest.files)
            record["bundle"] = digest([to_record(part) for part in parts])
        found[node.name] = digest(record)
    return found


def machine_of(manifest: Manifest) -> Machine:
    """Return this machine, as far as a bundle's winner depends on it.

    Args:
        manifest: The bundle's manifest.
    """
    from hasten.measure.environment import environment

    here, record = at_hand(manifest.target), manifest.winner.engine
    return Machine(here, environment(here, of=distributions(record)) | programs(record))


def kept_certificate(
    file: Path | None, chain: Chain, manifests: Mapping[str, Manifest]
) -> tuple[ChainCertificate | None, str]:
    """Read a chain's certificate, where there is one that holds for the chain on this machine.

    Args:
        file: File in which it is kept; None for a chain that has no place for one.
        chain: The chain.
        manifests: Manifests of its bundles, by their nodes' names.

    Returns:
        The certificate, or None; and why one that is there doesn't hold, "" otherwise.
    """
    if file is None:
        return None, ""
    try:
        data = bounded_bytes(file, _MOST_BYTES)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{file} can't be read: {error.strerror or error}"
    try:
        if len(data) > _MOST_BYTES:
            raise IntegrityError(f"it has more than {_MOST_BYTES:,} bytes")
        record = json.loads(data)
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise IntegrityError(f"it has the schema {schema!r:.20}, this version reads {SCHEMA}")
        found = from_record(ChainCertificate, record)
    except (IntegrityError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        return None, f"{file} can't be read as a chain's certificate: {reason:.200}"
    lapse = one_line(found.lapse(chain, manifests))
    return (None, lapse) if lapse else (replace(found, claim=one_line(found.claim)), "")

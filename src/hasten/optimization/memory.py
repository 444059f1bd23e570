"""Memory of samples that a run takes from earlier runs and leaves to later ones: the ledger's part in a run."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hasten.certificate.ledger import Ledger, Past, short
from hasten.certificate.looks import Look, PastLook, look_at
from hasten.core.records import from_record, read_json, write_json
from hasten.errors import InputError
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.splits import Earlier, Splits
from hasten.optimization.job import Job

EARLIER = "earlier.json"
_SEALED = Path("evidence", "sealed.json")
_SEALED_BYTES = 256 << 20
"""Largest number of bytes of an older bundle's record that are read: enough for three million samples."""


class _Record(msgspec.Struct):
    """An older bundle's record of its sealed data; the rest of the file is for people."""

    hashes: list[str]
    seen: list[str]
    judged: list[tuple[str, str | dict[str, object]]] = []
    look: dict[str, object] | None = None
    held: bool = True


def known_past(bundle: Path, ledger: Ledger) -> Past:
    """Return what earlier runs did with samples, by the ledger and by an older bundle in a run's place.

    Args:
        bundle: Folder of the bundle to make.
        ledger: Memory between runs.

    Raises:
        InputError: the ledger can't be read.
    """
    return past_of(bundle, ledger) + ledger.past()


def earlier_of(job: Job) -> Earlier:
    """Return what earlier runs did with samples; a resumed run returns what it began with."""
    if job.journal.last("begin") is not None:
        return _stored(job.folder / EARLIER)
    return known_past(job.order.out, job.ledger).earlier(1 - job.order.confidence)


def keep_earlier(job: Job, parts: Parts) -> None:
    """Keep what this run knows of earlier ones in its folder, so that it splits the data alike when resumed.

    Raises:
        InputError: the disk is full.
    """
    if job.journal.last("begin") is None:
        known = parts.earlier
        write_json(
            job.folder / EARLIER,
            {
                "seen": sorted(one.hex() for one in known.seen),
                "tested": {one.hex(): worth for one, worth in known.tested.items()},
                "former": {one.hex(): before.hex() for one, before in known.former.items()},
            },
        )


def leave_seen(job: Job, parts: Parts) -> None:
    """Keep for later runs which samples this one searches and calibrates on, before it does."""
    job.ledger.saw(bytes.fromhex(one) for one in parts.seen_hashes)


def expected_look(job: Job, parts: Parts) -> Look:
    """Return the look that the sealed data will probably get, without writing it down."""
    begun = job.journal.last("look") or {}
    own = begun.get("look", {}).get("id", "")
    past = known_past(job.order.out, job.ledger)
    return look_after(past, parts, asked=1 - job.order.confidence, own=own)


def look_after(past: Past, parts: Parts | Splits, *, asked: float, own: str = "") -> Look:
    """Return the look that sealed data will probably get.

    Args:
        past: Record of what earlier runs did.
        parts: Parts of the data.
        asked: Alpha that is asked for.
        own: Number of the run's own look in hex; "" where it has none yet.
    """
    sealed = parts.earlier.with_former(bytes.fromhex(one) for one in parts.sealed_hashes)
    return look_at(short(sealed), past.looks, own=own, asked=asked, kept="")


def take_look(job: Job, hashes: Sequence[bytes], answers: str) -> Look:
    """Return the look that judges the sealed data; a resumed run's is the one that it began.

    Args:
        job: The run at work.
        hashes: Content hashes of the sealed samples.
        answers: Digest of the whole test.

    Raises:
        InputError: the ledger can't be read or written any more, so nothing may be judged.
    """
    begun = job.journal.last("look")
    if begun is not None:
        return from_record(Look, begun["look"])
    try:
        look = job.ledger.look(
            hashes, answers, asked=1 - job.order.confidence, also=past_of(job.order.out, job.ledger)
        )
    except InputError as error:
        raise InputError(f"{error}; then continue with resume=True, and nothing is lost") from error
    job.journal.append("look", look=look)
    return look


def begin_look(job: Job, hashes: Sequence[bytes]) -> None:
    """Write down the look before labels are asked for, since the questions tell of what came out.

    A run that is abandoned then, or started again elsewhere, has spent its look; one that is resumed hasn't.

    Args:
        job: The run at work.
        hashes: Content hashes of the sealed samples.
    """
    known = job.journal.last("look begins")
    # Of no other test, since labels aren't known yet, but the same one if the run is killed right after.
    test = secrets.token_hex(32) if known is None else known["test"]
    if known is None:
        job.journal.append("look begins", test=test)
    take_look(job, hashes, test)


def past_of(bundle: Path, ledger: Ledger) -> Past:
    """Return what an older bundle in this run's place was made with, should the ledger have been lost.

    What isn't there, or can't be read, says nothing. Nor does it where no ledger is wanted.
    """
    path = bundle / _SEALED
    try:
        if ledger.file is None or path.stat().st_size > _SEALED_BYTES:
            return Past()
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        seen = short(bytes.fromhex(one) for one in record.seen)
        hashes = short(bytes.fromhex(one) for one in record.hashes)
    except (OSError, ValueError, RecursionError):
        return Past()
    if not record.judged:
        return Past(seen)
    passed = record.held and all(
        isinstance(entry, dict) and entry.get("verdict") == "certified"
        for _, entry in record.judged
        if not isinstance(entry, str)
    )
    stated = (record.look or {}).get("id")
    own = (
        stated if isinstance(stated, str) else hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
    )
    return Past(seen, (PastLook(own, hashes, 1.0, refused=not passed),))


def _stored(path: Path) -> Earlier:
    """Read what a stopped run knew; runs of older versions knew nothing."""
    if not path.exists():
        return Earlier()
    record = read_json(path)
    return Earlier(
        frozenset(bytes.fromhex(one) for one in record["seen"]),
        {bytes.fromhex(one): worth for one, worth in record["tested"].items()},
        {bytes.fromhex(one): bytes.fromhex(old) for one, old in record.get("former", {}).items()},
    )

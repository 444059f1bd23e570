"""Data that a bundle was made with, data that is fresh for it, and the outcome of a test on such data."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from hasten.bundle import Manifest
from hasten.bundle.chains.certificate import ChainCertificate
from hasten.bundle.manifest import unfinished
from hasten.certificate.batches import Coverage
from hasten.certificate.ledger import Ledger
from hasten.certificate.looks import Judged, Look, judged_at
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict, goal
from hasten.core.comparison import Comparison
from hasten.core.records import write_json
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.parts import groups_seen
from hasten.inputs.data.splits import KNOWN_BYTES, Earlier, former_hashes, units_of
from hasten.reporting.card import Card
from hasten.reporting.notebook import as_html

Kind: TypeAlias = Literal["fresh data", "further look", "regression check", "exact"]
_Hash: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_SEALED = "evidence/sealed.json"
_SEALED_BYTES = 256 << 20
"""Largest number of bytes of the sealed record, enough for three million samples."""


@dataclass(frozen=True)
class Recheck:
    """Outcome of testing a bundle on new data.

    Attributes:
        kind: "fresh data": a certificate of its own. "further look": a certificate too, tested at
            what earlier looks at these samples left. "regression check": the samples were used for
            the bundle, or gave these very answers before, so passing says that nothing changed,
            not that it is right. "exact": answers of an exact bundle were compared, under no limit.
        judgement: Judgement on these samples.
        used: Number of samples that were judged.
        left_out: Number of samples left out because the bundle, or another run, was made with them.
        comparison: Figures, scores and decisions of the winner beside the exact model's, on these
            samples; None where nothing was compared. They don't decide whether the limit holds.
        look: Look at these samples, by the ledger; None in a check on what the bundle was made with.
        elsewhere: Number of those left out that only other runs searched or tested on.
        notes: Notes on the ledger, where it has trouble.
        batches: Batch sizes above 1 at which the limit must hold too.
        coverage: Batch sizes at which it holds; None where none was tested.
        unlabelled: Number of samples without a label on which answers differ: each counts as lost.
        remembered: Whether a ledger is kept, so that earlier looks are known.
        certificate: Certificate of a chain, which `keep` writes; None for a bundle, and where the test
            shows nothing new.
        place: File beside a chain for its certificate; None for a bundle, and for a chain that isn't
            given by a file or a line.
    """

    kind: Kind
    judgement: Judgement
    used: int
    left_out: int
    comparison: Comparison | None = None
    look: Look | None = None
    elsewhere: int = 0
    notes: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    coverage: Coverage | None = None
    unlabelled: int = 0
    remembered: bool = True
    certificate: ChainCertificate | None = None
    place: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether the limit holds, in batches too."""
        sizes = () if self.coverage is None else self.coverage.sizes
        return self.judgement.verdict is Verdict.CERTIFIED and set(self.batches) <= set(sizes)

    @property
    def verdict(self) -> str:
        """Verdict in a word or two."""
        return self.judgement.verdict.value

    @property
    def asked(self) -> str:
        """Words for the claim that was tested."""
        return goal(self.judgement.guard, self.judgement.metric, self.judgement.max_drop)

    def in_words(self) -> str:
        """Return the outcome in one line, and what was compared in further ones."""
        who = "the bundle, or what other runs made," if self.elsewhere else "the bundle"
        seen = (
            f"; {self.left_out:,} samples were left out, because {who} was made with them; the "
            "verdict says nothing about inputs like them"
        )
        note = (
            "regression check on data that was used before: "
            if self.kind == "regression check"
            else ""
        )
        said = self.judgement.in_words()
        holds = self.judgement.verdict is Verdict.CERTIFIED
        limit = f"the limit of {100 * self.judgement.max_drop:.6g}%"
        verdict = f"{limit} holds: " if holds else ""
        if holds and self.kind == "regression check":
            # What was chosen by these very samples proves nothing of others.
            verdict, said = f"within {limit} on these samples ", f"({self.judgement.evidence()})"
        first = f"{note}{verdict}{said}{seen if self.left_out else ''}"
        if self.coverage is not None:
            first += f"\nit holds for {self.coverage.in_words()}"
        more = () if self.comparison is None else self.comparison.in_words()
        worst = f"{self.unlabelled:,} of these have no label and count as lost, the worst that they can be"
        unlabelled = (worst,) if self.unlabelled else ()
        look: tuple[str, ...] = ()
        if self.look is not None and not (self.look.plain and self.remembered):
            look = (self.look.in_words(),)
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join((first, *unlabelled, *look, *more, *notes))

    def keep(self) -> Path:
        """Keep a chain's certificate in a file beside the chain, where it is found again.

        `hasten.chain` and `hasten serve` state it while the chain, its bundles and the machine are
        those of the test.

        Returns:
            The file.

        Raises:
            InputError: there is no certificate to keep, no place for it, or it can't be written.
        """
        if self.place is None:
            raise InputError(
                "only the certificate of a chain that is given as a file or a line is kept beside it: a "
                "bundle contains its own, and no test changes it"
            )
        if self.certificate is None and self.passed:
            raise InputError(
                "there is no certificate to keep, because these samples gave the same answers in an "
                "earlier test: test with new ones"
            )
        if self.certificate is None:
            raise InputError("there is no certificate to keep, because the limit doesn't hold")
        write_json(self.place, self.certificate)
        return self.place

    def _repr_html_(self) -> str:
        """Return the outcome as a card, for notebooks."""
        first, *others = self.in_words().splitlines()
        rows = (
            ("tested", self.asked.removeprefix("that ")),
            ("on", f"{self.used:,} samples, {self.left_out:,} left out"),
            ("kind", self.kind),
            ("found", first),
        )
        title = f"{'Passed' if self.passed else 'Not passed'}: {self.verdict}"
        return as_html(Card(title, self.passed, rows, tuple(others)))


@dataclass(frozen=True)
class Seen:
    """Hashes of what a bundle was made with; the rest of the file is for people.

    Attributes:
        hashes: SHA-256 of each sealed sample, in hex.
        seen: SHA-256 of each calibration or search sample, in hex.
        groups: SHA-256 of the name of each group of those samples, in hex.
    """

    hashes: frozenset[_Hash]
    seen: frozenset[_Hash]
    groups: frozenset[_Hash]

    @classmethod
    def together(cls, several: Iterable[Seen]) -> Seen:
        """Return what several bundles were made with."""
        known = list(several)
        return cls(
            frozenset().union(*(one.hashes for one in known)),
            frozenset().union(*(one.seen for one in known)),
            frozenset().union(*(one.groups for one in known)),
        )

    def check_groups(self, folder: Path, dataset: Dataset) -> None:
        """Check that data has groups where a bundle was made with some.

        Raises:
            InputError: it has none.
        """
        if self.groups and dataset.groups is None:
            raise InputError(
                f"{folder} was made with groups, but the data has none, so samples that belong "
                "together would count as independent: give each sample its group, or a group of "
                "its own if it belongs with no other"
            )


def seen_by(folder: Path, manifest: Manifest) -> Seen:
    """Read the hashes of the samples that the bundle was made with.

    Raises:
        IntegrityError: the record is missing, too large or damaged.
    """
    if _SEALED not in manifest.files:
        todo = (
            "let its run finish with resume=True"
            if unfinished(manifest.why)
            else "test the bundle that it was packed from, with its evidence"
        )
        raise IntegrityError(
            f"{folder} has no {_SEALED}, so the data that it was made with isn't known, and no "
            f"data counts as fresh: {todo}, or make the bundle again"
        )
    size_bytes = manifest.files[_SEALED][1]
    if size_bytes > _SEALED_BYTES:
        raise IntegrityError(
            f"{folder}: {_SEALED} has {size_bytes:,} bytes; at most {_SEALED_BYTES:,} are read"
        )
    try:
        # Typed as it is read: a list of a hundred million empty lists never gets into memory.
        return msgspec.json.decode((folder / _SEALED).read_bytes(), type=Seen)
    except (msgspec.MsgspecError, OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{folder}: {_SEALED} is damaged: {error}") from error


@dataclass(frozen=True)
class Chosen:
    """Samples to test a bundle on.

    Attributes:
        kind: Kind of the test, by what the bundle was made with.
        samples: Samples that are tested on.
        units: Number of each one's group, `(n,)`: samples that share a group or their content have the same.
        hashes: SHA-256 of each one's content.
        elsewhere: Number of samples left out that only other runs searched or tested on.
        earlier: Record of what other runs did with samples of this data.
    """

    kind: Kind
    samples: Subset
    units: Array
    hashes: tuple[bytes, ...]
    elsewhere: int = 0
    earlier: Earlier = field(default_factory=Earlier)


def fresh(dataset: Dataset, seen: Seen, earlier: Earlier) -> Chosen:
    """Choose samples that the making of the bundle hasn't seen, or all where there are none.

    A sample also counts as seen where one that shares its group or its content does.

    Args:
        dataset: Data to test on.
        seen: Hashes of the samples that the bundle was made with.
        earlier: Record of what other runs did with samples: what they searched on is left out too, and so is
            what was tested on where the others alone tell more.
    """
    grouped = () if dataset.groups is None else groups_seen(dataset.groups, seen.groups)
    hashes = [dataset.content_hash(i) for i in range(len(dataset))]
    former = former_hashes(dataset)
    earlier = earlier.among(hashes, former)
    units = units_of(dataset, hashes)
    used = {bytes.fromhex(one) for one in (*seen.hashes, *seen.seen)}
    known = {unit for unit, content in zip(units, hashes, strict=True) if content in used}
    known.update(u for u, old in zip(units, former, strict=False) if old in used)
    known.update(u for u, used_before in zip(units, grouped, strict=False) if used_before)
    unseen = [i for i, unit in enumerate(units) if unit not in known]
    left = _untouched(unseen, hashes, units, earlier)
    elsewhere = len(unseen) - len(left)
    kind: Kind = "fresh data" if left else "regression check"
    # As in a run, the order depends on the samples alone: another one would be another bet.
    left = sorted(left or range(len(dataset)), key=hashes.__getitem__)
    samples = Subset(dataset, np.array(left))
    found = tuple(hashes[i] for i in left)
    elsewhere = elsewhere if kind == "fresh data" else 0
    return Chosen(kind, samples, units_of(samples, found), found, elsewhere, earlier)


def looked(
    ledger: Ledger,
    chosen: Chosen,
    test: str,
    promise: Promise,
    judged: Callable[[Promise], Judged],
    held: Callable[[], bool] = lambda: True,
) -> tuple[Judged, Kind, Look | None]:
    """Judge answers by the look that they are, unless they are a check of what was used before.

    Args:
        ledger: Memory of earlier looks.
        chosen: Samples that were answered.
        test: Digest of the whole test.
        promise: Promise as it was asked for.
        judged: Function that judges at a promise's confidence.
        held: Function that is called afterwards: whether the limit held in all batch sizes, too.

    Returns:
        Verdicts, kind of test by the ledger too, and the look.
    """
    if chosen.kind == "regression check":
        return judged(promise), chosen.kind, None
    hashes = chosen.earlier.with_former(chosen.hashes)
    look = ledger.look(hashes, test, asked=1 - promise.confidence)
    verdicts = judged_at(look, promise, judged)
    ledger.end(look, verdicts, held=held())
    if look.repeats:
        return verdicts, "regression check", look
    return verdicts, chosen.kind if look.number == 1 else "further look", look


def _untouched(unseen: list[int], hashes: list[bytes], units: Array, earlier: Earlier) -> list[int]:
    """Leave out samples that another run searched on, and those tested on where the rest tells more.

    A unit with one such sample is left out whole.
    """
    short = [one[:KNOWN_BYTES] for one in hashes]

    def without(some: list[int], touched: Container[bytes]) -> list[int]:
        spoilt = {units[i] for i in some if short[i] in touched}
        return [i for i in some if units[i] not in spoilt]

    left = without(unseen, earlier.seen)
    untested = without(left, earlier.tested)
    worth = min((earlier.tested[short[i]] for i in left if short[i] in earlier.tested), default=1.0)
    return untested if worth < 1 and untested and len(untested) >= worth * len(left) else left

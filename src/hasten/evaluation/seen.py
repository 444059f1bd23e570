"""What a bundle was made with, which data is fresh for it, and the outcome of a test on such data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from hasten.bundle import Manifest
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.comparison import Comparison
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.optimization.workspace import hashed_groups

Kind: TypeAlias = Literal["fresh data", "regression check"]
_Hash: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_SEALED = "evidence/sealed.json"
_SEALED_BYTES = 256 << 20
"""Most bytes of the sealed record, enough for three million samples."""


@dataclass(frozen=True)
class Recheck:
    """Outcome of testing a bundle on new data.

    Attributes:
        kind: "fresh data": a certificate of its own. "regression check": the samples were used
            before, so passing says that nothing changed, not that it is right.
        judgement: Judgement on these samples.
        used: Number of samples that were judged.
        left_out: Number of samples left out because the bundle was made with them.
        comparison: Figures, scores and decisions of the winner beside the exact model's, on these
            samples; None where nothing was compared. They don't decide whether the limit holds.
        unlabelled: Number of samples without a label on which answers differ: each counts as lost.
    """

    kind: Kind
    judgement: Judgement
    used: int
    left_out: int
    comparison: Comparison | None = None
    unlabelled: int = 0

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.judgement.verdict is Verdict.CERTIFIED

    def in_words(self) -> str:
        """Describe the outcome in one line, and what was compared in further ones."""
        seen = f"; {self.left_out:,} samples were left out: the bundle was made with them"
        note = (
            "regression check on data that was used before: "
            if self.kind == "regression check"
            else ""
        )
        said = self.judgement.in_words()
        verdict = (
            f"the limit of {100 * self.judgement.max_drop:.6g}% holds: " if self.passed else ""
        )
        first = f"{note}{verdict}{said}{seen if self.left_out else ''}"
        more = () if self.comparison is None else self.comparison.in_words()
        worst = f"{self.unlabelled:,} of these have no label and count as lost, the worst that they can be"
        return "\n".join((first, *((worst,) if self.unlabelled else ()), *more))


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
                f"{folder} was made with groups, and the data has none, so samples that belong together "
                "would pass for independent ones: give each sample its group, one of its own where it "
                "belongs with no other"
            )


def seen_by(folder: Path, manifest: Manifest) -> Seen:
    """Read the hashes of the samples that the bundle was made with.

    Raises:
        IntegrityError: the record is missing, too large or damaged.
    """
    if _SEALED not in manifest.files:
        raise IntegrityError(
            f"{folder} has no {_SEALED}, so what it was made with isn't known and no data is fresh: "
            "make it anew, or let its run finish with resume=True"
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


def fresh(dataset: Dataset, seen: Seen) -> tuple[Kind, Subset, Array]:
    """Return samples that the making of the bundle hasn't seen, or all where there are none."""
    groups = () if dataset.groups is None else hashed_groups(dataset.groups)
    hashes = [dataset.content_hash(i).hex() for i in range(len(dataset))]
    unseen = [
        i
        for i, content in enumerate(hashes)
        if content not in seen.hashes
        and content not in seen.seen
        and not (groups and groups[i] in seen.groups)
    ]
    kind: Kind = "fresh data"
    if not unseen:
        kind, unseen = "regression check", list(range(len(dataset)))
    if dataset.groups is not None:
        chosen = np.array(unseen)
        units = np.unique(dataset.groups[chosen], return_inverse=True)[1].reshape(-1)
        return kind, Subset(dataset, chosen), units
    first = {hashes[i]: i for i in reversed(unseen)}
    chosen = np.array(sorted(first.values()))
    return kind, Subset(dataset, chosen), np.arange(len(chosen))

"""Batch sizes of a certificate: a rung's answers in batches, tested as conditions of the rung.

Where a model's graph provably answers each row of a batch by itself, samples stay independent draws in
a batch, and the test is the rung's own. Where it isn't proven, one sample may spoil all that share its
batch, so that a batch is one draw: n samples in batches of b say no more than n / b draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.tensors import Array


@dataclass(frozen=True)
class Batches:
    """Batch sizes of one candidate, chosen before the sealed data is read.

    Attributes:
        sizes: Sizes above 1 to test, ascending.
        rows_apart: Whether it is proven that each row of a batch is answered by itself.
        chunk: Number of consecutive samples from which batches are formed.
        without: Reasons why larger sizes aren't tested, in words; empty where there is none.
        kinds: Kind of each sealed sample, of which only those of one kind share a batch; empty where all may.
    """

    sizes: tuple[int, ...] = ()
    rows_apart: bool = False
    chunk: int = 64
    without: str = ""
    kinds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """Batch sizes that a certificate covers.

    Attributes:
        sizes: Sizes at which the claim was tested, ascending; 1 is the first.
        rows_apart: Whether it is proven that each row of a batch is answered by itself.
        without: Reasons why larger sizes aren't covered, in words; empty where there is none.
    """

    sizes: tuple[int, ...] = (1,)
    rows_apart: bool = False
    without: str = ""

    def in_words(self) -> str:
        """Return what is covered, and how, in one line."""
        if len(self.sizes) == 1:
            return f"lone samples only{f': {self.without}' if self.without else ''}"
        how = (
            "the model answers each row of a batch by itself, so each sample counts on its own"
            if self.rows_apart
            else "rows may depend on each other, so each batch counts as one sample"
        )
        more = f"; not others: {self.without}" if self.without else ""
        return f"batches of {', '.join(map(str, self.sizes))}, tested on the same samples ({how}){more}"


def batch_key(key: str, size: int) -> str:
    """Return the name of a candidate that answers in batches, beside its own."""
    return f"{key} in batches of {size}"


def drawn_together(units: Array, size: int, chunk: int, kinds: Sequence[int] = ()) -> Array:
    """Return the number of each sample's draw, `(n,)`, where samples that share a batch are one.

    Args:
        units: Number of each sample's group, `(n,)`.
        size: Number of samples in a batch.
        chunk: Number of consecutive samples from which batches are formed; the last batch of a kind in a
            chunk is filled up with samples of that kind from its first one on.
        kinds: Kind of each sample; samples of one kind share a batch. By default all are of one.
    """
    count = len(units)
    _, kind = np.unique(kinds if len(kinds) else np.zeros(count, np.int64), return_inverse=True)
    _, alike, sizes = np.unique(
        np.arange(count) // chunk * count + kind, return_inverse=True, return_counts=True
    )
    order = np.argsort(alike, kind="stable")
    within = np.empty(count, np.int64)
    within[order] = np.arange(count) - (np.cumsum(sizes) - sizes)[alike[order]]
    batch = within // size
    batch[(batch + 1) * size > sizes[alike]] = 0  # filled up with the first batch's samples
    batch += alike * chunk
    _, groups = np.unique(units, return_inverse=True)
    most = batch.max() + 1
    links = sparse.coo_matrix((np.ones(count, bool), (batch, most + groups)))
    nodes = most + groups.max() + 1
    links.resize(nodes, nodes)
    return np.asarray(
        sparse.csgraph.connected_components(links, directed=False)[1][batch], np.int64
    )


def covered(
    key: str,
    batches: Batches,
    lone: Judgement,
    original: Array,
    scores: Mapping[str, Array | str],
    units: Array,
    prior: BettingPrior,
    promise: Promise,
    *,
    binary: bool,
    sizes: Array | None = None,
) -> tuple[Coverage, dict[int, Judgement | str]]:
    """Test a certified candidate's answers in batches, size after size, up to the first that fails.

    All sizes are tested at the candidate's own level in an order that was frozen before, and the ladder
    goes on only where all hold: so the chance of any false claim stays at most 1 - confidence.

    Args:
        key: Key of the candidate.
        batches: Sizes to test.
        lone: Judgement of its answers to lone samples.
        original: Scores of the exact model on lone samples, `(n,)`.
        scores: Scores by key, with those in batches under `batch_key`; or why there are none.
        units: Number of each sample's draw, `(n,)`.
        prior: Prior by which bets are set.
        promise: Promise that is tested.
        binary: Whether scores may be counted as 0/1.
        sizes: Number of samples in each group of all data that these were drawn from, `(groups,)`; by
            default of these alone.

    Returns:
        What is covered, and the judgement (or failure) of each size that was tested.
    """
    held, found = [1], dict[int, Judgement | str]()
    for size in batches.sizes:
        mine = scores[batch_key(key, size)]
        if isinstance(mine, str):
            found[size] = mine
        elif batches.rows_apart and np.array_equal(mine, scores[key]):
            found[size] = lone
        else:
            draws = (
                units
                if batches.rows_apart
                else drawn_together(units, size, batches.chunk, batches.kinds)
            )
            ((_, found[size]),) = judge_ladder(
                original,
                (key,),
                {key: mine},
                draws,
                {key: prior if batches.rows_apart else BettingPrior()},
                promise,
                binary=binary and batches.rows_apart,
                sizes=sizes if batches.rows_apart else None,
            )
        entry = found[size]
        if isinstance(entry, str) or entry.verdict is not Verdict.CERTIFIED:
            said = entry if isinstance(entry, str) else entry.in_words()
            why = f"{size} and larger: {said}"
            return Coverage(tuple(held), batches.rows_apart, why), found
        held.append(size)
    return Coverage(tuple(held), batches.rows_apart, batches.without), found

"""Disjoint pairs of a sample of class 1 and one of class 0, whose scores average to the AUROC.

The labels and groups alone decide who is paired, with a fixed seed. Given the labels, samples of a
class are independent draws, so the pairs are too, and the share of pairs in the right order is an
unbiased estimate of the AUROC. A sample of the rarer class stands against several of the other one,
as many as there are, which are paired with no other: that keeps the draws independent, and narrows
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

_SEED = 0


@dataclass(frozen=True)
class Pairing:
    """Samples by the draw that they belong to.

    Attributes:
        blocks: Number of each sample's draw, from 0, integers `(n,)`.
        counted: Whether a sample counts, `(n,)`: of each group one does, so that no two draws share
            a group. The others belong to the draw of the one that does.
    """

    blocks: Array
    counted: Array

    @classmethod
    def of(cls, classes: Array, units: Array) -> Pairing:
        """Pair samples at random.

        Args:
            classes: Class of each sample, 0 or 1, `(n,)`.
            units: Number of each sample's group, `(n,)`; equal numbers were drawn together.

        Raises:
            InputError: a class has no sample that counts.
        """
        rng = np.random.default_rng(_SEED)
        shuffled = rng.permutation(len(classes))
        _, first, unit = np.unique(units[shuffled], return_index=True, return_inverse=True)
        chosen = shuffled[np.sort(first)]  # one sample of each group, in random order
        ones, zeros = (chosen[classes[chosen] == k] for k in (1, 0))
        if not (len(ones) and len(zeros)):
            counts = f"{len(ones)} of class 1 and {len(zeros)} of class 0"
            what = "samples" if len(chosen) == len(classes) else "groups, by one sample of each"
            raise InputError(f"auroc needs {what} of both classes; there are {counts}")
        rare, common = sorted((ones, zeros), key=len)
        blocks = np.full(len(classes), -1)
        blocks[rare] = np.arange(len(rare))
        blocks[common] = np.arange(len(common)) % len(rare)
        counted = blocks >= 0
        own = np.zeros(unit.max() + 1, np.int64)
        own[unit[counted[shuffled]]] = blocks[shuffled][counted[shuffled]]
        whole = np.empty_like(blocks)
        whole[shuffled] = own[unit]
        return cls(whole, counted)

    def scores(self, ranks: Array, classes: Array) -> Array:
        """Return the share of each draw's pairs in the right order, `(draws,)`; ties count half.

        Args:
            ranks: Scores of the samples, higher for class 1, `(n,)`.
            classes: Class of each sample, 0 or 1, `(n,)`.
        """
        ones, zeros = (np.flatnonzero(self.counted & (classes == k)) for k in (1, 0))
        rare, common = sorted((ones, zeros), key=len)
        against = rare[np.argsort(self.blocks[rare])][self.blocks[common]]
        one, zero = (against, common) if rare is ones else (common, against)
        won = (ranks[one] > ranks[zero]) + (ranks[one] == ranks[zero]) / 2
        drawn = self.blocks[common]
        return np.asarray(np.bincount(drawn, weights=won) / np.bincount(drawn))

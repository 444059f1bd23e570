"""Which samples share a batch: those of one kind, in their order."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence


def together(kinds: Sequence[Hashable], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the batches of some samples; each has samples of one kind only.

    Args:
        kinds: Kind of each sample, such as its shapes.
        size: Number of samples in a batch.

    Yields:
        Places of the samples that are answered in a batch, and of those that fill it up: samples of the same
        kind, from the first one on.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(place)
    for places in alike.values():
        for first in range(0, len(places), size):
            own = places[first : first + size]
            yield own, [places[number % len(places)] for number in range(size - len(own))]

"""Places and lengths that a request names in graphs of OpenVINO, which the plugin doesn't check, or by which it fails."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_FAILING = (
    *("GatherElements", "GatherND", "ScatterElementsUpdate", "ScatterNDUpdate", "ScatterUpdate"),
    *("ReverseSequence", "If", "Loop", "TensorIterator", "NonZero", "Unique", "NonMaxSuppression"),
    *("Range", "RandomUniform", "Multinomial", "EmbeddingBag", "EmbeddingSegments"),
)
"""Types of operations, or their beginnings, by which a request's numbers may make the plugin fail."""
_TYPES = tuple(f'type="{one}'.encode() for one in _FAILING)


_LOOPS = (b'type="Loop"', b'type="TensorIterator"')


class Risks(NamedTuple):
    """Risks of a graph.

    Attributes:
        fails: Whether a request's numbers may make the plugin fail even where all shapes are settled.
        loops: Whether it has a loop, which without any step gives the last request's numbers.
    """

    fails: bool = True
    loops: bool = True

    @classmethod
    def of(cls, path: Path) -> Risks:
        """Return those of a graph, given as IR."""
        content = path.read_bytes()
        return cls(*(any(one in content for one in types) for types in (_TYPES, _LOOPS)))

"""Places and lengths that a request names in graphs of OpenVINO, which the plugin doesn't check, or by which it fails."""

from __future__ import annotations

from pathlib import Path

_FAILING = (
    *("GatherElements", "GatherND", "ScatterElementsUpdate", "ScatterNDUpdate", "ScatterUpdate"),
    *("ReverseSequence", "If", "Loop", "TensorIterator", "NonZero", "Unique", "NonMaxSuppression"),
    *("Range", "RandomUniform", "Multinomial", "EmbeddingBag", "EmbeddingSegments"),
)
"""Types of operations, or their beginnings, by which a request's numbers may make the plugin fail."""
_TYPES = tuple(f'type="{one}'.encode() for one in _FAILING)


def may_fail(path: Path) -> bool:
    """Whether a request's numbers may make the plugin fail, though all shapes of a graph, given as IR, are settled."""
    content = path.read_bytes()
    return any(one in content for one in _TYPES)

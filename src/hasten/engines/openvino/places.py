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


def never_fails(path: Path) -> bool:
    """Whether no number of a request makes the plugin fail, where all shapes are settled.

    Args:
        path: The graph as IR.
    """
    content = path.read_bytes()
    return not any(one in content for one in _TYPES)

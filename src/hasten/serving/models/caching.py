"""Cache answers by the content of their requests, up to a total size."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.serving.protocol.datatypes import to_bytes

_ENTRY_BYTES = 512
"""Approximate memory of a cache entry besides its arrays."""


def content_key(inputs: Tensors) -> bytes:
    """Hash the names, types, shapes and contents of a request's inputs.

    Source: BLAKE2b, RFC 7693, with 256 bits: two different requests never have equal keys in practice.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name!r}{array.dtype}{array.shape}".encode())
        digest.update(to_bytes(array))
    return digest.digest()


class AnswerCache:
    """Cache of the most recently used answers, up to a total size.

    Args:
        most_bytes: Largest total size of all answers; a single larger answer isn't cached.

    Attributes:
        size_bytes: Total size of the cached answers.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[bytes, tuple[dict[str, Array], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> dict[str, Array] | None:
        """Return the cached answer to a request, or None."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: bytes, outputs: Tensors) -> None:
        """Cache an answer, and drop the least recently used ones if the cache is full."""
        size = _ENTRY_BYTES + sum(array.nbytes for array in outputs.values())
        if size > self.most_bytes or key in self._kept:
            return
        # Copied, since a view of one row would keep the whole batch in memory.
        own = {name: np.array(array) for name, array in outputs.items()}
        self._kept[key] = own, size
        self.size_bytes += size
        while self.size_bytes > self.most_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self.size_bytes -= gone

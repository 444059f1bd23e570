"""Answers that are kept: by the content of what was asked, as many as fit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.serving.protocol.datatypes import to_bytes

_ENTRY_BYTES = 512
"""What an entry takes besides its arrays, about."""


def content_key(inputs: Tensors) -> bytes:
    """Hash names, types, shapes and every byte.

    Source: BLAKE2b, RFC 7693, of 256 bits: two requests of one key don't occur.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name!r}{array.dtype}{array.shape}".encode())
        digest.update(to_bytes(array))
    return digest.digest()


class AnswerCache:
    """The answers used last, at most so many bytes of them.

    Args:
        most_bytes: Of all answers together; one that is larger isn't kept.

    Attributes:
        size_bytes: Of what is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[bytes, tuple[dict[str, Array], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> dict[str, Array] | None:
        """Return the answer, or None."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: bytes, outputs: Tensors) -> None:
        """Keep an answer, and let go of the ones that were used least lately."""
        size = _ENTRY_BYTES + sum(array.nbytes for array in outputs.values())
        if size > self.most_bytes or key in self._kept:
            return
        # A row of a batch would keep the whole batch.
        own = {name: np.array(array) for name, array in outputs.items()}
        self._kept[key] = own, size
        self.size_bytes += size
        while self.size_bytes > self.most_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self.size_bytes -= gone

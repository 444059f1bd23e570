"""Cache what requests made a server compute, by their content, up to a total size.

Answers belong to one version of a model, and there to the fast model or to the exact one that took over from
it. Prepared samples belong to the steps that made them, whichever model they are for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from hasten.core.records import to_record
from hasten.core.tensors import Array, Tensors
from hasten.inputs.pipeline.base import Origin, Step
from hasten.serving.protocol.datatypes import to_bytes

_ENTRY_BYTES = 512
"""Approximate memory of a cache entry besides its arrays."""
_PREPARED_SHARE = 2
"""Prepared samples take at most the whole divided by this: one may be as large as a thousand decisions."""

Prepared: TypeAlias = tuple[Any, Origin]
"""Array, or arrays by input name, without a batch axis; and where the sample comes from."""


def content_key(inputs: Tensors, answering: str) -> bytes:
    """Hash what answers a request, and the names, types, shapes and contents of its inputs.

    Source: BLAKE2b, RFC 7693, with 256 bits: two different requests never have equal keys in practice.
    """
    digest = hashlib.blake2b(repr(answering).encode(), digest_size=32)
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{name!r}{array.dtype}{array.shape}".encode())
        digest.update(to_bytes(array))
    return digest.digest()


def steps_key(steps: Sequence[Step], *, keeps_text: bool = False) -> bytes | None:
    """Hash the steps before a model as a manifest states them; None if a sample isn't worth keeping after them.

    It isn't if a step may make something else of an equal sample, or if the first one only reads a row, which
    is quick.

    Args:
        steps: The steps.
        keeps_text: Whether what is kept of a text has its words; see `Origin`.
    """
    if not steps or steps[0].bounded or not all(step.deterministic for step in steps):
        return None
    written = json.dumps([to_record(tuple(steps)), keeps_text], sort_keys=True)
    return hashlib.blake2b(written.encode(), digest_size=32).digest()


class Cache:
    """The most recently used of what the models of a server have computed, up to a total size.

    It is used on any thread.

    Args:
        most_bytes: Largest total size; a single larger entry isn't cached.

    Attributes:
        most_bytes: Largest total size.
        size_bytes: Total size of all entries.
        prepared: The prepared samples.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.size_bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[Part, bytes], tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.prepared = PreparedSamples(self, most_bytes // _PREPARED_SHARE)

    def get(self, part: Part, key: bytes) -> Any:
        """Return the entry of a part, or None."""
        with self._lock:
            found = self._kept.get((part, key))
            if found is None:
                return None
            self._kept.move_to_end((part, key))
            part.keys.move_to_end(key)
            return found[0]

    def put(self, part: Part, key: bytes, entry: Any, size: int) -> None:
        """Keep an entry of a part, and drop those that weren't used for the longest time beyond the sizes."""
        with self._lock:
            if size > part.most_bytes or key in part.keys:
                return
            self._kept[part, key] = entry, size
            part.keys[key] = None
            part.size_bytes += size
            self.size_bytes += size
            while part.size_bytes > part.most_bytes:
                self._drop(part, next(iter(part.keys)))
            while self.size_bytes > self.most_bytes:
                self._drop(*next(iter(self._kept)))

    def clear(self, part: Part) -> None:
        """Drop all entries of a part."""
        with self._lock:
            for key in list(part.keys):
                self._drop(part, key)

    def _drop(self, part: Part, key: bytes) -> None:
        _, size = self._kept.pop((part, key))
        del part.keys[key]
        part.size_bytes -= size
        self.size_bytes -= size


class Part:
    """Entries of one kind in a cache.

    Args:
        cache: The cache.
        most_bytes: Largest total size of these entries.

    Attributes:
        most_bytes: Largest total size of these entries.
        size_bytes: Total size of these entries.
        keys: Their keys, the least recently used first; only the cache changes them.
    """

    def __init__(self, cache: Cache, most_bytes: int) -> None:
        self._cache, self.most_bytes, self.size_bytes = cache, most_bytes, 0
        self.keys: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.keys)

    def clear(self) -> None:
        """Drop all these entries."""
        self._cache.clear(self)


class AnswerCache(Part):
    """Answers of one version of a model.

    Args:
        cache: The cache that keeps them.
    """

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache, cache.most_bytes)

    @classmethod
    def of(cls, cache: Cache | None, most_bytes: int) -> Self | None:
        """Return the answers of a model in a cache, or in one of its own; None if it wants none.

        Args:
            cache: The cache; None for one of its own.
            most_bytes: Size of the cache that the model is served with; 0 for none.
        """
        return cls(cache or Cache(most_bytes)) if most_bytes else None

    def get(self, key: bytes) -> dict[str, Array] | None:
        """Return the cached answer to a request, or None."""
        found: dict[str, Array] | None = self._cache.get(self, key)
        return found

    def put(self, key: bytes, outputs: Tensors) -> None:
        """Cache an answer, and drop the least recently used entries if the cache is full."""
        size = _ENTRY_BYTES + sum(array.nbytes for array in outputs.values())
        if size > self.most_bytes or key in self.keys:
            return
        # Copied, since a view of one row would keep the whole batch in memory.
        own = {name: np.array(array) for name, array in outputs.items()}
        self._cache.put(self, key, own, size)

    def prepared(self, sample: bytes) -> PreparedSample:
        """Return where the cache keeps what steps make of a sample."""
        return PreparedSample(self._cache.prepared, sample)


class PreparedSamples(Part):
    """Samples as they are before a model, for all models with the same steps."""

    def get(self, key: bytes) -> Prepared | None:
        """Return a prepared sample, whose arrays can't be written to, or None."""
        found: Prepared | None = self._cache.get(self, key)
        return found

    def put(self, key: bytes, prepared: Any, origin: Origin) -> None:
        """Cache a prepared sample that has just been made, and drop the least recently used entries."""
        several = isinstance(prepared, Mapping)
        arrays = prepared if several else {"": prepared}
        size = _ENTRY_BYTES + sum(np.asarray(array).nbytes for array in arrays.values())
        size += 0 if origin.text is None else origin.text.nbytes
        if size > self.most_bytes or key in self.keys:
            return
        own = {name: _read_only(array) for name, array in arrays.items()}
        self._cache.put(self, key, (own if several else own[""], origin), size)


class PreparedSample:
    """Cached forms of one sample, which steps made of it.

    Args:
        kept: The prepared samples of the cache.
        sample: Bytes of the sample.

    Attributes:
        hits: Number of times that a prepared sample of the cache was used.
        misses: Number of times that the sample was prepared, since the cache didn't have it.
    """

    def __init__(self, kept: PreparedSamples, sample: bytes) -> None:
        self._kept, self._content = kept, hashlib.blake2b(sample, digest_size=32).digest()
        self.hits = self.misses = 0

    def get(self, steps: bytes) -> Prepared | None:
        """Return what steps made of the sample, or None.

        Args:
            steps: Hash of the steps; see `steps_key`.
        """
        return self._kept.get(steps + self._content)

    def put(self, steps: bytes, prepared: Any, origin: Origin) -> None:
        """Keep what steps have just made of the sample.

        Args:
            steps: Hash of the steps.
            prepared: Array, or arrays by input name, without a batch axis.
            origin: Where the sample comes from.
        """
        self._kept.put(steps + self._content, prepared, origin)


class ChainInputs:
    """Cached forms of a sample, as the models of a chain take it.

    Args:
        kept: Cached forms of the sample.
        keys: Hash of the steps before each model; None for one whose samples aren't kept.
    """

    def __init__(self, kept: PreparedSample, keys: Mapping[str, bytes | None]) -> None:
        self._kept, self._keys = kept, keys

    def find(self, node: str) -> tuple[Any, Origin] | None:
        """Return the sample as a model takes it, and where it comes from; None if it isn't there."""
        key = self._keys[node]
        return None if key is None else self._kept.get(key)

    def used(self, node: str) -> None:
        """Count that a model is asked about what `find` returned."""
        self._kept.hits += 1

    def made(self, node: str, prepared: Any, origin: Origin) -> None:
        """Keep the sample as a model takes it, which was prepared now."""
        if (key := self._keys[node]) is not None:
            self._kept.misses += 1
            self._kept.put(key, prepared, origin)


def _read_only(array: Any) -> Array:
    """Return a copy of an array that nobody can write to and that keeps no larger array in memory."""
    own = np.array(array, order="C")  # as `as_request` needs it
    own.flags.writeable = False
    return own

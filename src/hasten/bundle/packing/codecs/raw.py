"""Bytes as they are, for what no codec makes smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs.base import Codec, Inner, Outer
from hasten.core.tensors import Array
from hasten.errors import IntegrityError


@dataclass(frozen=True)
class Raw(Codec):
    """Bytes as they are."""

    cost: ClassVar[float] = 0.1

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        return data.tobytes()

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        if len(coded) != len(out):
            raise IntegrityError(f"it holds {len(coded):,} bytes, but {len(out):,} are needed")
        out[:] = np.frombuffer(coded, np.uint8)

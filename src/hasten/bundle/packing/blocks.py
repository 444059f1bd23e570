"""Code chunks by whatever makes them smallest, and decode them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hasten.bundle.packing.codecs.base import Codec
from hasten.bundle.packing.codecs.raw import Raw
from hasten.bundle.packing.codecs.zstandard import Zstandard, compressed
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

DEEPEST = 3
"""Largest number of codecs inside each other: a block of a block of a block."""
_NEARLY = 1.005
"""Factor up to which one coded size counts as about the same as another."""


@dataclass(frozen=True)
class Codecs:
    """Codecs by the numbers that blocks state them by.

    Attributes:
        names: Names of codecs; a codec's number is its place among them.
    """

    names: tuple[str, ...]
    _known: dict[int, Codec] = field(default_factory=dict, compare=False)

    def decode(self, block: memoryview, out: Array, width: int, deep: int = 1) -> None:
        """Decode a block: the number of a codec, one byte, and what that codec made of the bytes.

        Args:
            block: Block, which may hold anything.
            out: Where the bytes go: uint8 of shape (n,), contiguous, writable.
            width: Size of an element in bytes, which divides n.
            deep: Number of blocks that this one is in, itself included.

        Raises:
            IntegrityError: the block doesn't decode to exactly n bytes; the message says how.
            InputError: its codec isn't installed, or unknown, as one of a later version is.
        """
        if deep > DEEPEST:
            raise IntegrityError(f"its codecs are nested more than {DEEPEST} deep")
        if not len(block) or block[0] >= len(self.names):
            raise IntegrityError("it names no codec")

        def inner(part: memoryview, into: Array, size: int) -> None:
            self.decode(part, into, size, deep + 1)

        self._codec(block[0]).decode(block[1:], out, width, inner)

    def _codec(self, number: int) -> Codec:
        """Return the codec of a number; import it at first."""
        if number not in self._known:
            name = self.names[number]
            try:
                cls = Codec.member(name)
            except KeyError:
                raise InputError(
                    f"it needs the codec {name!r:.60}, and this version of hasten has "
                    f"{', '.join(Codec.registry)}: upgrade hasten"
                ) from None
            if not cls.usable():
                raise InputError(f"it needs the codec {name}: pip install 'hasten[{cls.extra}]'")
            self._known[number] = cls()
        return self._known[number]


@dataclass(frozen=True)
class Coder:
    """Codes chunks by the smallest of some codecs.

    Attributes:
        choice: Codecs to choose from, by number.
    """

    choice: Sequence[Codec]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the codecs by number, for a `Codecs`."""
        return tuple(Codec.registry.name_of(type(codec)) or "" for codec in self.choice)

    def code(self, data: Array, width: int, deep: int = 1) -> bytes:
        """Return the smallest block of some bytes, or one nearly as small that decodes faster.

        Args:
            data: Bytes: uint8 of shape (n,), n at least 1, contiguous.
            width: Size of an element in bytes, which divides n.
            deep: Number of blocks that this one is in, itself included.
        """
        return self._coded(data, width, deep).block

    def plain(self, data: Array) -> bytes:
        """Return the block of some bytes as they are.

        Args:
            data: Bytes: uint8 of shape (n,).
        """
        return bytes([self.choice.index(Raw())]) + data.tobytes()

    def _coded(self, data: Array, width: int, deep: int) -> _Coded:
        tried = tuple(self._tried(data, width, deep))
        most = _NEARLY * min(len(coded.block) for coded in tried)
        for coded in tried:
            if isinstance(self.choice[coded.block[0]], Zstandard):
                most = min(most, len(coded.block))  # nothing is larger than Zstandard makes it
        near = (coded for coded in tried if len(coded.block) <= most)
        return min(near, key=lambda coded: (coded.cost, len(coded.block)))

    def repeats(self, data: Array) -> bytes | None:
        """Return a block of bytes that repeat far apart, more than a chunk; None where few seem to.

        Args:
            data: Bytes of a whole item: uint8 of shape (n,).
        """
        for number, codec in enumerate(self.choice):
            if isinstance(codec, Zstandard) and codec.repeats(data):
                return bytes([number]) + compressed(data.tobytes())
        return None

    def _tried(self, data: Array, width: int, deep: int) -> Iterator[_Coded]:
        """Yield what each codec that takes some bytes makes of them."""
        least = len(data) + 1
        for number, codec in sorted(enumerate(self.choice), key=lambda pair: pair[1].slow):
            fits = not codec.widths or width in codec.widths
            inside = (codec.nested and deep == DEEPEST) or (codec.outermost and deep > 1)
            if not fits or inside:
                continue
            if not codec.promising(data, width, least):
                continue
            parts: list[_Coded] = []

            def inner(part: Array, size: int, parts: list[_Coded] = parts) -> bytes:
                parts.append(self._coded(part, size, deep + 1))
                return parts[-1].block

            coded = codec.encode(data, width, inner)
            if coded is not None:
                least = min(least, len(coded))
                cost = codec.cost * len(data) + sum(part.cost for part in parts)
                yield _Coded(bytes([number]) + coded, cost)


@dataclass(frozen=True)
class _Coded:
    """A block, and the time in nanoseconds that decoding it takes."""

    block: bytes
    cost: float


def all_codecs() -> tuple[Codec, ...]:
    """Return every codec that can be used here."""
    return tuple(cls() for cls in Codec.members().values() if cls.usable())

"""Is there a packed file that harms its reader? A million are made, each from a good one.

    python benchmarks/fuzz_packed.py [--count 1000000] [--seed 0]
    python benchmarks/fuzz_packed.py --guided 600        # by coverage, where atheris is installed

Four kinds take turns: bytes of the file are changed; the head states something else, under its right hash;
chunks hold something else, under sums that fit; and a chunk is decoded alone, from memory and into memory
that end before a page that may not be touched, in C and in Python, which must agree. Each file is read by
`Packed.open` and `unpack` in a process with a limit of memory. A file that is neither refused in one line
nor unpacked is a finding, and so is one whose bytes were changed and nobody noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import json
import mmap
import os
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own pieces

from tests.support.packed_files import Parts, quickly, with_frame

from hasten.bundle.packing.blocks import Codecs, all_codecs
from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.layout import Base, Head, Item, Piece
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import MemorySource
from hasten.bundle.packing.writer import Cut, write_packed
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

_BATCH = 5_000
_MOST_FILE_BYTES = 64 << 20
"""Size of unpacked files from which nobody here makes room for them, as on a machine without memory."""
_LIMIT_BYTES = 1 << 30
_CHUNK_BYTES = 256
_IN_PYTHON = 0.2
"""Share of chunks alone that are decoded in Python, too: that takes ten times as long."""
_NUMBERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    255,
    256,
    2**16,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64,
    10**40,
)
_WORDS = (
    "",
    "..",
    "a/../b",
    "/x",
    "raw",
    "zstd",
    "huffman",
    "same",
    "xor",
    "minus",
    "é",
    "x" * 2000,
    "a\0",
    "\n",
)
_OLD = np.random.default_rng(9).integers(0, 256, 1 << 12, np.uint8)
"""Bytes of the base, for differences."""


def corpus(folder: Path) -> Iterator[bytes]:
    """Yield small packed files: one for each kind of tensor, and one that is a difference."""
    rng = np.random.default_rng(4)
    normal = rng.standard_normal(150)
    tensors = {
        "noise": rng.integers(0, 256, 300, np.uint8),
        "weights": np.round(rng.standard_normal(500) * 9).astype(np.int8),
        "flat": rng.integers(0, 8, 400, np.uint8),
        "mostly": (rng.random(900) > 0.95).astype(np.uint8),
        "floats": normal.astype(np.float32),
        "halves": normal.astype(np.float16),
        "few": rng.choice(normal[:5], 200).astype(np.float32),
        "pruned": np.where(rng.random(400) < 0.97, 0, 1.5).astype(np.float32),
        "text": np.frombuffer(b"a stranger reads it. " * 30, np.uint8),
    }
    for name, array in tensors.items():
        yield written(folder / name, [_cut(name, array, 0), _cut("again", array, array.nbytes)])
    old = _OLD[:400].view(np.float32)
    base = Base("0" * 64, (("old.bin", len(_OLD)),))
    cuts = [
        _cut("near", _OLD[:400] ^ 1, 0, "xor"),
        _cut("added", (old.view(np.uint32) + 3).view(np.float32), 400, "minus"),
        _cut("same", old, 800, "same"),
    ]
    yield written(folder / "since", cuts, base)


def _cut(name: str, array: Array, place: int, relation: Any = "") -> Cut:
    data, since = array.view(np.uint8), (Piece(0, 0, array.nbytes),) if relation else ()
    if relation == "xor":
        data = data ^ _OLD[: len(data)]
    elif relation == "minus":
        data = (array.view(np.uint32) - _OLD[: len(data)].view(np.uint32)).view(np.uint8)
    pieces = (Piece(0, place, len(data)),)
    chunk = _CHUNK_BYTES
    item = Item(
        name, str(array.dtype), array.shape, array.itemsize, pieces, chunk, (), (), relation, since
    )
    return Cut(item, data)


def written(path: Path, cuts: list[Cut], base: Base | None = None) -> bytes:
    """Return a packed file of one unpacked file."""
    size = sum(cut.item.size_bytes for cut in cuts)
    write_packed(path, Head((("m.bin", size),), (), (), base), iter(cuts), all_codecs())
    return path.read_bytes()


# -- changes


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes at random places: set, flip, cut out, repeat, cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(found) or 1), rng.choice((1, 2, 4, 8, 40))
        match rng.randrange(6):
            case 0:
                found[at : at + length] = rng.randbytes(length)
            case 1:
                found[at : at + 1] = bytes([(found[at] if found else 0) ^ (1 << rng.randrange(8))])
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                found[at : at + length] = rng.choice((b"\0", b"\xff")) * length
            case 5 if rng.random() < 0.2:
                del found[at:]
    return bytes(found)


def changed_head(parts: Parts, rng: random.Random) -> bytes:
    """Change values anywhere in the JSON of a head, and write its hash anew."""
    record = json.loads(json.dumps(parts.record))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(record, rng)
    text = json.dumps(record).encode()
    if rng.random() < 0.1:
        text = changed_bytes(text, rng)
    return with_frame(quickly(text), b"".join(b"".join(chunks) for chunks in parts.chunks))


def _change(value: Any, rng: random.Random) -> None:
    """Change one value somewhere inside a record."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            if isinstance(value, list):
                value.append(_any(rng))
            return
        key = rng.choice(keys)
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.85:
            value = value[key]
            continue
        kind = rng.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, list):
            value.insert(key, copy.deepcopy(rng.choice(value)))
        elif kind < 0.6 and type(value[key]) is int:
            value[key] += rng.choice((-256, -4, -1, 1, 1, 4, 256, 2**32))
        else:
            value[key] = _any(rng)
        return


def _any(rng: random.Random) -> Any:
    kinds: tuple[tuple[Any, ...], ...] = (
        _NUMBERS,
        _NUMBERS,
        _WORDS,
        ([], {}, None, True, 1.0, 1e300, [[]], [1, 1], [["a", 1]]),
    )
    return copy.deepcopy(rng.choice(rng.choice(kinds)))


def changed_chunks(parts: Parts, rng: random.Random) -> bytes:
    """Change what chunks hold, and write their lengths and sums anew, and the head's hash."""
    record = {**parts.record, "items": {**parts.record["items"]}}
    new = Parts(record, [list(chunks) for chunks in parts.chunks])
    chunks = rng.choice([chunks for chunks in new.chunks if chunks])
    at = rng.randrange(len(chunks))
    chunks[at] = _changed_chunk(chunks[at], rng) or b"\0"
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    return new.signed(quickly)


def _changed_chunk(chunk: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return changed_bytes(chunk, rng)
    found = bytearray(chunk)
    for _ in range(rng.choice((1, 1, 2, 3))):  # near its beginning, where its tables are
        found[min(rng.randrange(len(found)), rng.randrange(len(found)))] = rng.randrange(256)
    return bytes(found)


# -- what is attacked


def read(data: bytes) -> bytes | None:
    """Read a packed file; None where nobody would make room for it.

    Raises:
        InputError: it is refused.
    """
    file = Packed.open(MemorySource(data))
    if file.head.size_bytes > _MOST_FILE_BYTES:
        return None
    files = {name: np.zeros(size, np.uint8) for name, size in file.head.files}
    file.unpack(files, lambda piece: _OLD[piece.offset :][: piece.length])
    file.check_end()
    return b"".join(array.tobytes() for array in files.values())


class Fence:
    """Memory that ends where a page begins that may not be touched.

    Attributes:
        bytes: The memory, uint8.
    """

    def __init__(self, pages: int = 4) -> None:
        size = pages * mmap.PAGESIZE
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        whole = np.frombuffer(self._map, np.uint8)
        end = whole.ctypes.data + size
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "no page can be protected")
        self.bytes = whole[:size]

    def last(self, count: int) -> Array:
        """Return its last bytes."""
        return self.bytes[len(self.bytes) - count :]


def decoded_alone(
    chunk: bytes, codecs: Codecs, size: int, width: int, fences: list[Fence], ways: Sequence[Any]
) -> str:
    """Decode a chunk in C, and maybe in Python; return what came of it.

    Raises:
        AssertionError: they differ, or wrote elsewhere.
    """
    source, goal = fences
    source.last(len(chunk))[:] = np.frombuffer(chunk, np.uint8)
    found: list[bytes | None] = []
    for made in ways:
        native._making.made = made
        goal.bytes[:] = 7
        try:
            codecs.decode(source.last(len(chunk)).data, goal.last(size), width)
            found.append(goal.last(size).tobytes())
        except IntegrityError:
            found.append(None)
        assert (goal.bytes[:-size] == 7).all(), "bytes before the chunk were written"
    native._making.made = _IN_C
    assert found[0] == found[-1], "C and Python differ"
    return "refused" if found[0] is None else "unpacked"


_IN_C = native.for_coding()
native._making._looked = native._making._ended = True  # nothing else is compiled


def attack(
    files: list[bytes], apart: list[Parts], rng: random.Random, fences: list[Fence]
) -> tuple[str, Any]:
    """Make a file and read it; return what came of it, and the file."""
    number = rng.randrange(len(files))
    data, parts = files[number], apart[number]
    kind = rng.choice(
        ("bytes", "head", "head", "head", "chunks", "chunks", "chunks", "alone", "alone", "alone")
    )
    if kind == "alone":
        at = rng.choice([n for n, chunks in enumerate(parts.chunks) if chunks])
        chunk = _changed_chunk(rng.choice(parts.chunks[at]), rng)[:8000]
        items, codecs = parts.record["items"], Codecs(tuple(parts.record["codecs"]))
        width = items["width"][at]
        size = rng.choice((_CHUNK_BYTES, _CHUNK_BYTES, width, 8 * rng.randrange(1, 400)))
        ways = (_IN_C, None) if rng.random() < _IN_PYTHON else (_IN_C,)
        return f"{kind}: {decoded_alone(chunk, codecs, size, width, fences, ways)}", chunk
    changes: dict[str, Callable[[], bytes]] = {
        "bytes": lambda: changed_bytes(data, rng),
        "head": lambda: changed_head(parts, rng),
        "chunks": lambda: changed_chunks(parts, rng),
    }
    made = changes[kind]()
    if kind == "bytes" and made == data:
        return "bytes: left as they are", made
    said = ""
    try:
        found = read(made)
    except InputError as error:
        said = str(error)
        how = "as damaged" if isinstance(error, IntegrityError) else "otherwise"
    if said:
        assert said.isprintable(), "a message of several lines"
        return f"{kind}: refused {how}", made
    assert kind != "bytes", "changed bytes weren't noticed"
    return f"{kind}: {'unpacked' if found is not None else 'too large'}", made


def batch(seed: int, files: list[bytes], limit_bytes: int) -> Counter[str]:
    """Attack some times in a process of its own; return how often what came of it."""
    reading, writing = os.pipe()
    place = mmap.mmap(-1, 8)
    if (child := os.fork()) == 0:
        os.close(reading)
        told = Counter[str]()
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        apart, fences = [Parts.of(data) for data in files], [Fence(), Fence()]
        for at in range(_BATCH):
            place[:] = at.to_bytes(8, "little")
            rng = random.Random(f"{seed}/{at}")
            try:
                told[attack(files, apart, rng, fences)[0]] += 1
            except BaseException as error:
                told[f"FOUND {type(error).__name__}: {error!s:.80} ({seed}/{at})"] += 1
        told["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(writing, json.dumps(told).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        at = int.from_bytes(place[:], "little")
        return Counter({f"FOUND a crash, status {status} ({seed}/{at})": 1, "lost": _BATCH - at})
    return Counter(json.loads(text))


def guided(seconds: int, files: list[bytes]) -> None:
    """Let coverage guide: the bytes are a file whose hashes and sums are written anew where it has any."""
    import atheris

    def one(data: bytes) -> None:
        for made in (data, _signed(data)):
            with contextlib.suppress(InputError):
                read(made)

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            parts = Parts.of(data)
            chunks = b"".join(b"".join(each) for each in parts.chunks)
            text = json.dumps(parts.record).encode()
            Path(folder, str(number)).write_bytes(len(text).to_bytes(2, "little") + text + chunks)
        for function in packing_functions():
            atheris.instrument_func(function)
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                "-max_len=6000",
                "-rss_limit_mb=2048",
                folder,
            ],
            one,
        )
        atheris.Fuzz()


def packing_functions() -> list[FunctionType]:
    """Return the functions and methods of the reader: all of Python's and of others is too much to follow."""
    modules = [
        sys.modules[name] for name in sys.modules if name.startswith("hasten.bundle.packing")
    ]
    own = [one for module in modules for one in vars(module).values()]
    methods = [one for cls in own if isinstance(cls, type) for one in vars(cls).values()]
    found = {id(one): one for one in (*own, *methods) if isinstance(one, FunctionType)}
    return [one for one in found.values() if one.__module__.startswith("hasten.bundle.packing")]


def _signed(data: bytes) -> bytes:
    """Return a packed file of a head and chunks; lengths and sums are right where the head states a list."""
    length = int.from_bytes(data[:2], "little")
    text, chunks = data[2 : 2 + length], data[2 + length :]
    try:
        record = json.loads(text)
        place = 0
        for coded, sums in zip(record["items"]["coded"], record["items"]["sums"], strict=False):
            for at, size in enumerate(coded):
                sums[at] = zlib.crc32(chunks[place : place + size])
                place += size
        text = json.dumps(record).encode()
        chunks = chunks[:place]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        pass
    return with_frame(quickly(text), chunks)


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--count", type=int, default=1_000_000, help="files to make")
    asked.add_argument("--seed", type=int, default=0, help="other files for each")
    asked.add_argument("--guided", type=int, metavar="SECONDS", help="by coverage, so long")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = list(corpus(Path(folder)))
    if given.guided:
        guided(given.guided, files)
    text = Path("/proc/self/statm").read_text()
    limit_bytes = int(text.split()[0]) * mmap.PAGESIZE + _LIMIT_BYTES
    total, begun = Counter[str](), time.monotonic()
    most = 0
    with contextlib.suppress(KeyboardInterrupt):  # then it tells what came of those until now
        for number in range(-(-given.count // _BATCH)):
            told = batch(given.seed + number, files, limit_bytes)
            most = max(most, told.pop("resident", 0))
            total.update(told)
            if number % 20 == 19:
                found = sum(count for what, count in total.items() if what.startswith("FOUND"))
                spent = time.monotonic() - begun
                print(f"{sum(total.values()):,} files, {found} findings, {spent:.0f} s", flush=True)
    for what, count in sorted(total.items()):
        print(f"{count:>10,}  {what}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{sum(total.values()):,} files in {time.monotonic() - begun:.0f} s; at most {most >> 10} MiB resident,"
    )
    print(f"{own >> 10} MiB of them before the first file; limit of {_LIMIT_BYTES >> 20} MiB more")
    sys.exit(any(what.startswith("FOUND") for what in total))


if __name__ == "__main__":
    main()

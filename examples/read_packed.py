"""A second reader of packed bundles, written from docs/reference/packed-format.md; it uses nothing of hasten.

    python examples/read_packed.py model.hastenz FOLDER [OLDER_FOLDER]

It shows what the format is, byte by byte, and is slow: its decoders are plain Python."""

import json
import sys
import zlib
from hashlib import sha256
from importlib import import_module
from io import BytesIO
from itertools import pairwise
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np

zstd = import_module("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")


def need(condition, what):
    if not condition:
        raise ValueError(what)


def take(stream, count):
    found = stream.read(count)
    need(len(found) == count, "it ends early")
    return found


def number(stream, size=4):
    return int.from_bytes(take(stream, size), "little")


def elements(data, width):
    return np.frombuffer(data, f"<u{width}")


def frame(data, most):
    opened = zstd.ZstdDecompressor()
    found = opened.decompress(data, max_length=most + 1)
    need(opened.eof and not opened.unused_data and len(found) <= most, "no frame of that size")
    return found


def size_of(pieces):
    need(all(p.offset >= 0 < p.length for p in pieces), "a piece has no bytes, or no place")
    return sum(p.length for p in pieces)


def read_head(stream, file_bytes):
    need(take(stream, 8) == b"\x89HASTENZ" and number(stream) == 1, "no packed bundle of version 1")
    length, stated = number(stream), take(stream, 32)
    packed = take(stream, length)
    need(length <= 16 << 20 and sha256(packed).digest() == stated, "its head is damaged")
    head = json.loads(frame(packed, 32 << 20), object_hook=lambda found: SimpleNamespace(**found))
    rows = zip(*vars(head.items).values(), strict=True)
    head.items = [SimpleNamespace(**dict(zip(vars(head.items), row, strict=True))) for row in rows]
    older = head.base.files if head.base else []
    check_files(head.files)
    check_files(older)
    most = max(64 << 20, file_bytes << 12) + 4 * sum(size for _, size in older)
    need(sum(size for _, size in head.files) <= most, "too few bytes for its files")
    for item in head.items:
        check_item(item)
    ends = [0] * len(head.files)
    pieces = [(p.file, p.offset, p.length) for item in head.items for p in item.pieces]
    for file, offset, length in sorted(pieces):
        need(file >= 0 and offset == ends[file], "pieces overlap")
        ends[file] += length
    need(ends == [size for _, size in head.files], "bytes are in no piece")
    return head


def check_files(files):
    for path, size in files:
        parts = path.split("/")
        fits = path.isprintable() and "\\" not in path and not {"", ".", ".."} & {*parts}
        fits = fits and len(path.encode()) <= 1024 and all(len(p.encode()) <= 255 for p in parts)
        need(fits and type(size) is int and size >= 0, f"{path!r} can't be written, or has no size")
    paths = sorted(path.split("/") for path, _ in files)
    need(all(one != two[: len(one)] for one, two in pairwise(paths)), "a path occurs twice")


def check_item(item):
    """Check an item's numbers. What only misleads slices of Python's isn't looked for."""
    fits = item.chunk > 0 and 0 < item.width <= 16 and item.chunk % item.width == 0
    fits = fits and len(item.shape) <= 32 and all(axis > 0 for axis in item.shape)
    item.size = size_of(item.pieces)
    need(fits and prod(item.shape) * item.width == item.size, f"{item.name!r} has another size")
    need(size_of(item.since) == item.size * bool(item.relation), f"{item.name!r}: other old bytes")
    count = 0 if item.relation == "same" or item.like != -1 else -(-item.size // item.chunk)
    need(len(item.coded) == len(item.sums) == count, f"{item.name!r} has other chunks")


def decode(block, n, width, codecs, deep=1):
    stream, name = BytesIO(block[1:]), codecs[block[0]]
    need(name in DECODERS and deep <= 3, f"unknown codec {name!r}, or blocks that nest too deep")

    def inner(n, width):
        return decode(take(stream, number(stream)), n, width, codecs, deep + 1)

    found = DECODERS[name](stream, n, width, inner)
    need(len(found) == n and not stream.read(), "bytes are missing, or left")
    return found


# Decoders get a stream, a number of bytes to give, the width of an element, and what decodes a block inside.


def bit(stream, left):
    left += f"{take(stream, 1)[0]:08b}" if not left else ""  # of its last byte, the highest first
    return left.pop()


def huffman(stream, n, width, inner):
    first, more = take(stream, 2)
    halves = [half for byte in take(stream, more // 2 + 1) for half in (byte & 15, byte >> 4)]
    codes, place = {}, 0  # a code is the first bits of its place among 2^11
    for length, byte in sorted((half, (first + k) % 256) for k, half in enumerate(halves) if half):
        codes[f"{place:011b}"[:length]] = byte
        place += 1 << 11 - length  # a ValueError if it is longer
    need(place == 1 << 11 and not any(halves[more + 1 :]), "its codes aren't full")
    streams = [take(stream, size) for size in [number(stream) for _ in range(3)]]
    found, quarter = bytearray(), (n + 3) // 4
    for k, each in enumerate([*streams, stream.read()]):
        part, left = BytesIO(each), []
        for _ in range(min(n, k * quarter), min(n, (k + 1) * quarter)):
            code = ""
            while code not in codes:
                code += bit(part, left)
            found.append(codes[code])
        need("1" not in left and not part.read(), "bits are left")
    return bytes(found)


def rans(stream, n, width, inner):
    start, most, first, run = take(stream, 4)
    p, count, order = 8 + (start & 7), 1 << (start >> 3 & 3), start >> 5
    sizes, left, found = [0] * 256, [], bytearray()
    for byte in ((first + k) % 256 for k in range(run) if (first + k - most) % 256):
        zeros = sum(1 for _ in iter(lambda: bit(stream, left), "1"))
        need(zeros < p, "it has no such table")
        lowest = [bit(stream, left) for _ in range(zeros + order)]
        sizes[byte] = int("".join(["1", *lowest[::-1]]), 2) - (1 << order)
    sizes[most] = (1 << p) - sum(sizes)
    states = [number(stream) for _ in range(count)]
    need(sizes[most] > 0 and "1" not in left and min(states) >= 1 << 16, "it has no such table")
    owners = [(byte, place) for byte in range(256) for place in range(sizes[byte])]
    for i in range(n):
        high, low = divmod(states[i % count], 1 << p)
        byte, place = owners[low]
        x = sizes[byte] * high + place
        states[i % count] = x if x >= 1 << 16 else x << 16 | number(stream, 2)
        found.append(byte)
    need(states == [1 << 16] * count and not stream.read(), "states or words are left")
    return bytes(found)


def planes(stream, n, width, inner):
    parts = b"".join(inner(n // width, 1) for _ in range(width))
    turned = elements(elements(parts, 1).reshape(width, -1).T.tobytes(), width)
    return (turned >> 1 | turned << (8 * width - 1)).tobytes()


def codebook(stream, n, width, inner):
    count = number(stream)
    need(0 < count <= min(1 << 16, n // width), "it has no such values")
    values, each = elements(inner(count * width, width), width), 1 if count <= 256 else 2
    return values[elements(inner(n // width * each, each), each)].tobytes()


def sparse(stream, n, width, inner):
    count, size, found = number(stream), number(stream), np.zeros(n // width, f"<u{width}")
    need(count <= len(found) and count <= size <= (count and count + len(found) // 255), "no gaps")
    if count:
        gaps = elements(inner(size, 1), 1).astype(int)
        ends = np.cumsum(gaps + (gaps < 255))
        need(sum(gaps < 255) == count and ends[-1] <= len(found), "values are left")
        found[ends[gaps < 255] - 1] = elements(inner(count * width, width), width)
    return found.tobytes()


def grid(stream, n, width, inner):
    length = number(stream)
    need(width == 1 and length and n % length == 0, "it has no such rows")
    rows, columns = (elements(inner(count, 1), 1) for count in (n // length, length))
    classes = np.add.outer(rows, columns).ravel()  # modulo 256
    parts = b"".join(inner(count, 1) for count in np.bincount(classes).tolist() if count)
    return elements(parts, 1)[np.argsort(np.argsort(classes, kind="stable"))].tobytes()


DECODERS = {each.__name__: each for each in (huffman, rans, planes, codebook, sparse, grid)}
DECODERS |= {"raw": lambda part, *_: part.read(), "zstd": lambda part, n, *_: frame(part.read(), n)}


def related(found, item, older):
    old = b"".join(older[p.file][p.offset :][: p.length] for p in item.since)
    if item.relation in ("", "same"):
        return old if item.relation else found
    d, o = (elements(data, 1 if item.relation == "xor" else item.width) for data in (found, old))
    new = {"xor": o ^ d, "minus": o + d, "zigzag": o + (d >> 1 ^ -(d & 1))}
    return new[item.relation].tobytes()


def older_files(base, folder):
    need(folder, "it is a difference: give the older bundle, too")
    known = sha256((folder / "manifest.json").read_bytes()).hexdigest()
    need(known == base.manifest, "it is the difference to another bundle")
    for path, size in base.files:
        need((folder / path).stat().st_size == size, "the older bundle's files have other sizes")
    return [(folder / path).read_bytes() for path, _ in base.files]


def unpack(data, folder=None):
    """Return the files of a packed bundle by path; those of the older one are in a folder."""
    head = read_head(stream := BytesIO(data), len(data))
    older = older_files(head.base, folder) if head.base else []
    files, done = [bytearray(size) for _, size in head.files], {-1: b""}
    for place, item in enumerate(head.items):
        found = done[item.like]
        for length, crc in zip(item.coded, item.sums, strict=True):
            chunk, n = take(stream, length), min(item.chunk, item.size - len(found))
            need(zlib.crc32(chunk) == crc, f"{item.name!r} is damaged")
            found += decode(chunk, n, item.width, head.codecs)
        found = related(found, item, older)
        need(len(found) == item.size, f"{item.name!r} has another size")
        done[place], rest = found, BytesIO(found)
        for p in item.pieces:
            files[p.file][p.offset : p.offset + p.length] = rest.read(p.length)
    need(stream.read() == sha256(data[:-32]).digest(), "changed after it was packed")
    return {path: bytes(file) for (path, _), file in zip(head.files, files, strict=True)}


def check_manifest(files):
    record = json.loads(files["manifest.json"])
    stated, text = record.pop("digest"), json.dumps(record, sort_keys=True, separators=(",", ":"))
    need(sha256(text.encode()).hexdigest() == stated, "the manifest was changed")
    others = files.keys() - {"manifest.json", "manifest.json.minisig"}
    need(others == record["files"].keys(), "it has other files than it lists")
    for path in others:
        need(sha256(files[path]).hexdigest() == record["files"][path][0], f"{path} was changed")


def main(packed, folder, *base):
    files = unpack(Path(packed).read_bytes(), *map(Path, base))
    check_manifest(files)
    for path, data in files.items():
        Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, path).write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A second reader of packed bundles, written from docs/reference/packed-format.md; it uses nothing of hasten.

    python examples/read_packed.py model.hastenz FOLDER [OLDER_FOLDER]

It shows what the format is, byte by byte, and is slow: its decoders are plain Python.
"""

import hashlib
import json
import sys
import zlib
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def need(condition, what):
    if not condition:
        raise ValueError(what)


def number(data, at, size=4):
    need(len(data) >= at + size, "it ends early")
    return int.from_bytes(data[at : at + size], "little")


def frame(data, most):
    opened = zstd.ZstdDecompressor()
    found = opened.decompress(data, max_length=most)
    found += b"" if opened.eof else opened.decompress(b"", max_length=1)
    need(opened.eof and not opened.unused_data and len(found) <= most, "no frame of that size")
    return found


def size_of(pieces):
    return sum(piece["length"] for piece in pieces)


def read_head(data):
    need(data[:8] == b"\x89HASTENZ" and number(data, 8) == 1, "no packed bundle of version 1")
    length = number(data, 12)
    packed = data[48 : 48 + length]
    need(0 < length == len(packed) <= 16 << 20, "cut off within its head")
    need(hashlib.sha256(packed).digest() == data[16:48], "its head is damaged")
    head = json.loads(frame(packed, 32 << 20))
    columns = head["items"]
    rows = zip(*columns.values(), strict=True)
    head["items"] = [dict(zip(columns, row, strict=True)) for row in rows]
    check(head, len(data), 48 + length)
    return head, 48 + length


def check(head, file_bytes, place):
    """Check what the head states. What only misleads slices of Python's isn't looked for."""
    base = (head["base"] or {"files": []})["files"]
    for path, size in head["files"] + base:
        pure = PurePosixPath(path)
        inside = path.isprintable() and "\\" not in path and pure.parts and ".." not in pure.parts
        need(inside and str(pure) == path and not pure.is_absolute(), f"{path!r} leads out")
        short = len(path.encode()) <= 1024 and all(len(part.encode()) <= 255 for part in pure.parts)
        need(short and type(size) is int and size >= 0, f"{path!r} has no size, or is too long")
    for files in (head["files"], base):
        paths = [PurePosixPath(path) for path, _ in files]
        folders = {folder for path in paths for folder in path.parents}
        need(len({*paths}) == len(paths) and folders.isdisjoint(paths), "a path occurs twice")
    most = max(64 << 20, file_bytes << 12) + 4 * sum(size for _, size in base)
    need(sum(size for _, size in head["files"]) <= most, "too few bytes for its files")
    ends = [0] * len(head["files"])
    pieces = [(p["file"], p["offset"], p["length"]) for i in head["items"] for p in i["pieces"]]
    for file, offset, length in sorted(pieces):
        need(0 <= file < len(ends) and length > 0 and offset == ends[file], "pieces overlap")
        ends[file] += length
    need(ends == [size for _, size in head["files"]], "bytes are in no piece")
    for item in head["items"]:
        size, width, chunk = size_of(item["pieces"]), item["width"], item["chunk"]
        need(base or not item["relation"], f"{item['name']!r} is a difference to nothing")
        fits = all(p["offset"] >= 0 < p["length"] for p in item["since"])
        fits = fits and size_of(item["since"]) == (size if item["relation"] else 0)
        need(fits, f"{item['name']!r} has other older bytes")
        fits = 0 < width <= 16 and chunk > 0 and chunk % width == 0
        fits = fits and len(item["shape"]) <= 32 and all(axis > 0 for axis in item["shape"])
        need(fits and prod(item["shape"]) * width == size, f"{item['name']!r} has no such size")
        count = 0 if item["relation"] == "same" or item["like"] != -1 else -(-size // chunk)
        need(len(item["coded"]) == len(item["sums"]) == count, f"{item['name']!r}: other chunks")
        place += sum(item["coded"])
    need(place + 32 == file_bytes, "another size than was written")


# Decoders get their bytes, how many to give, the width of an element, and what decodes blocks inside.


def decode(block, n, width, names, deep=1):
    need(block and block[0] < len(names) and deep <= 3, "no codec, or nested too deep")
    need(names[block[0]] in DECODERS, f"unknown codec {names[block[0]]!r}")
    found = DECODERS[names[block[0]]](
        block[1:], n, width, lambda *asked: decode(*asked, names, deep + 1)
    )
    need(len(found) == n, "another number of bytes")
    return found


def split(data, count):
    """Return blocks that stand behind their lengths, after which nothing follows."""
    found = []
    for _ in range(count):
        end = 4 + number(data, 0)
        need(end <= len(data), "it ends within a block")
        found.append(data[4:end])
        data = data[end:]
    need(not data, "bytes are left")
    return found


def bits_of(data):
    """Return bits as text, those of each byte from the lowest up."""
    return "".join(f"{byte:08b}"[::-1] for byte in data)


def huffman(data, n, width, inner):
    first, run = data[0], data[1] + 1
    at = 2 + (run + 1) // 2
    halves = [half for byte in data[2:at] for half in (byte & 15, byte >> 4)]
    lengths = {(first + k) % 256: halves[k] for k in range(run) if halves[k]}
    full = max(lengths.values()) <= 11 and sum(2.0**-k for k in lengths.values()) == 1
    need(full and not any(halves[run:]), "its codes aren't full")
    codes, code, before = {}, 0, 0
    for length, byte in sorted((length, byte) for byte, length in lengths.items()):
        code <<= length - before
        codes[f"{code:0{length}b}"] = byte
        code, before = code + 1, length
    sizes, data = [number(data, at + 4 * k) for k in range(3)], data[at + 12 :]
    need(sum(sizes) <= len(data), "its streams are too long")
    found, quarter = bytearray(), (n + 3) // 4
    for k, size in enumerate([*sizes, len(data) - sum(sizes)]):
        bits, place, data = bits_of(data[:size]), 0, data[size:]
        for _ in range(min(n, k * quarter), min(n, (k + 1) * quarter)):
            ends = range(place + 1, min(place + 11, len(bits)) + 1)
            end = next((end for end in ends if bits[place:end] in codes), None)
            need(end, "a stream ends early")
            found.append(codes[bits[place:end]])
            place = end
        need(len(bits) - place < 8 and "1" not in bits[place:], "bits are left")
    return bytes(found)


def rans(data, n, width, inner):
    p, count, order = 8 + (data[0] & 7), 1 << (data[0] >> 3 & 3), data[0] >> 5
    most, first, run = data[1:4]
    bits, at, sizes = bits_of(data[4:1200]), 0, [0] * 256
    for byte in ((first + k) % 256 for k in range(run)):
        if byte != most:
            begin = bits.find("1", at) + 1
            end = begin + begin - 1 - at + order
            need(0 < begin <= at + p and end <= len(bits), "it has no such table")
            sizes[byte] = int("1" + bits[begin:end][::-1], 2) - (1 << order)
            at = end
    sizes[most] = (1 << p) - sum(sizes)
    need(sizes[most] > 0 and "1" not in bits[at : at + -at % 8], "it has no such table")
    owners = [byte for byte in range(256) for _ in range(sizes[byte])]
    starts = [sum(sizes[:byte]) for byte in range(256)]
    rest, found = data[4 + (at + 7) // 8 :], bytearray()
    states = [number(rest, 4 * k) for k in range(count)]
    words = iter([number(rest, k, 2) for k in range(4 * count, len(rest), 2)])
    need(min(states) >= 1 << 16, "it has no such states")
    for i in range(n):
        x = states[i % count]
        t = x % (1 << p)
        byte = owners[t]
        x = sizes[byte] * (x >> p) + t - starts[byte]
        states[i % count] = x if x >= 1 << 16 else x << 16 | next(words)
        found.append(byte)
    need(states == [1 << 16] * count and next(words, None) is None, "states or words are left")
    return bytes(found)


def planes(data, n, width, inner):
    parts = b"".join(inner(part, n // width, 1) for part in split(data, width))
    turned = np.frombuffer(parts, "u1").reshape(width, -1).T.tobytes()
    words = np.frombuffer(turned, f"<u{width}")
    return (words >> 1 | words << (8 * width - 1)).tobytes()


def codebook(data, n, width, inner):
    count, (table, places) = number(data, 0), split(data[4:], 2)
    need(0 < count <= min(1 << 16, n // width), "it has no such values")
    each = 1 if count <= 256 else 2
    values = np.frombuffer(inner(table, count * width, width), f"<u{width}")
    return values[np.frombuffer(inner(places, n // width * each, each), f"<u{each}")].tobytes()


def sparse(data, n, width, inner):
    count, size = number(data, 0), number(data, 4)
    need(count <= n // width and count <= size <= count + n // width // 255, "no such gaps")
    gaps, values = split(data[8:], 2) if count else (split(data[8:], 0), [])
    gaps = inner(gaps, size, 1) if count else []
    values = iter(np.frombuffer(inner(values, count * width, width), f"<u{width}") if count else [])
    found, place = np.zeros(n // width, f"<u{width}"), 0
    for gap in gaps:
        place += gap
        if gap < 255:
            found[place] = next(values)
            place += 1
    need(place <= len(found) and next(values, None) is None, "values are left")
    return found.tobytes()


DECODERS = {
    "raw": lambda data, n, width, inner: data,
    "zstd": lambda data, n, width, inner: frame(data, n),
    **{f.__name__: f for f in (huffman, rans, planes, codebook, sparse)},
}


def related(data, old, item):
    """Return new bytes of a difference and the older ones."""
    if item["relation"] == "same":
        return old
    kind = "u1" if item["relation"] == "xor" else f"<u{item['width']}"
    d, o = np.frombuffer(data, kind), np.frombuffer(old, kind)
    ways = {"xor": lambda: o ^ d, "minus": lambda: o + d, "zigzag": lambda: o + (d >> 1 ^ -(d & 1))}
    return ways[item["relation"]]().tobytes()


def older(item, files):
    pieces = [(files[p["file"]], p["offset"], p["length"]) for p in item["since"]]
    return b"".join(file[offset : offset + length] for file, offset, length in pieces)


def unpack(data, folder=None):
    """Return the files of a packed bundle by path; those of the older one are in a folder."""
    head, place = read_head(data)
    need(hashlib.sha256(data[:-32]).digest() == data[-32:], "changed after it was packed")
    if base := head["base"]:
        need(folder, "it is a difference: give the older bundle, too")
        known = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        need(known == base["manifest"], "it is the difference to another bundle")
        before = [(folder / path).read_bytes() for path, _ in base["files"]]
        fits = [len(file) for file in before] == [size for _, size in base["files"]]
        need(fits, "the older bundle's files have other sizes")
    files, done = [bytearray(size) for _, size in head["files"]], []
    for item in head["items"]:
        size, found = size_of(item["pieces"]), b""
        for length, crc in zip(item["coded"], item["sums"], strict=True):
            chunk, n = data[place : place + length], min(item["chunk"], size - len(found))
            need(zlib.crc32(chunk) == crc, f"{item['name']!r} is damaged")
            found += decode(chunk, n, item["width"], head["codecs"])
            place += length
        if item["like"] != -1:
            need(0 <= item["like"] < len(done), f"{item['name']!r} is like nothing")
            found = done[item["like"]]
        if item["relation"]:
            found = related(found, older(item, before), item)
        need(len(found) == size, f"{item['name']!r} has another size")
        done.append(found)
        for piece in item["pieces"]:
            goal = slice(piece["offset"], piece["offset"] + piece["length"])
            files[piece["file"]][goal], found = found[: piece["length"]], found[piece["length"] :]
    return {path: bytes(file) for (path, _), file in zip(head["files"], files, strict=True)}


def check_manifest(files):
    manifest = json.loads(files["manifest.json"])
    stated = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    need(hashlib.sha256(text).hexdigest() == stated, "the manifest was changed")
    own = {"manifest.json", "manifest.json.minisig"}
    need({*manifest["files"]} == {*files} - own, "it has other files than it lists")
    for path, (sha256, _) in manifest["files"].items():
        need(hashlib.sha256(files[path]).hexdigest() == sha256, f"{path} was changed")


def main(packed, folder, *base):
    files = unpack(Path(packed).read_bytes(), *map(Path, base))
    check_manifest(files)
    for path, data in files.items():
        goal = Path(folder, path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Feed damaged streams to the decoders in C of packed bundles.

    python -m fuzz.sanitized [--runs 1000000] [--seed 1]

It compiles `native.c` by gcc or clang with the address and undefined-behaviour sanitizers, and gives
each of its decoders so many streams: those that the coders made, with bits flipped, bytes set, parts cut,
doubled or put into each other, and random ones. Input and output lie in memory of exactly their size. A
stream that a decoder reads or writes beyond, or that computes what C doesn't define, ends the run with a
report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from hasten.bundle.packing.codecs import native, rans, sparse
from hasten.bundle.packing.codecs.huffman import Huffman
from hasten.bundle.packing.codecs.tables import counts_of
from hasten.testing.codec_tests import chunks

_HUFFMAN, _RANS, _SPREAD, _JOIN = range(4)
_NAMES = ("huffman", "rans", "spread", "join")
_DRIVER = r"""
#include "native.c"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct seed { u32 kind, n, size; u8 *bytes; };
static u64 state;
static u32 draw(u32 below) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (u32)((state >> 16) % below);
}

/* Damage a stream in place; it has room for twice its size. */
static u32 damage(u8 *b, u32 size, const struct seed *other) {
  u32 rounds = 1 + draw(4);
  for (u32 r = 0; r < rounds; r++) {
    u32 early = size && draw(2) ? draw(size < 48 ? size : 48) : size ? draw(size) : 0;
    switch (draw(8)) {
    case 0: if (size) b[early] ^= 1u << draw(8); break;
    case 1: if (size) b[early] = (u8)draw(256); break;
    case 2: if (size) b[early] = draw(2) ? 255 : 0; break;
    case 3: size = size ? draw(size + 1) : 0; break;
    case 4: { /* bytes of another stream */
      u32 from = draw(other->size), most = other->size - from, count = 1 + draw(most);
      if (early + count > size) count = size - early;
      memcpy(b + early, other->bytes + from, count);
    } break;
    case 5: if (size > 1) { u32 count = draw(size - early) ; memmove(b + early, b + early + count, size - early - count); size -= count; } break;
    case 6: if (size >= 4) { u32 at = draw(size - 3), v = draw(3) ? draw(1u << draw(31)) : 0xffffffffu; memcpy(b + at, &v, 4); } break;
    default: for (u32 k = draw(16); k && early < size; k--) b[early++] = (u8)draw(256);
    }
  }
  return size;
}

int main(int count, char **words) {
  FILE *file = fopen(words[1], "rb");
  u32 total, head[3];
  long runs = atol(words[2]);
  state = 88172645463325252ull + (u64)atol(words[3]) * 1000003;
  if (count < 4 || !file || fread(&total, 4, 1, file) != 1) return 2;
  struct seed *seeds = malloc(total * sizeof *seeds);
  for (u32 k = 0; k < total; k++) {
    if (fread(head, 4, 3, file) != 3) return 2;
    seeds[k] = (struct seed){head[0], head[1], head[2], malloc(head[2] + 1)};
    if (fread(seeds[k].bytes, 1, head[2], file) != head[2]) return 2;
  }
  long room = hasten_rans_room(), fine[4] = {0}, refused[4] = {0};
  u32 *tables = malloc(room);
  for (long done = 0; fine[0] + refused[0] < runs || fine[1] + refused[1] < runs || fine[2] + refused[2] < runs; done++) {
    const struct seed *seed = seeds + draw(total), *other = seeds + draw(total);
    if (fine[seed->kind] + refused[seed->kind] >= runs) continue;
    u8 *scratch = malloc(2 * seed->size + 64);
    memcpy(scratch, seed->bytes, seed->size);
    u32 size = draw(50) ? damage(scratch, seed->size, other) : seed->size;
    if (!draw(40)) for (size = draw(64), head[0] = 0; head[0] < size; head[0]++) scratch[head[0]] = (u8)draw(256);
    u32 n = draw(10) ? seed->n : 1 + draw(2 * seed->n + 3);
    u8 *in = malloc(size ? size : 1), *out;
    memcpy(in, scratch, size);
    long said;
    if (seed->kind == 0) {
      out = malloc(n);
      said = hasten_huffman_decode(in, size, out, n);
    } else if (seed->kind == 1) {
      out = malloc(n);
      said = hasten_rans_decode(in, size, out, n, tables, room);
    } else {
      u32 width = 1u << draw(4), values = 0;
      for (u32 k = 0; k < size; k++) values += in[k] < 255;
      if (!draw(4)) values = draw(values + 3);
      u8 *held = malloc((u64)values * width + 1);
      memset(held, 7, (u64)values * width);
      out = calloc(n, width);
      said = hasten_spread(in, size, held, values, width, out, n);
      free(held);
    }
    if (said < 0 || said > RANGE) abort();
    (said ? refused : fine)[seed->kind]++;
    free(in), free(out), free(scratch);
  }
  for (u32 n = 1; n < 400; n++)
    for (u32 width = 1; width < 10; width++) {
      u8 *planes = malloc(n * width), *out = malloc(n * width);
      memset(planes, 5, n * width);
      (hasten_join(planes, n, width, out) ? refused : fine)[3]++;
      free(planes), free(out);
    }
  for (int k = 0; k < 4; k++) printf("%ld %ld\n", fine[k], refused[k]);
  return 0;
}
"""


def seeds() -> bytes:
    """Return streams that the coders made: each with its decoder, size of what it decodes to, and size."""
    found = []
    for _, data, _ in chunks():
        if len(data) > 3000:
            continue
        if block := Huffman().encode(data, 1, lambda *_: b""):
            found.append((_HUFFMAN, len(data), block))
        for precision, lanes in ((8, 1), (11, 8), (12, 4), (14, 2), (15, 8)):
            freq = rans.frequencies(counts_of(data), precision)
            block = rans.table(freq, precision, lanes) + rans.encoded(data, freq, precision, lanes)
            found.append((_RANS, len(data), block))
        places = np.flatnonzero(data > np.median(data))
        if len(places):
            found.append((_SPREAD, len(data), sparse.gaps_of(places).tobytes()))
    parts = [struct.pack("<III", kind, n, len(block)) + block for kind, n, block in found]
    return struct.pack("<I", len(found)) + b"".join(parts)


def run_compiled(runs: int, seed: int) -> None:
    """Feed each decoder in C so many streams, and print how many it took and refused."""
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("there is no clang and no gcc here")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "native.c").write_text(native.coders.source())
        Path(folder, "driver.c").write_text(_DRIVER)
        Path(folder, "seeds").write_bytes(seeds())
        flags = [
            "-O1",
            "-g",
            "-march=native",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
        subprocess.run([compiler, *flags, "-o", "driver", "driver.c"], cwd=folder, check=True)
        command = ["./driver", "seeds", str(runs), str(seed)]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env=environment
        )
    if done.returncode:
        raise SystemExit(f"a decoder failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    for name, line in zip(_NAMES, done.stdout.splitlines(), strict=True):
        fine, refused = map(int, line.split())
        print(f"{name:8} {fine + refused:10,} streams, {fine:10,} decoded, {refused:10,} refused")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.nice(10)
    run_compiled(given.runs, given.seed)


if __name__ == "__main__":
    main()

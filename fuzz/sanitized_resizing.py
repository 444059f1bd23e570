"""Resize pictures of many sizes by the code in C under sanitizers.

    python -m fuzz.sanitized_resizing [--runs 2000] [--seed 1]

It compiles `resample.c` by gcc or clang with the address and undefined-behaviour sanitizers, and resizes
pictures of random sizes, whole and in parts, by the windows and weights that hasten computes, with vectors of
AVX-512 where the processor has it, and of AVX2. Each picture, table and result lies in memory of exactly its
size, so an access beyond one ends the run with a report.
"""

from __future__ import annotations

import argparse
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from hasten.inputs.pipeline.opencv import pairs
from hasten.inputs.pipeline.resample import FILTERS, Axis, axis, resampler

_LONGEST = 200
_LEAST = 6
"""Least width in pixels that the code takes."""
_DRIVER = r"""
#include "resample.c"
#include <stdio.h>
#include <stdlib.h>

struct axis { int outputs, taps, begin, end, *first, *counts, *offsets, *weights; };
static void *numbers(FILE *file, long count) {
  int *found = malloc(count * 4);
  if (fread(found, 4, count, file) != (unsigned long)count) exit(2);
  return found;
}
static struct axis read_axis(FILE *file) {
  struct axis a;
  if (fread(&a.outputs, 4, 1, file) != 1 || fread(&a.taps, 4, 1, file) != 1) exit(2);
  a.first = numbers(file, a.outputs), a.counts = numbers(file, a.outputs);
  a.weights = numbers(file, (long)a.outputs * a.taps);
  a.offsets = malloc(a.outputs * 4), a.begin = a.first[0], a.end = 0;
  for (int k = 0; k < a.outputs; k++) {
    if (a.first[k] < a.begin) a.begin = a.first[k];
    if (a.first[k] + a.counts[k] > a.end) a.end = a.first[k] + a.counts[k];
  }
  for (int k = 0; k < a.outputs; k++) a.offsets[k] = a.first[k] - a.begin;
  return a;
}
static u8 *noise(long size) {
  u8 *found = malloc(size);
  for (long k = 0; k < size; k++) found[k] = (u8)(k * 2654435761u >> 13);
  return found;
}

/* As OpenCV: the picture ends behind the last pixel that any output takes. */
static void linear(FILE *file) {
  int sizes[4];
  if (fread(sizes, 4, 4, file) != 4) exit(2);
  long high = sizes[0], wide = sizes[1], channels = sizes[2], stride = channels * sizes[3];
  i32 *down = numbers(file, 4 * high), *columns = numbers(file, 4 * wide);
  long rows = 0, row = 0;
  for (long k = 0; k < high; k++) for (int n = 0; n < 2; n++) if (down[4 * k + n] >= rows) rows = down[4 * k + n] + 1;
  for (long k = 0; k < wide; k++) for (int n = 0; n < 2; n++) if (columns[4 * k + n] + channels > row) row = columns[4 * k + n] + channels;
  u8 *picture = noise((rows - 1) * stride + row), *out = malloc(high * wide * channels);
  i32 *room = malloc(8 * wide * channels);
  hasten_linear(picture, stride, down, high, columns, wide, channels, out, room);
  free(picture), free(out), free(room), free(down), free(columns);
}

int main(int count, char **words) {
  FILE *file = fopen(words[1], "rb");
  int sides[2], done = 0;
  if (count < 2 || !file) return 2;
  while (fread(sides, 4, 2, file) == 2) {
    long height = sides[0], width = sides[1];
    struct axis down = read_axis(file), across = read_axis(file);
    long size = (long)across.outputs * across.taps;
    i32 *fourfold = malloc(16 * size);
    for (long k = 0; k < 4 * size; k++) fourfold[k] = across.weights[k / 4];
    /* The last row ends behind the last pixel that any output takes. */
    long columns = across.end - across.begin, left = 3 * across.begin;
    u8 *picture = noise(3 * height * width), *part = noise(3 * ((height - 1) * width + across.end));
    u8 *room = malloc(4 * (columns + across.taps)), *lower = malloc(3 * ((down.outputs - 1) * width + across.end));
    u8 *narrow = malloc(3 * height * across.outputs), *flat = malloc(3 * width * down.outputs);
    u8 *out = malloc(3l * down.outputs * across.outputs);
    hasten_across(part + left, 3 * width, height, columns, across.offsets, fourfold, across.taps, across.outputs, narrow, room);
    hasten_down(narrow, 3l * across.outputs, 3l * across.outputs, down.first, down.counts, down.weights, down.taps, down.outputs, out);
    hasten_down(picture, 3 * width, 3 * width, down.first, down.counts, down.weights, down.taps, down.outputs, flat);
    for (long k = 0; k < 3 * ((down.outputs - 1) * width + across.end); k++) lower[k] = flat[k];
    hasten_across(lower + left, 3 * width, down.outputs, columns, across.offsets, fourfold, across.taps, across.outputs, out, room);
    free(picture), free(part), free(lower), free(room), free(down.offsets), free(across.offsets), free(narrow), free(flat), free(out), free(fourfold);
    free(down.first), free(down.counts), free(down.weights);
    free(across.first), free(across.counts), free(across.weights);
    linear(file);
    done++;
  }
  printf("%d\n", done);
  return 0;
}
"""


def cases(runs: int, seed: int) -> bytes:
    """Return sizes of pictures, each with the windows and weights of its rows and columns."""
    rng, found = random.Random(seed), b""
    for _ in range(runs):
        height, width = rng.randrange(1, _LONGEST), rng.randrange(_LEAST, _LONGEST)
        found += struct.pack("<ii", height, width)
        for old, least in ((height, 1), (width, _LEAST)):
            new = rng.randrange(least, _LONGEST)
            start = rng.randrange(new - least + 1)
            found += _packed(
                axis(old, new, rng.choice([*FILTERS]), start, rng.randrange(start + least, new + 1))
            )
        found += _linear(rng, height, width)
    return found


def _linear(rng: random.Random, height: int, width: int) -> bytes:
    """Return what OpenCV's rule takes for a picture of a size, or a part of the result."""
    channels, tables, sizes = rng.choice((1, 3)), b"", []
    for old, size, columns in ((height, 1, False), (width, channels, True)):
        new = rng.randrange(1, _LONGEST)
        start = rng.randrange(new)
        part = pairs(old, new, columns=columns).part(start, rng.randrange(start + 1, new + 1))
        tables += part.table(0 if columns else part.begin, size).tobytes()
        sizes.append(len(part.first))
    return struct.pack("<4i", *sizes, channels, width) + tables


def _packed(one: Axis) -> bytes:
    head = struct.pack("<ii", *one.weights.shape)
    return head + one.first.tobytes() + one.counts.tobytes() + one.weights.tobytes()


def run(runs: int, seed: int) -> int:
    """Resize so many pictures, and return their number.

    Raises:
        SystemExit: there is no compiler, or a sanitizer reports an error.
    """
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("there is no clang and no gcc here")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "resample.c").write_text(resampler.source())
        Path(folder, "driver.c").write_text(_DRIVER)
        Path(folder, "cases").write_bytes(cases(runs, seed))
        flags = ["-O1", "-g", "-w", "-march=native", "-fsanitize=address,undefined", "-DSANITIZED"]
        for vectors in ((), ("-mno-avx512f",)):
            command = [compiler, *flags, *vectors, "-fno-sanitize-recover=all", "-o", "driver"]
            subprocess.run([*command, "driver.c"], cwd=folder, check=True)
            done = subprocess.run(
                ["./driver", "cases"], cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = f"{done.stdout}{done.stderr}"
                raise SystemExit(f"resizing failed ({done.returncode}):\n{said}")
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"{run(given.runs, given.seed):,} pictures resized both ways")


if __name__ == "__main__":
    main()

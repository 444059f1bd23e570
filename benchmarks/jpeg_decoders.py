"""Decoders of JPEG files: what a picture of 1280 x 720 takes, and how far its pixels are from Pillow's.

    python benchmarks/jpeg_decoders.py [--pictures 100] [--turns 5]

Each picture is decoded by every decoder that is installed, in random order, turn after turn, on one thread
each. Pillow, simplejpeg and torchvision come with hasten's extras; PyTurboJPEG (with the system's libturbojpeg)
and kornia-rs are compared where they are installed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hasten.cli.demos.photos import RandomCrops, photo_files
from hasten.cli.screen import aligned
from hasten.core.tensors import Array
from hasten.measure.intervals import Ratio, Rounds, paired_ratio

WIDTH, HEIGHT = 1280, 720
HASTENS = "simplejpeg, as hasten calls it"
Decoder = Callable[[bytes], Any]


def pictures(folder: Path, count: int) -> None:
    """Write JPEG files of random crops of the packages' photographs."""
    crops = RandomCrops(photo_files(), count)
    folder.mkdir()
    for index in range(count):
        photo, box, mirrored = crops._draw(index)
        image = crops._photos[photo].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(folder / f"{index:05}.jpg", quality=90)


def by_pillow(data: bytes) -> Array:
    """Decode as Pillow does, to an array."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decoders() -> tuple[dict[str, Decoder], list[str]]:
    """Return the decoders that are installed, to RGB; and a line on each of the others."""
    found: dict[str, Decoder] = {"Pillow": by_pillow}
    missing = []
    for name, made in (
        ("simplejpeg", _simplejpeg),
        ("torchvision", _torchvision),
        ("PyTurboJPEG", _turbojpeg),
        ("kornia-rs", _kornia),
    ):
        try:
            found |= made()
        except (
            ImportError,
            RuntimeError,
        ) as error:  # without the library, PyTurboJPEG raises the latter
            why = str(error).splitlines()[0]
            missing.append(f"{name} wasn't timed: {why}")
    return found, missing


def _simplejpeg() -> dict[str, Decoder]:
    import simplejpeg

    def fast(data: bytes) -> Any:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)

    return {
        HASTENS: lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        "simplejpeg, fast transform and upsampling": fast,
    }


def _torchvision() -> dict[str, Decoder]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decoded(data: bytes) -> Any:
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(sent, ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return {"torchvision": decoded}


def _turbojpeg() -> dict[str, Decoder]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    opened = TurboJPEG()
    return {"PyTurboJPEG": lambda data: opened.decode(data, TJPF_RGB)}


def _kornia() -> dict[str, Decoder]:
    from kornia_rs import io as kornia

    return {
        "kornia-rs, in Rust": kornia.decode_image_jpeg,
        "kornia-rs, libjpeg-turbo": lambda data: kornia.decode_image_jpegturbo(data, "rgb"),
    }


def taken(ways: Mapping[str, Callable[[int], Any]], pictures: int, turns: int) -> dict[str, Rounds]:
    """Time ways in random order, picture by picture; the first turn warms up.

    Args:
        ways: Name -> function of a picture's number.
        pictures: Number of pictures.
        turns: Number of times that each picture is given to each way.

    Returns:
        Name -> number of the picture -> latencies, in nanoseconds.
    """
    rng = np.random.default_rng(0)
    spans: dict[str, dict[int, list[int]]] = {
        name: {picture: [] for picture in range(pictures)} for name in ways
    }
    for turn in range(turns + 1):
        for picture in rng.permutation(pictures).tolist():
            for name in rng.permutation(list(ways)).tolist():
                begun_ns = time.perf_counter_ns()
                ways[name](picture)
                if turn:
                    spans[name][picture].append(time.perf_counter_ns() - begun_ns)
    return {name: {n: tuple(each) for n, each in one.items()} for name, one in spans.items()}


def median_ms(rounds: Rounds) -> float:
    """Return the median over all pictures and turns, in milliseconds."""
    return float(np.median([span for each in rounds.values() for span in each])) / 1e6


def in_words(ratio: Ratio) -> str:
    """Return a ratio with its interval."""
    return f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def fastest(spans: Mapping[str, Rounds], names: Iterable[str]) -> str:
    """Return the name of the decoder with the least median."""
    return min(names, key=lambda name: median_ms(spans[name]))


def equal(decoder: Decoder, files: Iterable[bytes]) -> bool:
    """Whether a decoder gives Pillow's pixels for all files."""
    return all(np.array_equal(decoder(data), by_pillow(data)) for data in files)


def compared(
    spans: Mapping[str, Rounds], known: Mapping[str, Decoder], files: Sequence[bytes]
) -> str:
    """Return the table of decoders, from the fastest."""
    best = fastest(spans, known)
    right = [by_pillow(data).astype(int) for data in files]
    lines = [("decoder", "p50 ms", "times the fastest", "largest difference from Pillow")]
    for name in sorted(known, key=lambda name: median_ms(spans[name])):
        away = max(
            int(np.abs(np.asarray(known[name](data)) - pixels).max())
            for data, pixels in zip(files, right, strict=True)
        )
        times = "1" if name == best else in_words(paired_ratio(spans[name], spans[best]))
        lines.append((name, f"{median_ms(spans[name]):.2f}", times, str(away)))
    return aligned(lines)


def main() -> None:
    """Parse the command line, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pictures(Path(temporary) / "photos", options.pictures)
        files = [path.read_bytes() for path in sorted(Path(temporary).glob("photos/*.jpg"))]
    known, missing = decoders()
    ways = {name: lambda n, way=way: way(files[n]) for name, way in known.items()}
    spans = taken(ways, len(files), options.turns)
    print(compared(spans, known, files[:20]))
    for line in missing:
        print(line)


if __name__ == "__main__":
    main()

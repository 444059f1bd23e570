"""What moving a pipeline's steps into the graph gains: forms of the normalization, ArgMax, and Resize.

    python benchmarks/folding.py [--rounds 20] [--calls 20] [--races forms,normalize,argmax,resize]

The ways of each race take turns, in random order in each round, on one thread. The forms of the normalization have
only one convolution after them, because whole networks differ from themselves by more than the forms differ. Times are
10th percentiles of a round, and the figure is their median over the rounds, with a bootstrap's 95% interval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jpeg_decoders import in_words
from onnx import helper, numpy_helper
from onnx.parser import parse_model
from PIL import Image

from hasten.cli.demos.photos import photo_files
from hasten.cli.tables import aligned
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.models.onnx import load
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import Normalize, ToLayout
from hasten.measure.intervals import Rounds, paired_ratio
from hasten.testing.models import HEADER

NORMALIZE = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE, CLASSES = 224, 21
SIDES = (224, 520)
"""Sides of the maps of scores in which the likeliest class is looked for."""
PHOTOS = 8
FILTERS = {"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}
"""Modes of ONNX's Resize, and the filters of Pillow that they stand for."""
LOW = 10
"""Percentile of a round's times that is compared."""
ENGINES: dict[str, Engine] = {
    "ONNX Runtime": OnnxRuntime(threads=1),
    "OpenVINO": OpenVino(threads=1),
    "LiteRT": LiteRt(threads=1),
}
NOTHING = "nothing: floats go in"
FORMS = {
    NOTHING: "",
    "Transpose, Cast, Mul, Sub": """
        planes = Transpose <perm = [0, 3, 1, 2]> (x)
        floats = Cast <to = 1> (planes)
        scaled = Mul(floats, factor)
        given = Sub(scaled, shift)""",
    "Cast, Mul, Sub, Transpose": """
        floats = Cast <to = 1> (x)
        scaled = Mul(floats, last_factor)
        shifted = Sub(scaled, last_shift)
        given = Transpose <perm = [0, 3, 1, 2]> (shifted)""",
    "Transpose, Cast, 1 x 1 convolution": """
        planes = Transpose <perm = [0, 3, 1, 2]> (x)
        floats = Cast <to = 1> (planes)
        given = Conv <kernel_shape = [1, 1]> (floats, diagonal, below)""",
    "Transpose, Cast, Sub; the scale in the weights": """
        planes = Transpose <perm = [0, 3, 1, 2]> (x)
        floats = Cast <to = 1> (planes)
        given = Sub(floats, unscaled_shift)""",
}
Way = Callable[[], Any]


def raced(ways: Mapping[str, Way], rounds: int, calls: int) -> dict[str, Rounds]:
    """Time ways in random order, round after round; the first round warms up.

    Returns:
        Name -> round -> latencies, in nanoseconds.
    """
    rng = np.random.default_rng(0)
    spans: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in ways}
    for number in range(rounds + 1):
        for name in rng.permutation(list(ways)).tolist():
            found = []
            for _ in range(calls):
                begun_ns = time.perf_counter_ns()
                ways[name]()
                found.append(time.perf_counter_ns() - begun_ns)
            if number:
                spans[name][number] = tuple(found)
    return {name: dict(each) for name, each in spans.items()}


def lows(rounds: Rounds) -> Array:
    """Return the low percentile of each round, in microseconds."""
    return np.array([np.percentile(each, LOW) for each in rounds.values()]) / 1e3


def low(rounds: Rounds) -> dict[int, tuple[int, ...]]:
    """Return each round's low percentile alone, for a ratio of such figures."""
    return {number: (round(np.percentile(each, LOW)),) for number, each in rounds.items()}


def added(way: Rounds, base: Rounds) -> tuple[float, float, float]:
    """Return what a way takes more than another, in microseconds, with its interval."""
    more = lows(way) - lows(base)
    picks = np.random.default_rng(0).integers(0, len(more), (2000, len(more)))
    medians = np.median(more[picks], axis=1)
    return float(np.median(more)), *map(float, np.quantile(medians, [0.025, 0.975]))


def form(name: str, side: int) -> onnx.ModelProto:
    """Return a convolution with a form of the normalization in front, whose answers are those of the others."""
    factor, shift = NORMALIZE.factors
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 3, 3, 3)).astype(np.float32)
    if "weights" in name:
        weight = weight * factor[None, :, None, None]
    first, given = (
        ("float[1, 3, {0}, {0}] x", "x")
        if name == NOTHING
        else ("uint8[1, {0}, {0}, 3] x", "given")
    )
    text = f"""
        form ({first.format(side)}) => (float[1, 32, {side // 2}, {side // 2}] y) {{{FORMS[name]}
            y = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> ({given}, weight)
        }}"""
    model = parse_model(HEADER + text)
    planes = (1, 3, 1, 1)
    constants = {
        "weight": weight,
        "factor": factor.reshape(planes),
        "shift": shift.reshape(planes),
        "last_factor": factor,
        "last_shift": shift,
        "diagonal": np.diag(factor).reshape(3, 3, 1, 1),
        "below": -shift,
        "unscaled_shift": (shift / factor).reshape(planes),
    }
    read = {value for node in model.graph.node for value in node.input}
    for constant in read & constants.keys():
        model.graph.initializer.append(numpy_helper.from_array(constants[constant], constant))
    return model


def opened(engine: Engine, model: onnx.ModelProto, folder: Path, stack: ExitStack) -> Any:
    """Return an engine's open session of a model."""
    folder.mkdir(parents=True)
    (folder / "built").mkdir()
    onnx.save(model, folder / "model.onnx")
    target = Target.host().with_threads(1)
    artifact = engine.build(load(folder / "model.onnx"), target, folder / "built")
    return stack.enter_context(engine.open(artifact, target))


def forms(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Race the forms of the normalization in front of a convolution, on each engine."""
    pixels = np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    floats = Pipeline((NORMALIZE, ToLayout()))(pixels[0])[None]
    records: dict[str, Any] = {}
    lines = [("in front of the convolution", *ENGINES)]
    for engine_name, engine in ENGINES.items():
        with ExitStack() as stack:
            sessions = {}
            for number, name in enumerate(FORMS):
                place = folder / engine_name.replace(" ", "") / str(number)
                sessions[name] = opened(engine, form(name, SIDE), place, stack)
            given = {name: {"x": floats if name == NOTHING else pixels} for name in FORMS}
            expected = sessions[NOTHING].run(given[NOTHING])["y"]
            for name in FORMS:
                answer = sessions[name].run(given[name])["y"]
                np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())
            ways = {name: partial(sessions[name].run, given[name]) for name in FORMS}
            spans = raced(ways, rounds, calls)
        records[engine_name] = {NOTHING: float(np.median(lows(spans[NOTHING])))} | {
            name: added(spans[name], spans[NOTHING]) for name in FORMS if name != NOTHING
        }
    for name in FORMS:
        cells = (records[engine][name] for engine in ENGINES)
        lines.append((name, *(_cell(cell) for cell in cells)))
    print("microseconds; those of the forms are what they add to the first line")
    print(aligned(lines))
    return records


def _cell(found: float | Sequence[float]) -> str:
    if isinstance(found, float):
        return f"{found:,.0f}"
    estimate, least, most = found
    return f"{estimate:+,.0f} ({least:+,.0f} to {most:+,.0f})"


def normalize(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Race ways to normalize and to put channels first, in numpy; all give the same bits."""
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    factor, shift = NORMALIZE.factors
    table = np.arange(256, dtype=np.float32)[:, None] * factor - shift
    joined = Pipeline((NORMALIZE, ToLayout()))

    def by_table() -> Array:
        planes = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            np.take(table[:, channel], pixels[..., channel], out=planes[channel])
        return planes

    ways: dict[str, Way] = {
        "in one pass, as hasten does": lambda: joined(pixels),
        "value * factor - shift, then the layout": lambda: ToLayout()(pixels * factor - shift),
        "a table of 256 entries per channel": by_table,
    }
    expected = next(iter(ways.values()))()
    for way in ways.values():
        np.testing.assert_array_equal(way(), expected)
    return _compared(ways, rounds, calls)


def argmax(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Race ArgMax in the graph with numpy's, and print what softmax and the best 5 of 1,000 take."""
    records: dict[str, Any] = {}
    scores = {"y": np.random.default_rng(1).standard_normal(1000).astype(np.float32)}
    top = TopK(5)
    print("softmax and the best 5 of 1,000 scores, in numpy")
    records["top 5"] = _compared({"numpy": lambda: top(scores, Origin())}, rounds, calls)
    for side in SIDES:
        maps = np.random.default_rng(1).standard_normal((1, CLASSES, side, side))
        maps = maps.astype(np.float32)
        text = f"""
            largest (float[1, {CLASSES}, {side}, {side}] x) => (int64[1, {side}, {side}] y) {{
                y = ArgMax <axis = 1, keepdims = 0> (x)
            }}"""
        with ExitStack() as stack:
            engines = {name: ENGINES[name] for name in ("ONNX Runtime", "OpenVINO")}
            ways: dict[str, Way] = {"numpy": partial(maps.argmax, axis=1)}
            for name, engine in engines.items():
                place = folder / f"argmax-{name.replace(' ', '')}-{side}"
                session = opened(engine, parse_model(HEADER + text), place, stack)
                np.testing.assert_array_equal(session.run({"x": maps})["y"], maps.argmax(axis=1))
                ways[name] = partial(session.run, {"x": maps})
            print(f"the likeliest of {CLASSES} classes in {side} x {side} places")
            records[f"{CLASSES} x {side} x {side}"] = _compared(ways, rounds, max(1, calls // 4))
    return records


def resize(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Race ONNX's Resize with Pillow's on photographs, and count the values that differ."""
    photos = [Image.open(file).convert("RGB") for file in photo_files()[:PHOTOS]]
    records: dict[str, Any] = {}
    for mode, antialias in itertools.product(FILTERS, (1, 0)):
        ways: dict[str, Way] = {}
        with ExitStack() as stack:
            sessions = []
            for number, photo in enumerate(photos):
                place = folder / f"resize-{mode}-{antialias}-{number}"
                sessions.append(
                    opened(ENGINES["ONNX Runtime"], _resizing(photo, mode, antialias), place, stack)
                )
            given = [
                {"x": np.asarray(photo).transpose(2, 0, 1)[None].astype(np.float32)}
                for photo in photos
            ]
            ways = {
                "Pillow": partial(_pillows, photos, mode),
                "Resize": partial(_answered, sessions, given),
            }
            apart = [
                np.abs(
                    np.rint(one.run(x)["y"][0].transpose(1, 2, 0)).clip(0, 255)
                    - _by_pillow(photo, mode)
                )
                for one, x, photo in zip(sessions, given, photos, strict=True)
            ]
            every = np.concatenate([each.ravel() for each in apart])
            print(f"{len(photos)} photographs to {SIDE} x {SIDE}, {mode}, antialias={antialias}")
            found = _compared(ways, rounds, max(1, calls // 10))
            found["values that differ"] = float((every > 0).mean())
            found["largest difference"] = int(every.max())
            print(
                f"{found['values that differ']:.0%} of the values differ, by up to {every.max():.0f} of 255"
            )
            records[f"{mode}, antialias={antialias}"] = found
    return records


def _answered(sessions: Sequence[Any], given: Sequence[dict[str, Array]]) -> None:
    for session, request in zip(sessions, given, strict=True):
        session.run(request)


def _by_pillow(photo: Image.Image, mode: str) -> Array:
    return np.asarray(photo.resize((SIDE, SIDE), FILTERS[mode])).astype(np.float32)


def _pillows(photos: Sequence[Image.Image], mode: str) -> None:
    for photo in photos:
        _by_pillow(photo, mode)


def _resizing(photo: Image.Image, mode: str, antialias: int) -> onnx.ModelProto:
    """Return a model that resizes a picture as nearly as ONNX can to what Pillow does."""
    # Pillow's cubic filter has the coefficient -0.5, and leaves out what lies outside of the picture.
    outside = int(mode == "cubic" or antialias)  # ONNX Runtime takes it for no other mode
    settings = {"cubic_coeff_a": -0.5, "exclude_outside": outside, "antialias": antialias}
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, **settings)
    sizes = numpy_helper.from_array(np.array([1, 3, SIDE, SIDE], np.int64), "sizes")
    one = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", one, [1, 3, photo.height, photo.width])],
        [helper.make_tensor_value_info("y", one, [1, 3, SIDE, SIDE])],
        [sizes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _compared(ways: Mapping[str, Way], rounds: int, calls: int) -> dict[str, Any]:
    """Race ways, print their times over the first's, and return the figures."""
    spans = raced(ways, rounds, calls)
    first = next(iter(ways))
    lines = [("", "microseconds", f"over {first}")]
    record: dict[str, Any] = {}
    for name, each in spans.items():
        ratio = paired_ratio(low(each), low(spans[first]))
        record[name] = {
            "us": float(np.median(lows(each))),
            "ratio": (ratio.estimate, ratio.low, ratio.high),
        }
        said = "1" if name == first else in_words(ratio)
        lines.append((name, f"{record[name]['us']:,.0f}", said))
    print(aligned(lines))
    return record


RACES: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "forms": forms,
    "normalize": normalize,
    "argmax": argmax,
    "resize": resize,
}


def chosen(names: str) -> Iterator[str]:
    """Yield the names of races, checked."""
    for name in names.split(","):
        if name not in RACES:
            raise SystemExit(f"folding.py: there is no race {name!r}; there are {', '.join(RACES)}")
        yield name


def main() -> None:
    """Parse the command line, race and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=20, help="calls of each way in a round")
    parser.add_argument("--races", default=",".join(RACES))
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    records = {}
    for name in chosen(given.races):
        print(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            records[name] = RACES[name](Path(folder), given.rounds, given.calls)
    if given.out is not None:
        given.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A detector of coloured squares, a classifier of their colours, and pictures that hold such squares."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser
from PIL import Image
from tests.support.bundles import built, forge, stated

from hasten.bundle import write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import Decode, Normalize, Resize, ToLayout
from hasten.testing.models import HEADER

COLOURS = ("red", "green", "blue")
CELL = 32
"""Side of a square in a picture, in pixels."""
UNIT = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


BOXES = GivenBoxes(labels=("square",), least=0.5, most=1000)


def detector(
    folder: Path,
    cells: int = 8,
    name: str = "det",
    after: Sequence[PostStep] = (BOXES,),
    **fields: Any,
) -> Path:
    """Write a bundle that finds the bright cells in a grid of `cells` x `cells`."""
    side, count = 4 * cells, cells * cells
    text = f"""
        {name} (float[batch, 3, {side}, {side}] x) => (float[batch, {count}, 6] rows)
            <int64[3] shape = {{0, {count}, 1}}, float zero = {{0.0}}> {{
            brightest = ReduceMax <axes = [1], keepdims = 1> (x)
            pooled = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (brightest)
            scores = Reshape(pooled, shape)
            classes = Mul(scores, zero)
            corners = Add(classes, places)
            rows = Concat <axis = 2> (corners, scores, classes)
        }}"""
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[:cells, :cells])
    places = 4 * np.stack([columns, rows, columns + 1, rows + 1], axis=1)[None]
    return bundle(folder, name, text, {"places": places}, side, after, **fields)


def classifier(
    folder: Path,
    name: str = "colour",
    batch: int | str = "batch",
    after: Sequence[PostStep] = (TopK(labels=COLOURS),),
    winner: Any = None,
    **fields: Any,
) -> Path:
    """Write a bundle that tells the colour of a picture.

    Args:
        folder: Folder to write into.
        name: Name of the bundle.
        batch: Size of the batch axis, or its name.
        after: Steps after the model.
        winner: Weights of the winner where they aren't those of the exact model.
        **fields: Fields of the manifest, and `evidence`.
    """
    text = f"""
        {name} (float[{batch}, 3, 16, 16] x) => (float[{batch}, 3] logits) {{
            pooled = GlobalAveragePool(x)
            flat = Flatten <axis = 1> (pooled)
            logits = MatMul(flat, weight)
        }}"""
    weights = {"weight": np.eye(3)}
    other = None if winner is None else {"weight": winner}
    return bundle(folder, name, text, weights, 16, after, winner=other, **fields)


def gray_reader(folder: Path) -> Path:
    """Write a bundle that tells colors by how bright they are in gray: 76, 150 and 29 of 255."""
    text = """
        gray (float[batch, 1, 16, 16] x) => (float[batch, 3] logits)
            <float[3] bright = {0.298, 0.588, 0.114}> {
            pooled = GlobalAveragePool(x)
            flat = Flatten <axis = 1> (pooled)
            spread = MatMul(flat, weight)
            off = Sub(spread, bright)
            away = Abs(off)
            logits = Neg(away)
        }"""
    path = bundle(folder, "gray", text, {"weight": np.ones((1, 3))}, 16, [TopK(labels=COLOURS)])

    def change(record: Any) -> None:
        steps = record["pipeline"]["steps"]
        steps[0].update(colors="gray")
        steps[2].update(mean=[0.0], std=[1.0])

    forge(path, change)
    return path


def bundle(
    folder: Path,
    name: str,
    text: str,
    weights: dict[str, Any],
    side: int,
    after: Sequence[PostStep],
    winner: dict[str, Any] | None = None,
    evidence: Mapping[str, Any] = {},
    **fields: Any,
) -> Path:
    """Write a bundle of a model of square pictures in [0, 1], channels first."""
    parts = []
    for place, given in (("exact", weights), ("winner", winner)):
        if given is None:
            continue
        model = parser.parse_model(HEADER + text)
        for each, array in given.items():
            tensor = numpy_helper.from_array(np.asarray(array, np.float32), each)
            model.graph.initializer.append(tensor)
        inside = folder / f"{name}-{place}"
        inside.mkdir()
        onnx.save(model, inside / f"{name}.onnx")
        parts.append(built(inside, inside / f"{name}.onnx", OnnxRuntime(threads=1)))
    facts = {"pipeline": pipeline_of(side, after), "status": "exact", **fields}
    path = folder / f"{name}.hasten"
    write(path, stated(parts[-1], parts[0], **facts), evidence)
    return path


def pipeline_of(side: int, after: Sequence[PostStep]) -> Pipeline:
    """Return the steps around a model of pictures of a side, in pixels."""
    steps = (Decode(), Resize((side, side), "bilinear"), UNIT, ToLayout())
    return Pipeline(steps, tuple(after))


def squares(places: dict[tuple[int, int], str], cells: int = 8) -> np.ndarray:
    """Draw a black picture with coloured squares at rows and columns of a grid."""
    picture = np.zeros((cells * CELL, cells * CELL, 3), np.uint8)
    for (row, column), colour in places.items():
        here = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        here[..., COLOURS.index(colour)] = 255
    return picture


def png(picture: np.ndarray) -> bytes:
    """Encode a picture without loss."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()

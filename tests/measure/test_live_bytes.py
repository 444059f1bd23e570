"""Bytes of a model's tensors that exist at once, counted by hand and by the program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import parser, save
from tests.support import ragged

from hasten.core.growth import Growth
from hasten.core.shapes import extents
from hasten.inputs.models.onnx import load
from hasten.measure.live_bytes import growth_of
from hasten.passes.onnx_files import read_onnx
from hasten.testing import models


def counted(
    folder: Path,
    text: str,
    *samples: dict[str, tuple[int, ...]],
    weights: Mapping[str, tuple[int, ...]] = {},
) -> dict[float, int]:
    """Count a graph for data of some shapes; return times the size -> bytes, from once on."""
    return of(models.write(folder / "model.onnx", text, weights), *samples)


def of(path: Path, *samples: dict[str, tuple[int, ...]]) -> dict[float, int]:
    return {times: bytes_ for times, bytes_ in all_of(path, *samples).items() if times >= 1}


def all_of(path: Path, *samples: dict[str, tuple[int, ...]]) -> dict[float, int]:
    model = load(path)
    dtypes = {spec.name: spec.dtype for spec in model.inputs}
    model = model.settled_by({n: np.zeros(shape, dtypes[n]) for n, shape in samples[0].items()})
    found: tuple[Growth, ...] = growth_of(
        read_onnx(model, weights=False), model.inputs, model.request, extents(model.inputs, samples)
    )
    return {one.times: one.memory_bytes for one in found}


COMPARING = """
    comparing (float[batch, length] x) => (float[batch, length] y)
    <int64[1] one = {1}, int64[1] two = {2}> {
        each = Unsqueeze (x, one)  other = Unsqueeze (x, two)  apart = Sub (each, other)
        far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, one)
    }"""


def test_tensors_count_from_their_making_to_their_last_use_and_other_shapes_of_one_not_at_all(
    tmp_path: Path,
) -> None:
    """x, of which two are views, is needed for the first table; then there are two tables."""
    found = counted(tmp_path, COMPARING, {"x": (600,)})
    assert found == {1: 2 * 600**2 * 4, 2: 2 * 1200**2 * 4}


def test_another_shape_of_a_tensor_is_the_same_memory(tmp_path: Path) -> None:
    text = """
        views (float[batch, length] x) => (float[batch, length] y)
            <int64[2] flat = {0, -1}, int64[3] cut = {0, -1, 2}> {
            some = Abs (x)  other = Reshape (some, cut)  same = Reshape (other, flat)
            y = Add (some, same) }"""
    assert counted(tmp_path, text, {"x": (600,)}) == {1: 2 * 600 * 4, 2: 2 * 1200 * 4}


def test_the_longest_sample_of_the_data_counts_as_once_the_size(tmp_path: Path) -> None:
    found = counted(tmp_path, COMPARING, {"x": (10,)}, {"x": (40,)}, {"x": (20,)})
    assert found[1] == 2 * 40**2 * 4
    assert found[32] == 2 * 1280**2 * 4
    assert max(found) == 32


def test_samples_that_are_shorter_than_in_the_data_count_down_to_the_size_1(tmp_path: Path) -> None:
    found = all_of(models.write(tmp_path / "model.onnx", COMPARING, {}), {"x": (600,)})
    sizes = (1, 2, 3, 5, 10, 19, 38, 75, 150, 300)  # each with all others
    assert list(found.items()) == [
        *((0.5 ** (10 - n), 2 * size**2 * 4) for n, size in enumerate(sizes)),
        (1, 2 * 600**2 * 4),
        (2, 2 * 1200**2 * 4),
    ]


def test_of_several_dimensions_all_are_shorter(tmp_path: Path) -> None:
    text = """
        sums (float[batch, height, width] x) => (float[batch, height, width] y) { y = Abs (x) }"""
    found = all_of(models.write(tmp_path / "model.onnx", text, {}), {"x": (10, 4)})
    assert [(times, bytes_) for times, bytes_ in found.items() if times < 1] == [
        (1 / 16, 2 * 4),
        (1 / 8, 2 * 2 * 4),
        (1 / 4, 2 * 3 * 4),
        (1 / 2, 2 * 5 * 2 * 4),
    ]


def test_short_samples_that_the_model_cannot_take_are_left_out(tmp_path: Path) -> None:
    text = """
        pools (float[batch, 1, length] x) => (float[batch, 1, after] y)
            { y = MaxPool <kernel_shape = [40]> (x) }"""
    found = all_of(models.write(tmp_path / "model.onnx", text, {}), {"x": (1, 600)})
    assert min(found) == 1 / 8  # 75 numbers


def test_of_a_model_without_open_dimensions_but_the_batch_rows_count(tmp_path: Path) -> None:
    """16 numbers and 4 scores for each."""
    found = of(models.linear_classifier(tmp_path), {"x": (16,)})
    assert found == {2.0**n: (16 + 4) * 4 * 2**n for n in range(11)}


def test_rows_that_are_compared_with_each_other_count_as_such(tmp_path: Path) -> None:
    text = """
        near (float[batch, 8] x) => (float[batch, batch] y)
            { other = Transpose (x)  all = MatMul (x, other)  y = Abs (all) }"""
    found = counted(tmp_path, text, {"x": (8,)})
    assert found[1024] == 2 * 1024**2 * 4
    assert found[1] == (2 * 8 + 1) * 4


def test_a_model_without_open_dimensions_states_nothing(tmp_path: Path) -> None:
    text = "fixed (float[1, 8] x) => (float[1, 8] y) { y = Abs (x) }"
    assert counted(tmp_path, text, {"x": (8,)}) == {}


def test_of_two_open_dimensions_the_worse_one_counts(tmp_path: Path) -> None:
    """Each row's numbers are compared with each other, so only the width counts twice."""
    text = """
        across (float[batch, height, width] x) => (float[batch] y)
            <int64[1] two = {2}, int64[1] three = {3}, int64[3] all = {1, 2, 3}> {
            each = Unsqueeze (x, two)  other = Unsqueeze (x, three)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, all) }"""
    found = counted(tmp_path, text, {"x": (600, 700)})
    assert found == {1: 2 * 600 * 700**2 * 4, 2: 2 * 600 * 1400**2 * 4}


def test_two_inputs_are_longer_at_once(tmp_path: Path) -> None:
    text = """
        pairs (float[batch, first] q, float[batch, second] k) => (float[batch] y)
            <int64[1] one = {1}, int64[1] two = {2}, int64[2] both = {1, 2}> {
            each = Unsqueeze (q, two)  other = Unsqueeze (k, one)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, both) }"""
    found = counted(tmp_path, text, {"q": (600,), "k": (700,)})
    assert found == {1: 2 * 600 * 700 * 4, 2: 2 * 1200 * 1400 * 4}


def test_shapes_that_are_computed_are_followed(tmp_path: Path) -> None:
    """As an exporter writes masks and reshapes: by numbers that follow from the request's shape."""
    text = """
        masked (float[batch, length] x) => (float[batch, length, length] y)
            <int64[1] minus = {-1}, int64 at1 = {1}, int64[1] zero = {0}, int64 nil = {0}, int64 step = {1}> {
            shape = Shape (x)  length = Gather (shape, at1)  row = Unsqueeze (length, zero)
            rows = Gather (shape, zero)  wanted = Concat <axis = 0> (rows, row, row)
            numbers = Range (nil, length, step)  ones = ConstantOfShape <value = float[1] {1}> (wanted)
            flat = Reshape (numbers, minus)  real = Cast <to = 1> (flat)
            y = Mul (ones, real) }"""
    found = counted(tmp_path, text, {"x": (600,)})
    assert found[1] == pytest.approx(2 * 600**2 * 4, rel=0.01)
    assert found[2] == pytest.approx(2 * 1200**2 * 4, rel=0.01)


def test_the_branch_that_a_shape_chooses_counts(tmp_path: Path) -> None:
    text = """
        choosing (float[batch, length] x) => (float[batch, length] y)
            <int64 at1 = {1}, int64 most = {1000}> {
            shape = Shape (x)  length = Gather (shape, at1)  long = Greater (length, most)
            y = If (long) <
                then_branch = long_one () => (float[batch, length] y1)
                    <int64[2] times = {1, 100}> { large = Tile (x, times)  some = Abs (large)
                    from = Constant <value = int64[1] {0}> ()  to = Constant <value = int64[1] {1024}> ()
                    axis = Constant <value = int64[1] {1}> ()  y1 = Slice (some, from, to, axis) },
                else_branch = short_one () => (float[batch, length] y2) { y2 = Abs (x) }> }"""
    found = counted(tmp_path, text, {"x": (600,)})
    assert found == {1: 2 * 600 * 4, 2: (1 + 2 * 100) * 1200 * 4 - 1200 * 4}


def test_sizes_that_depend_on_values_state_nothing(tmp_path: Path) -> None:
    text = """
        chosen (float[batch, length] x) => (int64[2, found] y) { y = NonZero (x) }"""
    assert counted(tmp_path, text, {"x": (600,)}) == {}


def test_sizes_that_the_model_cannot_take_are_left_out(tmp_path: Path) -> None:
    text = """
        placed (float[batch, length] x) => (float[batch, length] y)
            <int64 at1 = {1}, int64[1] zero = {0}> {
            shape = Shape (x)  length = Gather (shape, at1)  row = Unsqueeze (length, zero)
            own = Slice (places, zero, row)  y = Add (x, own) }"""
    found = counted(tmp_path, text, {"x": (100,)}, weights={"places": (512,)})
    assert list(found) == [1, 2, 4]


def test_scores_of_attention_and_gates_of_recurrent_layers_count(tmp_path: Path) -> None:
    text = """
        steps (float[length, batch, 8] x) => (float[length, 1, batch, 16] y)
            { y, h, c = LSTM <hidden_size = 16> (x, w, r) }"""
    weights = {"w": (1, 64, 8), "r": (1, 64, 16)}
    path = models.write(tmp_path / "steps.onnx", text, weights)
    found = of(path, {"x": (600, 1, 8)})
    assert found[2] >= 1200 * 64 * 4 + 1200 * 16 * 4
    text = """<ir_version: 10, opset_import: ["" : 23]>
        attends (float[batch, 4, length, 8] x) => (float[batch, 4, length, 8] y)
            { y = Attention (x, x, x) }"""
    save(parser.parse_model(text), tmp_path / "attends.onnx")
    found = of(tmp_path / "attends.onnx", {"x": (4, 600, 8)})
    assert found[2] >= 2 * 4 * 1200**2 * 4


def test_an_encoder_is_counted_up_to_where_servers_answer(tmp_path: Path) -> None:
    found = of(ragged.encoder(tmp_path), {"ids": (12,), "mask": (12,)})
    assert list(found) == [2.0**n for n in range(8)]
    length = 12 * 128
    assert found[128] == pytest.approx(2 * length**2 * 4, rel=0.1)

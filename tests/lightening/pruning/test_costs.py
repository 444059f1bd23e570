"""Made-up times, and measured ones as far as they can be claimed without a clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.lightening.pruning.networks import conv, made
from torch import nn

from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.reference import Reference
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.torch import export
from hasten.lightening.pruning.costs import Costs, Grid, axes, grid, measure, widths
from hasten.lightening.pruning.in_network import in_network
from hasten.lightening.pruning.layers import Layer, LayerShape, layers
from hasten.measure.workbench import Bench

CONVOLUTION = LayerShape("convolution", 32, 32, (8, 8), (3, 3), padding=(1, 1))


def test_times_between_measured_widths_are_interpolated_and_the_measured_ones_kept() -> None:
    found = Grid((16, 32), (32, 64), ((10.0, 20.0), (30.0, 60.0)))
    assert found.at(16, 32) == 10
    assert found.at(32, 64) == 60
    assert found.at(16, 48) == 15
    assert found.at(24, 48) == 30
    assert found.at(8, 16) == 10  # never below what the narrowest took


def test_times_never_fall_with_the_width() -> None:
    noisy = {8: 5.0, 16: 4.0, 24: 6.0, 32: 6.0}
    found = grid(CONVOLUTION, lambda shape: noisy[shape.outputs] + shape.inputs)
    for row in found.times_ns:
        assert list(row) == sorted(row)
    for column in zip(*found.times_ns, strict=True):
        assert list(column) == sorted(column)
    assert found.at(32, 8) == 4.5 + 32


def test_a_grid_ends_with_the_layer_as_it_is() -> None:
    assert widths(3) == (3,)
    assert widths(24) == (8, 16, 24)
    assert widths(144)[-1] == 144
    assert all(len(widths(n)) <= 9 for n in range(1, 4096))
    assert axes(LayerShape("depthwise", 32, 32, (8, 8), (3, 3))) == ((32,), (8, 16, 24, 32))
    assert axes(LayerShape("attention", 64, 3, (197, 1))) == ((64,), (1, 2, 3))


def _network(outputs: int) -> list[Layer]:
    return [
        Layer("a", LayerShape("linear", 8, outputs, (1, 1))),
        Layer("b", LayerShape("linear", 8, 8, (1, 1))),
    ]


def _costs() -> Costs:
    return Costs({"a": Grid((8,), (8, 16), ((100.0, 300.0),)), "b": Grid((8,), (8,), ((100.0,),))})


def test_one_measured_network_settles_the_factor() -> None:
    costs = _costs().corrected([(_network(16), 800.0)])
    assert costs.predicted_ns(_network(16)) == pytest.approx(800)
    assert costs.predicted_ns(_network(8)) == pytest.approx(400)


def test_two_measured_networks_settle_the_constant_as_well() -> None:
    costs = _costs().corrected([(_network(16), 900.0), (_network(8), 500.0)])
    assert costs.factor == pytest.approx(2, rel=0.02)
    assert costs.constant_ns == pytest.approx(100, rel=0.05)
    assert costs.predicted_ns(_network(12)) == pytest.approx(700, rel=0.01)
    with pytest.raises(InputError, match="got none"):
        costs.corrected([])


def test_what_a_network_takes_beyond_its_layers_goes_with_the_values_they_give() -> None:
    alone = replace(_costs(), areas={"a": 10, "b": 10})
    costs = alone.corrected([(_network(16), 880.0)])
    assert costs.factor == pytest.approx(1)
    assert costs.value_ns == pytest.approx(480 / 240)
    assert costs.predicted_ns(_network(8)) == pytest.approx(200 + 2 * 160)
    faster = alone.corrected([(_network(16), 200.0)])
    assert (faster.factor, faster.value_ns) == pytest.approx((0.5, 0))


def test_layers_are_scaled_to_what_they_took_in_the_network() -> None:
    costs = _costs().scaled(_network(16), {"a": 450.0, "b": 9000.0}, 50.0)
    assert costs.predicted_ns(_network(16)) == pytest.approx(450 + 3000 + 50)
    assert costs.predicted_ns(_network(8)) == pytest.approx(150 + 3000 + 50)
    faster = costs.corrected([(_network(16), 1750.0)])
    assert (faster.factor, faster.constant_ns) == pytest.approx((0.5, 25))


@pytest.mark.parametrize("engine", [OpenVino(), OnnxRuntime()], ids=["openvino", "onnxruntime"])
def test_every_layer_is_found_in_the_profile_of_its_network(
    engine: OpenVino | OnnxRuntime, tmp_path: Path
) -> None:
    module, (x,) = made("two-headed")
    for folder in ("exported", "built", "bench"):
        (tmp_path / folder).mkdir()
    model = export(module, {"x": x[0].numpy()}, tmp_path / "exported")
    model = model.settled_by({"x": x[0].numpy()})
    spool = write_spool(ArrayDataset({"x": x.numpy()}), tmp_path / "requests")
    target = Target.host().with_threads(1)
    bench = Bench(tmp_path / "bench", target, 60.0, original=model.path)
    artifact = bench.build(engine, model, tmp_path / "built")
    found = layers(module, (x[:1],))
    steps = bench.profile(engine, artifact, spool)
    times_ns, rest_ns = in_network(found, model.path, steps)
    assert times_ns.keys() == {layer.name for layer in found}
    assert all(time_ns > 0 for time_ns in times_ns.values())
    whole_ns = sum(step.median_ns for step in steps)
    assert sum(times_ns.values()) + rest_ns == pytest.approx(whole_ns)
    assert in_network(found[1:], model.path, steps) == ({}, 0.0)


def test_products_are_counted_as_a_convolution_makes_them() -> None:
    module = nn.Sequential(conv(3, 8, 2), conv(8, 8, groups=8), nn.Flatten(), nn.Linear(8 * 64, 10))
    found = layers(module, (torch.zeros(1, 3, 16, 16),))
    assert [layer.shape.macs for layer in found] == [64 * 27 * 8, 64 * 9 * 8, 8 * 64 * 10]
    assert [layer.shape.kind for layer in found] == ["convolution", "depthwise", "linear"]


def test_a_pooling_counts_with_the_convolution_before_it() -> None:
    pooled = nn.Sequential(conv(3, 8), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.MaxPool1d(2))
    (layer,) = layers(pooled, (torch.zeros(1, 3, 16, 16),))
    assert layer.shape.pooling == (3, 2, 1)
    assert layer.shape.macs == 256 * 27 * 8


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        pytest.param("plain", OpenVino(), id="plain-openvino"),
        pytest.param("plain", OnnxRuntime(), id="plain-onnxruntime"),
        pytest.param("transformer", OpenVino(), id="transformer-openvino", marks=pytest.mark.slow),
        pytest.param("transformer", OnnxRuntime(), id="transformer-onnxruntime"),
    ],
)
def test_every_layer_is_measured_once_and_kept(
    kind: str, engine: OpenVino | OnnxRuntime, tmp_path: Path
) -> None:
    module, (x,) = made(kind)
    found = layers(module, (x[:1],))
    bench = Bench(tmp_path / "bench", Target.host().with_threads(1), 60.0)
    bench.folder.mkdir()
    costs = measure(found, bench, engine, tmp_path / "cache", snap=8)
    assert costs.grids.keys() == {layer.name for layer in found}
    assert all(costs.layer_ns(layer) > 0 for layer in found)
    (file,) = (tmp_path / "cache").iterdir()
    kept = file.read_bytes()
    assert measure(found, bench, engine, tmp_path / "cache", snap=8) == costs
    assert file.read_bytes() == kept


def test_an_engine_without_a_profiler_measures_no_layers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Target.host().with_threads(1), 60.0)
    with pytest.raises(CandidateError, match="has no profiler"):
        measure([Layer("a", CONVOLUTION)], bench, Reference(), tmp_path / "cache", "f32", 8)

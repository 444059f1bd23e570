"""Packing with loss: from a bundle and training data to a smaller, certified bundle."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tests.lightening.conftest import corners
from tests.support.bundles import forge
from tests.support.quick import quick_runs
from torch import nn

import hasten
from hasten.bundle import read
from hasten.bundle.packing.writer import CODING_HELPS, pack
from hasten.certificate.drop import Drop
from hasten.cli import main
from hasten.core.progress import Progress
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.top_k import Top1
from hasten.lightening.lossy.clustering import clustered
from hasten.lightening.lossy.weights import Compressible, PrunedWeight, SharedWeight, kept_at
from hasten.lightening.packing import pack_lossy
from hasten.lightening.plan import TrainingPlan
from hasten.lightening.training.loop import Recipe, Trainer
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective
from hasten.reporting.evidence import gathered
from hasten.reporting.result import Result
from hasten.reporting.sizes import STEADY, SizeRow, Sizes, columns, summary
from hasten.reporting.slides import slide

KNOWN, JUDGED = corners(900, 2), corners(1200, 3)
PLAN = TrainingPlan(minutes=600, epochs=3, batch=32)  # its epochs end it, not the clock


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(plots=True):
        yield


class StopError(Exception):
    """The run is stopped by its listener."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 4))


def train(module: nn.Module, folder: Path, **changes: Any) -> Trainer:
    """Train a network on three quarters of the known images, and return its trainer."""
    x, labels = KNOWN
    rest, held = (ArrayDataset({"x": x[at]}, labels[at]) for at in (slice(200, None), slice(200)))
    trainer = Trainer(
        Network(module, ("x",)),
        None,
        rest,
        held,
        Top1(),
        Objective(),
        Recipe(seconds=600, epochs=3, batch=32, rate=5e-3, mixed=0),
        folder / "checkpoint.pt",
        **changes,
    )
    trainer.train()
    return trainer


def written(module: nn.Sequential, path: Path) -> Path:
    """Write the network as ONNX, which takes no exporter's seconds."""
    values = {n: p.detach().numpy() for n, p in module.named_parameters()}
    named = {"w1": values["1.weight"], "b1": values["1.bias"]}
    named |= {"w2": values["3.weight"], "b2": values["3.bias"]}
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 16, 16])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])
    weights = [numpy_helper.from_array(array, name) for name, array in named.items()]
    graph = helper.make_graph(nodes, "corners", [x], [y], weights)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Sequential, Path]:
    """A trained network, and the bundle of it; don't change it."""
    folder = tmp_path_factory.mktemp("original")
    module = network()
    train(module, folder)
    with quick_runs():
        hasten.optimize(
            written(module, folder / "corners.onnx"),
            (JUDGED[0][:300], JUDGED[1][:300]),
            max_drop=0.1,
            engines=("onnxruntime",),
            out=folder / "model.hasten",
        )
    return module, folder / "model.hasten"


def packed(bundle: Path, out: Path, **options: Any) -> Result:
    asked: dict[str, Any] = {"max_drop": 0.05, "plan": PLAN, "kept": (0.3, 0.1), "bits": 3}
    return pack_lossy(bundle, KNOWN, JUDGED, **{**asked, "out": out, **options})


def weight(bundle: Path) -> Array:
    """Return the large weight of the model in a bundle."""
    (file,) = (bundle / "model").glob("*.onnx")
    tensors = {t.name.removeprefix("small/"): t for t in onnx.load(file).graph.initializer}
    return numpy_helper.to_array(tensors["w1"])


@pytest.mark.seconds
def test_a_killed_run_goes_on_and_ends_with_a_small_certified_bundle(
    original: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    module, bundle = original
    out = tmp_path / "small.hasten"
    left = tmp_path / "left"
    seen: list[str] = []

    def stop_in_the_second(told: Progress) -> None:
        if told.stage == "train" and told.doing.startswith("10%") and told.outcome:
            raise StopError

    with pytest.raises(StopError):
        packed(bundle, out, network=module, listen=stop_in_the_second)
    assert not out.exists()

    def keep_what_was_trained(told: Progress) -> None:
        seen.append(told.doing)
        if told.stage == "certify" and not left.exists():
            shutil.copytree(tmp_path / "small.hasten.training", left)

    result = packed(bundle, out, network=module, resume=True, listen=keep_what_was_trained)
    trained = dict.fromkeys(name for name in seen if name.endswith("values"))
    assert [name for name in trained if seen.count(name) > 2] == ["10% of the weights, 8 values"]

    assert result.status == "certified"
    assert result.why.startswith("95% confident that top-1 accuracy falls by at most 5 points (n=")
    assert result.sizes is not None
    shipped = result.sizes.shipped
    assert shipped is not None
    assert shipped.packed_bytes < result.sizes.lossless_bytes / 8
    matrix = weight(out)
    assert 2 <= len(np.unique(matrix)) <= 8  # 3 bits, and 0 is one of the values
    assert 0.05 < np.mean(matrix != 0) < 0.13
    with hasten.load(out) as small:
        found = np.concatenate([small(JUDGED[0][i : i + 1])["y"] for i in range(60)])
    assert (found.argmax(1) == JUDGED[1][:60]).mean() > 0.8
    manifest = read(out)
    assert manifest.exact is None  # else the small file would hold the large model too
    assert manifest.requests == 0
    assert manifest.certificate is not None

    whole, lean = tmp_path / "whole.hastenz", tmp_path / "lean.hastenz"
    sizes = [pack(out, whole).packed_bytes, pack(out, lean, keep_evidence=False).packed_bytes]
    assert sizes[1] < sizes[0] / 4  # the hashes of the sealed samples can't be packed
    with hasten.load(lean) as from_file:
        again = np.concatenate([from_file(JUDGED[0][i : i + 1])["y"] for i in range(60)])
    assert np.array_equal(again, found)
    whole.unlink()
    lean.unlink()

    evidence = gathered(out)
    told = evidence.result
    assert slide(evidence).about == STEADY
    assert told.sizes == result.sizes
    assert STEADY in "\n".join(summary(told))
    assert [line[0] for line in columns(result.sizes)].count("ships") == 1
    page = (out / "report.html").read_text()
    assert "Size against accuracy" in page
    assert STEADY[1:] in page

    # As where it is killed between its end and the removal of its folder:
    left.rename(tmp_path / "small.hasten.training")
    with pytest.raises(
        InputError, match="nothing to resume: the run has finished, and its bundle is"
    ):
        packed(bundle, out, network=module, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.hasten"]


def command(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["pack", *map(str, arguments)])


@pytest.mark.seconds
def test_the_command_packs_the_model_as_it_is_where_no_form_is_certified(
    original: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    _, bundle = original
    for name, (x, labels) in (("known", KNOWN), ("judged", JUDGED)):
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    flags = [bundle, "--lossy", f"--train={tmp_path / 'known.npz'}"]
    flags += [f"--data={tmp_path / 'judged.npz'}", "--max-drop=0.1%", "--kept=2%", "--epochs=1"]
    ended = command(*flags, f"--out={tmp_path / 'small.hastenz'}")
    assert ended.exit_code == 1, ended.output
    assert "NOT certified: no smaller form is certified: " in ended.output
    assert STEADY[1:] in ended.output
    assert CODING_HELPS in ended.output
    told = json.loads(command(*flags, f"--out={tmp_path / 'small.hastenz'}", "--json").stdout)
    assert told["note"] == STEADY
    assert told["packed"]["packed_bytes"] == (tmp_path / "small.hastenz").stat().st_size
    with hasten.load(tmp_path / "small.hastenz") as small, hasten.load(bundle) as exact:
        x = JUDGED[0][:1]
        assert np.array_equal(small(x)["y"], exact(x)["y"])
    left = {"known.npz", "judged.npz", "small.hastenz", "small-lossy.hasten"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.seconds
def test_the_command_never_says_that_the_answers_of_a_smaller_form_are_the_same_bits(
    original: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    _, bundle = original
    for name, (x, labels) in (("known", KNOWN), ("judged", JUDGED)):
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    flags = [bundle, "--lossy", f"--train={tmp_path / 'known.npz'}", "--max-drop=10%", "--kept=50%"]
    ended = command(*flags, f"--data={tmp_path / 'judged.npz'}", f"--out={tmp_path / 's.hastenz'}")
    assert ended.exit_code == 0, ended.output
    assert "smaller, certified" in ended.output
    assert STEADY[1:] in ended.output
    assert f"{tmp_path / 's.hastenz'}: " in ended.output
    assert "same bits" not in ended.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lossy"], "packing with loss trains the model again: give training data with --train"),
        (
            ["--lossy", "--train=a.npz"],
            "packing with loss needs the largest drop in accuracy that is",
        ),
        (
            ["--lossy", "--train=a.npz", "--max-drop=1%"],
            "packing with loss is judged on data that training never sees: give it with --data",
        ),
        (["--train=a.npz"], "--train is an option for packing with loss: add --lossy"),
        (
            ["--lossy", "--no-exact"],
            "--lossy can't be combined with --since, --codecs or --no-exact",
        ),
    ],
)
def test_the_command_says_what_is_missing_in_a_line(
    original: tuple[nn.Sequential, Path], tmp_path: Path, flags: list[str], message: str
) -> None:
    _, bundle = original
    ended = command(bundle, *flags, f"--out={tmp_path / 'small.hastenz'}")
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"hasten: {message}")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": None},
            "packing with loss trains the model again: give training data with train=",
        ),
        (
            {"max_drop": None},
            "packing with loss needs the largest drop in accuracy that is allowed",
        ),
        ({"bits": 9}, "the number of a shared value has 2 to 8 bits: got bits=9"),
        (
            {"kept": (0.1, 0.3)},
            "the shares of weights to keep must be between 0 and 1, each smaller than the one "
            "before: got 0",
        ),
        ({"target": "cuda"}, "packing with loss doesn't take target=: leave it out"),
        ({"network": nn.Linear(2, 2)}, "torch can't capture the network"),
        (
            {"plan": TrainingPlan(loss=7)},
            "a loss must be a function of outputs and labels: got 7",
        ),
    ],
)
def test_what_is_missing_or_strange_is_refused_in_one_line_with_nothing_written(
    original: tuple[nn.Sequential, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, bundle = original
    asked: dict[str, Any] = {"train": KNOWN, "data": JUDGED, "max_drop": 0.05, **changes}
    with pytest.raises(InputError, match=message) as refused:
        pack_lossy(bundle, asked.pop("train"), asked.pop("data"), out=tmp_path / "b", **asked)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_another_network_than_the_bundles_is_refused(
    original: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    _, bundle = original
    with pytest.raises(
        InputError, match="the network isn't the bundle's exact model: its output 'y'"
    ):
        packed(bundle, tmp_path / "b", network=network())
    (tmp_path / "other").mkdir()
    file = written(network(), tmp_path / "other" / "corners.onnx")
    with pytest.raises(InputError, match=r"\.onnx isn't the model that .* was made from"):
        packed(bundle, tmp_path / "b", network=str(file))
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(InputError, match=r"network= is a live torch network, .*: got a int"):
        packed(bundle, tmp_path / "b", network=7)
    assert not list(tmp_path.iterdir())


def test_the_file_that_a_bundle_was_made_from_serves_where_its_own_cant_be_trained(
    original: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    _, bundle = original
    other = tmp_path / "other.hasten"
    shutil.copytree(bundle, other)

    def change(record: dict[str, Any]) -> None:
        """Have the only model of the bundle be in another format, by its name."""
        artifact = record["winner"]["artifact"]
        name = artifact["path"]
        artifact["path"] = "model/model.tflite"
        record["files"][artifact["path"]] = record["files"].pop(name)
        record["status"], record["exact"] = "exact", None
        (other / name).rename(other / artifact["path"])

    forge(other, change)
    with pytest.raises(InputError, match=r"give the ONNX file that the bundle was made from"):
        packed(other, tmp_path / "b")

    def stop(told: Progress) -> None:
        if told.stage == "train":
            raise StopError

    with pytest.raises(StopError):
        packed(other, tmp_path / "b", network=bundle.with_name("corners.onnx"), listen=stop)


def test_zeros_stay_zeros_and_shared_values_stay_shared_through_training(tmp_path: Path) -> None:
    pruned = Compressible(network(), ["1.weight", "3.weight"])
    pruned.prune(0.2)
    before = {name: value.detach().clone() for name, value in pruned.values().items()}
    train(pruned, tmp_path / "pruned")
    for name, value in pruned.values().items():
        assert bool((value[before[name] == 0] == 0).all())
        assert not torch.equal(value, before[name])
    shared = pruned.shared(3)
    groups = {
        name: np.unique(value.detach().numpy(), return_inverse=True)
        for name, value in shared.values().items()
    }
    train(shared, tmp_path / "shared")
    for name, value in shared.values().items():
        values, places = groups[name]
        found = value.detach().numpy()
        assert len(values) <= 8
        assert bool((value[before[name] == 0] == 0).all())
        for number in range(len(values)):
            assert len(np.unique(found[places == number])) == 1
        assert not np.array_equal(np.unique(found), values)


def test_a_shared_value_learns_from_the_sum_over_all_that_share_it() -> None:
    weight = SharedWeight(torch.tensor([[1.0, 0.0, -1.0], [1.1, -0.9, 0.0]]), 3)
    slopes = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (weight() * slopes).sum().backward()
    assert weight.centers.tolist() == pytest.approx([-0.95, 1.05])
    assert weight.centers.grad is not None
    assert weight.centers.grad.tolist() == [3.0 + 5.0, 1.0 + 4.0]


def test_pruning_leaves_the_share_that_is_asked_for_and_never_empties_a_layer() -> None:
    net = Compressible(network(), ["1.weight", "3.weight"])
    tiny = net.weights[1]  # a layer whose weights are tiny matters all the same
    assert isinstance(tiny, PrunedWeight)
    tiny.values.data *= 1e-6
    for share in (0.5, 0.1, 0.02):
        net.prune(share)
        assert net.left == pytest.approx(share, abs=1e-3)
        assert all(bool((value != 0).any()) for value in net.values().values())
    net.prune(0.5)
    assert net.left == pytest.approx(0.02, abs=1e-3)  # what is pruned doesn't come back


def test_the_schedule_falls_fast_at_first_and_ends_where_it_should() -> None:
    shares = [kept_at(at, 1.0, 0.1, 0.6) for at in (0.0, 0.3, 0.6, 1.0)]
    assert shares[0] == 1.0
    assert shares[2] == shares[3] == pytest.approx(0.1)
    assert 0.1 < shares[1] < 0.3


@given(
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_few_values_stand_for_many_and_each_by_the_nearest(numbers: list[float], most: int) -> None:
    values = np.array(numbers, np.float32)
    centers, places = clustered(values, most)
    assert 1 <= len(centers) <= most
    assert sorted(set(places.tolist())) == list(range(len(centers)))
    apart = np.abs(values[:, None].astype(np.float64) - centers)
    assert np.allclose(apart[np.arange(len(values)), places], apart.min(1), atol=1e-5)
    if len(np.unique(values)) <= most:
        assert np.array_equal(centers[places], values)


def test_weights_from_before_the_network_is_what_it_shall_be_are_never_kept(tmp_path: Path) -> None:
    net = Compressible(network(), ["1.weight"])

    def prune(share: float) -> None:
        if share >= 0.5:
            net.prune(0.001)  # so few that whatever was before scores higher

    trainer = train(net, tmp_path, before_step=prune, settled=0.5)
    assert net.left == pytest.approx(0.001, abs=1e-3)
    assert trainer.train().score == max(s for at, s in trainer.train().curve if at >= 0.5)


def test_sizes_that_can_not_be_are_told_from_a_damaged_record() -> None:
    row = SizeRow("a form", 100, 0.1, 16, "+0.1 points lost")
    sizes = Sizes(4000, 3000, (row,), "a form")
    assert sizes.possible()
    assert sizes.times_smaller == 40
    for damaged in (
        replace(sizes, lossless_bytes=0),
        replace(sizes, rows=(replace(row, left=math.nan),)),
        replace(sizes, rows=(replace(row, packed_bytes=-1),)),
        replace(sizes, rows=(replace(row, drop=Drop(0.0, 0.1, 0.05, 900)),)),
    ):
        assert not damaged.possible()

"""`hasten profile`."""

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from tests.support import models

from hasten.cli import main
from hasten.cli.profile_table import profile_table
from hasten.core.records import from_record
from hasten.engines.layers import Kind, LayerTime
from hasten.evaluation.profiling import Profile

pytestmark = pytest.mark.seconds


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["profile", *map(str, arguments)])


def test_each_engine_has_its_tables(tmp_path: Path) -> None:
    result = run(models.depthwise_cnn(tmp_path), "--top", 3)
    assert result.exit_code == 0, result.output
    first, mark, second = result.stdout.partition("model: original, OpenVINO; ")
    assert mark
    assert first.startswith("model: original, ONNX Runtime; ")
    for text in (first, second):
        assert "arithmetic" in text
        assert "stem + relu1" in text
        assert "more: --top lists them" in text


def test_one_engine_and_its_steps_as_json(tmp_path: Path) -> None:
    result = run(models.depthwise_cnn(tmp_path), "--engine", "onnxruntime", "--json")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    profile = from_record(Profile, record)
    assert profile.label == "original, ONNX Runtime"
    assert ("pointwise", "skip", "relu2") in [layer.sources for layer in profile.layers]


def test_names_of_nodes_write_nothing_to_the_terminal(tmp_path: Path) -> None:
    proto = onnx.load(str(models.depthwise_cnn(tmp_path)))
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}\x1b]0;pwned\x07\n\u202ez"
    onnx.save(proto, str(tmp_path / "named.onnx"))
    result = run(tmp_path / "named.onnx", "--engine", "onnxruntime", "--top", 50)
    assert result.exit_code == 0, result.output
    assert "\\x1b]0;pwned\\x07\\n\\u202ez" in result.stdout
    assert all(line.isprintable() for line in result.stdout.splitlines())


def test_a_file_that_is_not_there_is_one_line() -> None:
    result = run("nowhere.onnx")
    assert (result.exit_code, result.stderr) == (2, "hasten: no such file: nowhere.onnx\n")


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.stderr) == (
        2,
        f"hasten: {tmp_path} is not a bundle: it has no manifest.json\n",
    )


def step(name: str, kind: Kind, precision: str, *us: int, sources: tuple[str, ...]) -> LayerTime:
    return LayerTime(name, "Conv", kind, precision, "jit", sources, tuple(1000 * n for n in us))


def test_the_table_says_where_the_time_goes_and_what_was_fused() -> None:
    layers = (
        step("x_reordered", "conversion", "f32", 100, 90, sources=()),
        step("c1", "arithmetic", "i8", 1000, 1010, sources=("c1", "r1")),
        step("c2", "arithmetic", "f32", 2000, 2020, sources=("c2",)),
    )
    profile = Profile("winner", "int8 on openvino", 2, "random numbers", layers, (3_500_000,))
    assert profile_table(profile, 2).splitlines() == [
        "winner: int8 on openvino; 2 threads, batch 1, requests: random numbers",
        "3.5 ms a request; its 3 steps, timed one by one, take 3.11 ms together",
        "note: 1 of 2 arithmetic steps don't run in int8, 65% of the time: c2",
        "",
        "      µs  share  by kind                  steps",
        "   3,015    97%  arithmetic               2",
        "      95     3%  conversion               1",
        "      µs  share  arithmetic by precision  steps",
        "   2,010    65%  f32                      1",
        "   1,005    32%  i8                       1",
        "      µs  share  all by precision         steps",
        "   2,105    68%  f32                      2",
        "   1,005    32%  i8                       1",
        "",
        "      µs  share  step  precision  kernel  nodes",
        "   2,010    65%  Conv  f32        jit     c2",
        "   1,005    32%  Conv  i8         jit     c1 + r1",
        "      95  in 1 more: --top lists them",
    ]


def test_what_failed_says_why() -> None:
    failed = Profile("model", "null", 1, "random numbers", failed="null engine has no profiler")
    assert profile_table(failed, 5) == "model: null: failed: null engine has no profiler"

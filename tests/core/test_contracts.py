"""What the code needs to know of an engine, a pass, a metric or a step stands on its contract, with a default."""

import ast
from pathlib import Path

import pytest

from hasten.core.records import Value
from hasten.engines.base import Engine
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.pipeline.base import PostStep, Step
from hasten.inputs.pipeline.image import Decode, Resize
from hasten.inputs.pipeline.multi_label import MultiLabel
from hasten.inputs.pipeline.vectors import L2Normalize
from hasten.inputs.set_metrics.base import SetMetric
from hasten.inputs.set_metrics.choice import parse_set_metric
from hasten.passes.base import Pass

SOURCES = Path(__file__).parents[2] / "src" / "hasten"
CONTRACTS: tuple[type[Value], ...] = (Engine, Pass, Metric, SetMetric, Step, PostStep)
NAMES = {
    name
    for contract in CONTRACTS
    for name in (*vars(contract), *contract.__annotations__)
    if not name.startswith("_")
}
ELSEWHERE = {
    ("core/raised.py", "name"),  # of a library's exception or a position in it
    ("core/raised.py", "output"),
    ("engines/tpu/stablehlo.py", "name"),  # of an operation of MLIR
    ("inputs/metrics/custom.py", "binary"),  # of the user's own function
    ("inputs/metrics/custom.py", "over_set"),
    ("inputs/models/torch.py", "name"),  # of a place in torch's tree of arguments
    ("inputs/pipeline/torchvision.py", "value"),  # of torchvision's enum
    ("inputs/set_metrics/custom.py", "higher_is_better"),
    ("serving/logs.py", "version"),  # of a log record
}
"""Attributes that other objects may or may not have, under the name of one on a contract."""


def asked_for(path: Path) -> set[str]:
    """The attributes that a file reads by name where they may be missing."""
    text = path.read_text()
    if "getattr" not in text and "hasattr" not in text:
        return set()
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {
        str(call.args[1].value)
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in ("getattr", "hasattr")
        and isinstance(call.args[1], ast.Constant)
    }


def test_no_attribute_of_a_contract_is_looked_for_where_it_may_be_missing() -> None:
    found = {
        (path.relative_to(SOURCES).as_posix(), name)
        for path in SOURCES.rglob("*.py")
        for name in asked_for(path) & NAMES
    }
    assert found == ELSEWHERE


def test_a_step_states_its_classes_and_its_memory_or_has_the_defaults() -> None:
    assert (Decode().memory_per_byte, Resize(8).memory_per_byte) == (2048, 0)
    assert (MultiLabel(labels=("cat", "dog")).labels, L2Normalize().labels) == (("cat", "dog"), ())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("map50@boxes", "it reads no output by name"),
        ("auroc@", "no output is named after the @"),
    ],
)
def test_an_output_is_named_only_to_a_metric_over_a_set_that_has_such_a_field(
    text: str, why: str
) -> None:
    assert SetMetric.member(text.partition("@")[0])().output is None
    with pytest.raises(InputError) as raised:
        parse_set_metric(text)
    assert str(raised.value) == f"metric over a set {text!r}: {why}"

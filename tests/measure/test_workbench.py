"""What the workbench makes of passes: once each, in a process of their own."""

from pathlib import Path

import pytest
from tests.support.looking import Looking

from hasten.core.target import Target
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.spool import Spool
from hasten.inputs.models import onnx
from hasten.measure.workbench import Workbench
from hasten.passes.base import Skipped
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.fix_shapes import FixShapes
from hasten.testing import models

MISSING = "keep_float: the model has no node 'nowhere'; it has logits, ..."


@pytest.fixture
def bench(tmp_path: Path, spool: Spool) -> Workbench:
    model = onnx.load(models.linear_classifier(tmp_path))
    model = model.settled_by({name: array[0] for name, array in spool.inputs([0]).items()})
    return Workbench(
        tmp_path, Target.host(), model=model, calibration=spool, calibration_hash="of the spool"
    )


def test_the_work_of_a_model_is_counted_once(bench: Workbench) -> None:
    layers = bench.work()
    assert [layer.operations > 0 for layer in layers] == [True]
    bench.memory_bytes = 0  # whoever starts another process now hears that it has no memory
    assert bench.work() is layers


def test_a_chain_of_passes_is_run_once_and_its_model_taken_up_later(bench: Workbench) -> None:
    chain = (FixShapes(), DynamicQuantization())
    made = bench.transform(chain)
    written = made.path.stat().st_mtime_ns
    assert made.sha256 != bench.model.sha256
    assert bench.transform(chain) == made
    assert made.path.stat().st_mtime_ns == written


def test_a_node_that_is_not_there_is_the_callers_to_mend_in_the_model_that_was_given(
    bench: Workbench,
) -> None:
    with pytest.raises(InputError) as error:
        bench.transform((DynamicQuantization(keep_float=("nowhere",)),))
    assert str(error.value) == MISSING


def test_a_node_that_an_earlier_pass_took_away_is_that_chains_failure(bench: Workbench) -> None:
    chain = (FixShapes(), DynamicQuantization(keep_float=("nowhere",)))
    with pytest.raises(CandidateError) as error:
        bench.transform(chain)
    assert str(error.value) == MISSING
    # What the earlier pass made is whole; nothing half made is left.
    assert [(f / "done.json").exists() for f in (bench.folder / "models").iterdir()] == [True]
    with pytest.raises(CandidateError) as again:
        bench.transform(chain)
    assert str(again.value) == str(error.value)


@pytest.mark.parametrize(
    ("package", "said"), [("this", "it isn't there"), ("colorsys", "it is there")]
)
def test_a_pass_finds_no_package_that_it_says_is_needless(
    bench: Workbench, package: str, said: str
) -> None:
    with pytest.raises(Skipped, match=f"{said}$"):
        bench.transform((Looking(package),))

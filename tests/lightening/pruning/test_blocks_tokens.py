"""Blocks that can be skipped, tokens that are merged, and normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lightening.pruning.networks import made, silence
from torch import nn

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.torch import export
from hasten.lightening.pruning.blocks import candidates, hurts
from hasten.lightening.pruning.importance import sensitivity
from hasten.lightening.pruning.layers import answers
from hasten.lightening.pruning.normalization import recalibrate
from hasten.lightening.pruning.plan import PruningPlan, apply
from hasten.lightening.pruning.tokens import fastest, merging


def test_blocks_that_keep_the_shape_are_found_and_judged() -> None:
    module, sample = made("residual")
    blocks = candidates(module, sample)
    assert {"1", "2"} <= set(blocks)
    assert not {"0", "3", "1.first"} & set(blocks)
    silence(module.get_submodule("1.second.1"))
    before = answers(module, sample)
    found = hurts(module, sensitivity([sample]), ("1", "2"))
    assert found["1"] == 0
    assert found["2"] > 0.001
    assert torch.equal(answers(module, sample)[0], before[0])


def test_merging_no_tokens_changes_nothing() -> None:
    module, sample = made("transformer")
    same = merging(module, 0)
    assert torch.equal(answers(same, sample)[0], answers(module, sample)[0])
    assert same.state_dict().keys() == module.state_dict().keys()


def test_equal_tokens_merge_without_a_trace() -> None:
    module, _ = made("transformer")
    with torch.no_grad():
        module.get_parameter("pos_embed").zero_()
    flat = (torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32).contiguous(),)
    wanted, given = answers(module, flat)[0], answers(merging(module, 20), flat)[0]
    assert torch.allclose(given, wanted, atol=1e-5)


@pytest.mark.seconds
def test_merged_tokens_answer_alike_on_the_engines(tmp_path: Path) -> None:
    module, (x,) = made("transformer")
    merged = apply(module, PruningPlan(merged=16))
    model = export(merged, {"x": x[0].numpy()}, tmp_path).settled_by({"x": x[0].numpy()})
    (wanted,) = answers(merged, (x[:1],))
    assert (wanted - answers(module, (x[:1],))[0]).abs().max() > 1e-4
    target = Target.host().with_threads(1)
    engines: tuple[Engine, ...] = (OpenVino(), OnnxRuntime())
    for engine in engines:
        folder = tmp_path / type(engine).__name__
        folder.mkdir()
        with engine.open(engine.build(model, target, folder), target) as session:
            (given,) = session.run({"x": x[:1].numpy()}).values()
        assert np.abs(given - wanted.numpy()).max() < 1e-4


def test_merging_is_chosen_only_where_it_was_measured_to_be_faster() -> None:
    module, _ = made("transformer")

    def slower(candidate: nn.Module) -> float:
        return 10.0 + float(getattr(candidate.blocks, "merged", 0))

    def faster(candidate: nn.Module) -> float:
        return 100.0 - float(getattr(candidate.blocks, "merged", 0))

    def only_plain(candidate: nn.Module) -> float:
        if hasattr(candidate.blocks, "merged"):
            raise CandidateError("the engine can't sort")
        return 1.0

    assert fastest(module, slower, (4, 8)) is None
    assert fastest(module, only_plain, (4, 8)) is None
    assert fastest(module, faster, (16, 4, 8)) == (16, 84.0)
    assert fastest(module, faster, (16, 4, 8), target_ns=93.0) == (8, 92.0)


def test_tokens_of_other_networks_are_refused() -> None:
    module, _ = made("plain")
    with pytest.raises(
        InputError,
        match=r"^only timm's VisionTransformer can merge tokens; this is a Sequential$",
    ):
        merging(module, 4)


def test_statistics_are_those_of_the_batches_and_modes_stay() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    batches = [(torch.randn(64, 2) * 3 + 5,) for _ in range(2)]
    recalibrate(module, batches)
    norm = module[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, torch.cat([b[0] for b in batches]).mean(0), atol=1e-5)
    assert norm.momentum == 0.1
    assert not any(part.training for part in module.modules())
    with pytest.raises(InputError, match="got none"):
        recalibrate(module, [])

"""Prune, fine-tune one step, export, run: the whole way, without a clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tests.pruning.networks import costs, made

from hasten.engines.base import Engine
from hasten.engines.onnxruntime import OnnxRuntime
from hasten.engines.openvino import OpenVino
from hasten.frontends.torch import export
from hasten.pruning.channels import Prunable
from hasten.pruning.importance import sensitivity
from hasten.pruning.layers import answers, layers
from hasten.pruning.normalization import recalibrate
from hasten.target import Target


def test_a_pruned_and_tuned_network_answers_alike_on_the_engines(tmp_path: Path) -> None:
    module, sample = made("two-headed")
    table = costs(module, sample)
    prunable = Prunable(module, sample, sensitivity([sample]))
    pruned = prunable.to(table, 0.6 * table.predicted_ns(layers(module, sample))).module
    recalibrate(pruned, [sample])
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-3)
    wanted = answers(module, sample)
    given = pruned.train()(*sample).values()
    loss = torch.stack([(g - w).square().mean() for g, w in zip(given, wanted, strict=True)]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    x = sample[0].numpy()
    model = export(pruned.eval(), {"x": x[0]}, tmp_path).settled_by({"x": x[0]})
    target, tuned = Target.host().with_threads(1), answers(pruned, (sample[0][:1],))
    engines: tuple[Engine, ...] = (OpenVino(), OnnxRuntime())
    for engine in engines:
        folder = tmp_path / type(engine).__name__
        folder.mkdir()
        with engine.open(engine.build(model, target, folder), target) as session:
            outputs = session.run({"x": x[:1]})
        assert list(outputs) == ["coarse", "fine"]
        for one, other in zip(outputs.values(), tuned, strict=True):
            assert np.abs(one - other.numpy()).max() < 1e-4


def test_one_look_serves_several_targets() -> None:
    module, sample = made("residual")
    table = costs(module, sample)
    looks = 0
    inner = sensitivity([sample])

    def losses(part):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return inner(part)

    prunable = Prunable(module, sample, losses, blocks=False)
    before = looks
    now_ns = table.predicted_ns(layers(module, sample))
    some, fewer = (prunable.to(table, share * now_ns) for share in (0.8, 0.6))
    assert fewer.macs_after < some.macs_after < some.macs_before
    assert looks == before

"""What the loop promises: it learns, it can be stopped, and nothing good is lost."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.lightening.training.conftest import AMPLE_S, cnn, corners, trainer
from torch import nn

from hasten.core.progress import Progress
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.auroc import Auroc
from hasten.lightening.training.checkpoint import State
from hasten.lightening.training.loop import LOOKS, Recipe
from hasten.lightening.training.objective import Objective


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_network_learns_from_labels_alone(tmp_path: Path) -> None:
    module = cnn()
    came = trainer(tmp_path, module).train()
    assert came.score > 0.8
    assert came.steps == 80
    assert came.epochs == 8
    assert len(came.curve) == LOOKS
    assert came.curve[-1][0] == 1
    assert came.note is None
    assert not module.training


def test_a_network_learns_from_its_teacher_without_a_label(tmp_path: Path) -> None:
    teacher = cnn(16, seed=1)
    trainer(tmp_path / "teacher", teacher).train()
    before = weights(teacher).clone()
    module = cnn()
    came = trainer(
        tmp_path / "student",
        module,
        teacher,
        data=corners(320, labelled=False),
        judged=corners(200, seed=1, labelled=False),
        metric=Agreement(),
    ).train()
    assert came.score > 0.8
    assert torch.equal(weights(teacher), before)


def test_a_stopped_training_goes_on_and_ends_as_if_it_never_was(tmp_path: Path) -> None:
    whole = cnn()
    trainer(tmp_path / "whole", whole).train()

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.outcome and progress.done >= 40:
            raise StopError

    module = cnn()
    with pytest.raises(StopError):
        trainer(tmp_path / "parts", module, listen=stop).train()
    heard: list[Progress] = []
    again = cnn(seed=5)  # a new process begins with other weights
    came = trainer(tmp_path / "parts", again, listen=heard.append).train()
    assert came.steps == 80
    assert min(p.done for p in heard) > 40
    assert torch.allclose(weights(again), weights(whole), atol=1e-5)


def test_the_callers_random_numbers_go_on_as_they_were(tmp_path: Path) -> None:
    module = cnn()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer(tmp_path, module).train()
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_training_is_read_and_not_repeated(tmp_path: Path) -> None:
    module = cnn()
    first = trainer(tmp_path, module).train()
    again, heard = cnn(seed=5), list[Progress]()
    second = trainer(tmp_path, again, listen=heard.append).train()
    assert not heard
    assert second.score == first.score
    assert torch.equal(weights(again), weights(module))


class Spoiled(nn.Module):
    """Answers NaN from its so many-th call on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.inner, self.left = cnn(), calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left -= 1
        out: torch.Tensor = self.inner(x)
        return out * math.nan if self.left < 0 and self.training else out


def test_a_loss_that_is_no_number_stops_it_with_the_last_good_weights(tmp_path: Path) -> None:
    module = Spoiled(22)
    came = trainer(tmp_path, module).train()
    assert came.note == "the loss was nan at step 23"
    assert came.steps == 22
    assert came.score > 0.4
    assert torch.isfinite(weights(module)).all()
    kept = State.read(tmp_path / "checkpoint.pt")
    assert kept is not None
    assert kept.note == came.note


def test_a_loss_that_is_no_number_at_once_fails_the_candidate(tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as error:
        trainer(tmp_path, Spoiled(0), name="pruned").train()
    assert str(error.value) == (
        "pruned: the loss was nan at step 1, and there are no earlier weights to keep"
    )


def test_what_can_not_get_there_is_left_early(tmp_path: Path) -> None:
    asked: list[tuple[float, float]] = []

    def doomed(share: float, score: float) -> str | None:
        asked.append((share, score))
        return "left early" if share >= 0.5 else None

    came = trainer(tmp_path, cnn(), doomed=doomed).train()
    assert came.note == "left early"
    assert came.steps == 40
    assert [share for share, _ in asked] == [0.125, 0.25, 0.375, 0.5]


def test_the_time_that_there_is_settles_how_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.01 * next(looks))  # two looks at it in each step
    monkeypatch.setattr("hasten.lightening.training.loop.time", clock)
    steps = [
        trainer(tmp_path / f"{s}", cnn(), recipe=Recipe(s, epochs=1e6, batch=32)).train().steps
        for s in (1.0, 2.0)
    ]
    assert 40 <= steps[0] <= 50
    assert steps[1] - steps[0] == 50


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    trainer(tmp_path, cnn()).train()
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError) as error:
        trainer(tmp_path, cnn()).train()
    assert str(error.value) == f"{file} is damaged; remove {tmp_path} to train again"


def test_layers_inside_are_learnt_where_outputs_take_no_gradient(tmp_path: Path) -> None:
    class Named(nn.Module):
        """Gives the class and nothing to learn from."""

        def __init__(self, width: int, seed: int) -> None:
            super().__init__()
            self.body, self.head = cnn(width, seed)[:5], cnn(width, seed)[5]  # type: ignore[index]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            best: torch.Tensor = self.head(self.body(x)).argmax(1, keepdim=True)
            return torch.zeros(len(x), 4).scatter(1, best, 1.0)

    teacher = Named(16, 1)
    learnt = nn.Sequential(teacher.body, teacher.head)
    trainer(tmp_path / "teacher", learnt).train()
    student = Named(8, 2)
    came = trainer(
        tmp_path / "student",
        student,
        teacher,
        objective=Objective(feature_weight=1.0),
        metric=Agreement(),
        recipe=Recipe(seconds=AMPLE_S, epochs=16, batch=32, rate=1e-2),
    ).train()
    assert came.score > 0.75
    with pytest.raises(InputError) as error:
        trainer(
            tmp_path / "other",
            Named(8, 2),
            teacher,
            objective=dataclasses.replace(Objective(), teacher_weight=1.0),
        ).train()
    assert str(error.value) == (
        "no gradient reaches the outputs output; give features=1 to learn from inner layers"
    )


def test_the_average_of_weights_is_what_is_kept(tmp_path: Path) -> None:
    module = cnn()
    trainer(tmp_path, module).train()
    state = State.read(tmp_path / "checkpoint.pt")
    assert state is not None
    assert state.best is not None
    last = np.concatenate([t.numpy().ravel() for t in state.module.values()])
    best = np.concatenate([t.numpy().ravel() for t in state.best.values()])
    kept = np.concatenate([t.numpy().ravel() for t in module.state_dict().values()])
    np.testing.assert_array_equal(best, kept)
    assert np.abs(last - best).max() > 1e-4


def test_a_metric_over_a_set_keeps_the_weights_that_rank_best(tmp_path: Path) -> None:
    """Its readings are no scores: their mean is high where all outputs are, whatever they rank."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 1, 8, 8), dtype=np.float32)
    labels = rng.integers(2, size=400)
    x[labels == 1, :, :4, :4] += 1
    known, judged = (
        ArrayDataset({"x": x[rows]}, labels[rows]) for rows in (slice(300), slice(300, 400))
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    recipe = Recipe(seconds=AMPLE_S, epochs=8, batch=32, rate=1e-2)
    came = trainer(
        tmp_path, module, data=known, judged=judged, metric=Auroc(), recipe=recipe
    ).train()
    with torch.no_grad():
        scores = module(torch.from_numpy(judged.inputs(range(100))["x"])).numpy()
    rank = scores[:, 1] - scores[:, 0]
    ones, zeros = rank[judged.labels == 1], rank[judged.labels == 0]
    assert (ones[:, None] > zeros).mean() > 0.8
    assert 0.8 < came.score <= 1
    assert all(0 <= score <= 1 for _, score in came.curve)

"""A network that stays near chance is reported early, with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.lightening.training.conftest import AMPLE_S, cnn, trainer

from hasten.core.progress import Progress
from hasten.lightening.training.chance import Chance, same_answer
from hasten.lightening.training.loop import Recipe
from hasten.lightening.training.network import Network


def test_a_network_near_chance_is_told_of_early_once_and_at_the_end(tmp_path: Path) -> None:
    teacher = cnn(16, seed=1)
    trainer(tmp_path / "teacher", teacher).train()
    heard: list[Progress] = []
    lazy = Recipe(seconds=AMPLE_S, epochs=8, batch=32, rate=1e-12)
    came = trainer(tmp_path, cnn(), teacher, recipe=lazy, listen=heard.append, name="small").train()
    (warned,) = [one for one in heard if one.news]
    assert warned.news is not None
    assert warned.done == 30
    assert warned.news.startswith("warning: small: ")
    assert " after 30 steps is hardly better than one fixed answer for all samples (" in warned.news
    assert warned.news.endswith(
        "): its time suffices for 8 passes over the training data; give more minutes, let nothing "
        "else run on this machine, or choose a smaller architecture"
    )
    assert came.caution is not None
    assert " after 80 steps is hardly better than " in came.caution
    again = trainer(tmp_path, cnn(), teacher, recipe=lazy).train()
    assert again.caution == came.caution


def test_a_network_that_learns_is_not_warned_of(tmp_path: Path) -> None:
    heard: list[Progress] = []
    own = cnn(16, seed=1)
    trainer(tmp_path / "teacher", own).train()
    came = trainer(tmp_path, cnn(), listen=heard.append, reference=Network(own, ("x",))).train()
    assert came.score > 0.8
    assert came.caution is None
    assert not [one for one in heard if one.news]


def test_after_many_passes_the_advice_is_another() -> None:
    assert Chance(0.1, 0.98).caution(0.11, 900, 60.0) == (
        "11.0% after 900 steps is hardly better than one fixed answer for all samples (10.0%): check "
        "that the training data has the labels and the values that the model expects, or give a lower "
        "learning rate"
    )


def test_a_model_that_is_no_better_than_chance_gives_no_caution() -> None:
    assert Chance(0.9, 0.9).caution(0.9, 900, 60.0) is None


def test_a_fixed_answer_is_the_mean_of_the_models_answers() -> None:
    chunks = [
        {"y": np.array([[1.0, 0.0], [0.0, 3.0]], np.float32), "n": np.array([7, 8])},
        {"y": np.array([[2.0, 0.0]], np.float32), "n": np.array([9])},
    ]
    first, last = same_answer(chunks)
    assert first["y"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert last["y"].tolist() == [[1.0, 1.0]]
    assert first["n"].tolist() == [7, 7]

"""What a run says beforehand where even a perfect candidate couldn't be certified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.parts import Parts, lay_out
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.top_k import Top1
from hasten.optimization.data_needed import warnings


def parts(folder: Path, samples: int, each: int | None = None, **settings: Any) -> Parts:
    """Random samples, split; `each` so many of them are a group."""
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(samples).standard_normal((samples, 2))
    groups = None if each is None else np.arange(samples) // each
    data = ArrayDataset({"x": x}, np.zeros(samples, np.int64), groups)
    return lay_out(data, folder, **({"calibration": 300, "seed": 0, "training": None} | settings))


@pytest.mark.parametrize(
    ("scored", "guard", "confidence", "each", "words"),
    [
        (
            Top1(),
            "net",
            0.95,
            None,
            "420 sealed samples can't show a fall of at most 0.5 points, even if nothing changes: "
            "that takes 598, so about 1,155 samples in all",
        ),
        (
            Agreement(),
            "net",
            0.95,
            None,
            "420 sealed samples can't show that at most 0.5% of answers change, even if nothing changes: that takes 598, so about 1,155 samples in all",
        ),
        (
            Top1(),
            "lost",
            0.99,
            None,
            "420 sealed samples can't show losses of at most 0.5 points, even if nothing changes: that takes 919, so about 1,613 samples in all",
        ),
        (
            Top1(),
            "net",
            0.99,
            None,
            "420 sealed samples can't show a fall of at most 0.5 points, even if nothing changes: "
            "that takes 1,027, so about 1,768 samples in all",
        ),
        (
            DetectionF1(),
            "net",
            0.95,
            None,
            "420 sealed samples can't show a fall of at most 0.5 points, even if nothing changes: "
            "that takes 665, so about 1,250 samples in all",
        ),
        (
            Top1(),
            "net",
            0.95,
            5,
            "84 sealed groups can't show a fall of at most 0.5 points, even if nothing changes: "
            "that takes 665, so about 1,010 groups in all",
        ),
    ],
)
def test_too_little_data_is_told_beforehand(
    tmp_path: Path, scored: Metric, guard: Guard, confidence: float, each: int | None, words: str
) -> None:
    little = parts(tmp_path, 900, each)
    assert warnings(little, Promise(scored, guard, 0.005, confidence), 300) == [words]


def test_comparisons_are_counted_by_the_rarer_class_and_told_in_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((900, 2))
    data = ArrayDataset({"x": x}, (np.arange(900) % 4 == 0).astype(np.int64))
    little = lay_out(data, tmp_path, calibration=300, seed=0, training=None)
    (words,) = warnings(little, Promise(Auroc()), 300)
    draws = int((little.sealed.labels == 1).sum())  # type: ignore[union-attr]
    assert words.startswith(
        f"{draws} sealed disjoint comparisons can't show a fall of at most 1 point, even if nothing changes: that takes 333, so about "
    )
    needed = int(words.split("so about ")[1].removesuffix(" samples in all").replace(",", ""))
    assert 3 * 333 * 2 < needed < 4 * 333 * 2


@pytest.mark.parametrize(("samples", "each", "calibration"), [(300, None, 300), (900, 3, 60)])
def test_as_many_as_it_says_are_enough_and_far_fewer_are_not(
    tmp_path: Path, samples: int, each: int | None, calibration: int
) -> None:
    def warned(count: int) -> list[str]:
        split = parts(tmp_path / "split", count, each, calibration=calibration)
        return warnings(split, Promise(Top1(), max_drop=0.02), calibration)

    (words,) = warned(120)
    said = int(words.split("so about ")[1].split()[0].replace(",", ""))
    assert warned((said + 2) * (each or 1)) == []
    assert warned(int(said * 0.97) * (each or 1)) != []


def test_training_data_leaves_all_of_the_data_to_judge_on(tmp_path: Path) -> None:
    training = ArrayDataset({"x": np.random.default_rng(9).standard_normal((50, 2))}, np.zeros(50))
    little = parts(tmp_path, 300, training=training)
    assert warnings(little, Promise(Top1()), 0) == [
        "210 sealed samples can't show a fall of at most 1 point, even if nothing changes: "
        "that takes 299, so about 428 samples in all"
    ]

"""What ships beside the original: figures with intervals, scores, and decisions by a threshold."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.certificate.figures import Answers, Setting, compared
from hasten.core.comparison import Comparison, Figure, Moved, OutputMoved
from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array
from hasten.errors import IntegrityError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.set_metrics import parse_set_metric

ROWS = 400
LABELS = (np.arange(ROWS) % 4 == 0).astype(np.int64)
SCORES = np.clip(
    0.3 * LABELS + np.random.default_rng(0).uniform(0, 0.7, ROWS), 0.001, 0.999
).astype(np.float32)
DECIDES = Pipeline((), (Threshold(threshold=0.5, position=1),))


def outputs(p: Array) -> dict[str, Array]:
    return {"p": np.stack([1 - p, p], axis=1)}


def setting(*names: str, **fields: Any) -> Setting:
    given = {"pipeline": None, "labels": LABELS, "units": np.arange(ROWS), "confidence": 0.95}
    metrics = [parse_set_metric(name) for name in names]
    return Setting(metrics, **{**given, **fields})


def noisy(scale: float, seed: int = 1) -> Array:
    moved = SCORES + scale * np.random.default_rng(seed).standard_normal(ROWS)
    return np.asarray(np.clip(moved, 0, 1), np.float32)


def test_equal_answers_change_nothing_and_are_called_bit_equal() -> None:
    found = setting("auroc", "ks", pipeline=DECIDES).compare("m", outputs(SCORES), outputs(SCORES))
    assert [one.change(0.95) for one in found.figures] == ["unchanged", "unchanged"]
    assert found.in_words()[-1] == (
        "every score of 400 is bit-equal; 0 of 400 decisions change at the threshold 0.5"
    )


def test_the_last_bits_of_float64_are_called_roundings_and_more_is_not() -> None:
    figure = Figure("Brier score", 0.12, 0.12 + 1.4e-17, -2.8e-17, 2.8e-17)
    assert figure.change(0.95) == "unchanged, but for roundings below 1e-12"
    assert "+1.0e-09" in dataclasses.replace(figure, high=1e-9).change(0.95)


def test_a_worse_model_has_an_interval_below_zero_and_a_bound_above_the_fall() -> None:
    auroc, brier = (
        setting("auroc", "brier").compare("m", outputs(SCORES), outputs(noisy(1))).figures
    )
    assert auroc.low < auroc.after - auroc.before < auroc.high < 0
    assert auroc.bound is not None
    assert auroc.bound > auroc.before - auroc.after
    assert auroc.draws == 100
    assert 0 < brier.low < brier.high
    assert "rises by at most" in brier.in_words(0.95)
    assert "falls by at most" in auroc.in_words(0.95)


def test_only_figures_with_independent_draws_are_bounded() -> None:
    names = ("auroc", "ks", "brier", "log_loss", "calibration_error", "average_precision", "f1")
    found = setting(*names).compare("m", outputs(SCORES), outputs(noisy(0.01))).figures
    assert [one.noun for one in found if one.bound is not None] == ["AUROC", "Brier score"]


def test_more_models_to_choose_from_make_a_wider_bound() -> None:
    pair = outputs(SCORES), outputs(noisy(0.02))
    one, four = (setting("auroc", models=k).compare("m", *pair).figures[0].bound for k in (1, 4))
    assert one is not None
    assert four is not None
    assert one < four


def test_groups_are_resampled_whole_and_each_counts_once_in_the_bound() -> None:
    pair = outputs(SCORES), outputs(noisy(0.05))
    alone, grouped = (
        setting("auroc", units=units).compare("m", *pair)
        for units in (np.arange(ROWS), np.arange(ROWS) // 8)
    )
    assert (alone.groups, grouped.groups) == (None, 50)
    assert grouped.figures[0].draws < 50 < alone.figures[0].draws
    assert "each group once" in grouped.figures[0].in_words(0.95)
    assert "over 50 groups" in grouped.how


def test_decisions_are_those_of_the_step_with_its_margin() -> None:
    step = Threshold(threshold=0.5, position=1, margin=0.1)
    before, after = SCORES.copy(), SCORES.copy()
    before[:3], after[:3] = (0.7, 0.7, 0.3), (0.55, 0.45, 0.35)
    found = setting(pipeline=Pipeline((), (step,))).compare("m", outputs(before), outputs(after))
    assert found.moved is not None
    assert (found.moved.equal, found.moved.threshold, found.moved.changed) == (ROWS - 3, 0.5, 2)
    assert found.moved.largest == pytest.approx(0.25, abs=1e-6)
    assert found.moved.mean == pytest.approx(0.45 / ROWS, abs=1e-6)
    assert "2 of 400 decisions (0.5%) change at the threshold 0.5" in found.in_words()[-1]


def test_a_figure_that_fails_costs_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def broken(outputs, labels): return outputs['nothing']\n")
    found = setting("ks:q", f"{tmp_path}/own.py:broken", "auroc").compare(
        "m", outputs(SCORES), outputs(SCORES)
    )
    assert [one.noun for one in found.figures] == ["AUROC"]
    assert found.missing[0] == ("KS: not computed: ks reads 'q'; the model gives p float32 (n, 2)")
    assert found.missing[1] == "broken: not computed: custom ended in KeyError: 'nothing'"
    missing = setting("auroc", labels=1 + LABELS).compare("m", outputs(SCORES), outputs(SCORES))
    assert missing.missing == (
        "AUROC: not computed: auroc: label 2 is none of the 2 classes 0 to 1; if the labels count from 1, "
        "give labels - 1",
    )


def test_too_few_of_a_class_for_an_interval_is_said() -> None:
    labels = np.zeros(ROWS, np.int64)
    labels[:9] = 1
    pair = outputs(SCORES), outputs(noisy(0.1))
    found = setting("auroc", "brier", labels=labels).compare("m", *pair)
    assert [one.noun for one in found.figures] == ["Brier score"]
    assert found.missing == (
        "AUROC: not computed: 9 samples of class 1 are too few for an interval: give at least 10",
    )
    labels[:20] = 1
    by_two = setting("auroc", labels=labels, units=np.arange(ROWS) // 4).compare("m", *pair)
    assert by_two.missing == (
        "AUROC: not computed: 5 groups of class 1 are too few for an interval: give at least 10",
    )


def test_answers_are_kept_chunk_by_chunk_and_a_model_that_failed_has_no_comparison() -> None:
    answers = Answers()
    for rows in (slice(0, 300), slice(300, ROWS)):
        answers("", outputs(SCORES[rows]))
        answers("good", outputs(SCORES[rows]))
    answers("failed", outputs(SCORES[:300]))
    found = compared(setting("auroc"), answers, {"good": "a good one", "failed": "another"})
    assert list(found) == ["good"]
    assert (found["good"].label, found["good"].rows) == ("a good one", ROWS)


def test_answers_too_large_for_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.certificate.figures._KEPT_BYTES", 1000)
    answers = Answers()
    answers("", outputs(SCORES))
    assert answers.too_large
    assert compared(setting("auroc"), answers, {"": "x"}) == {}


def moved(before: dict[str, Array], after: dict[str, Array], **fields: Any) -> Comparison:
    """Compare what a model answered in chunks of 150 rows."""
    answers = Answers(keeps=fields.pop("keeps", False))
    for start in range(0, ROWS, 150):
        for key, given in (("", before), ("m", after)):
            answers(key, {name: array[start : start + 150] for name, array in given.items()})
    return compared(setting(**fields), answers, {"m": "a model"})["m"]


def test_the_largest_difference_of_each_output_of_floats_is_told() -> None:
    before: dict[str, Array] = {
        "values": np.zeros((ROWS, 2, 3)),
        "boxes": np.zeros((ROWS, 0), np.float32),
        "label": np.zeros(ROWS, np.int64),
        "half": np.full((ROWS, 1), np.nan, np.float32),
    }
    after = {name: array.copy() for name, array in before.items()}
    after["values"][[0, 200], 1] = [[0.5, 0, -2], [0, 1, 0]]
    after["label"][:] = 1
    found = moved(before, after)
    assert found.outputs == (
        OutputMoved("values", ROWS - 2, 2.0, 3 / ROWS),
        OutputMoved("boxes", ROWS, 0.0, 0.0),
        OutputMoved("half", ROWS, 0.0, 0.0),
    )
    assert found.in_words() == (
        "of 400 rows: values differs by at most 2, 0.0075 on average, and is bit-equal in 398; "
        "boxes is bit-equal; half is bit-equal",
    )
    assert found.how == ""
    found.check()


def test_outputs_that_can_not_be_compared_are_left_out() -> None:
    before = {name: np.zeros((ROWS, 2)) for name in ("inf", "shape", "gone", "same")}
    after = {"inf": before["inf"] + np.inf, "shape": np.zeros((ROWS, 3)), "same": before["same"]}
    found = moved(before, after)
    assert [one.output for one in found.outputs] == ["same"]
    assert found.in_words() == ("every number of 400 rows is bit-equal",)


def test_only_the_first_of_many_outputs_are_told() -> None:
    before = {f"y{number}": np.zeros((ROWS, 1)) for number in range(7)}
    found = moved(before, before | {"y6": np.ones((ROWS, 1))})
    assert len(found.outputs) == 7
    assert found.in_words()[0].endswith("; y4 is bit-equal; 2 more outputs")


def test_the_output_whose_scores_are_compared_is_told_once() -> None:
    before = outputs(SCORES) | {"more": np.zeros((ROWS, 1))}
    step = Threshold(threshold=0.5, position=1, output="p")
    found = moved(before, before, keeps=True, pipeline=Pipeline((), (step,)))
    assert [one.output for one in found.outputs] == ["more"]
    assert found.in_words() == (
        "every score of 400 is bit-equal; 0 of 400 decisions change at the threshold 0.5",
        "every number of the other outputs of 400 rows is bit-equal",
    )


GOOD = Comparison(
    "m",
    10,
    None,
    0.95,
    (Figure("AUROC", 0.9, 0.8, -0.2, 0.0, bound=0.3, draws=4),),
    Moved(3, 0.2, 0.1),
    outputs=(OutputMoved("more", 10, 0.0, 0.0),),
)


def test_a_comparison_is_read_as_it_was_written() -> None:
    read = from_record(Comparison, to_record(GOOD))
    assert read == GOOD
    read.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "a comparison of 0 rows at the confidence 0.95 is impossible"),
        ({"groups": 11}, "a comparison of 10 rows can't have 11 groups"),
        ({"moved": Moved(11, 0.2, 0.1)}, "a comparison's number of equal scores is out of range"),
        ({"moved": Moved(1, 0.1, 0.2)}, "a comparison's difference of scores is out of range"),
        (
            {"outputs": (OutputMoved("y", 11, 0.2, 0.1),)},
            "a comparison's number of equal rows of y is out of range",
        ),
        (
            {"outputs": (OutputMoved("y", 1, math.inf, 0.1),)},
            "a comparison's difference of y is out of range",
        ),
        ({"figures": {"low": 0.1}}, "a comparison's interval of AUROC is out of range"),
        ({"figures": {"after": math.nan}}, "a comparison's AUROC is out of range"),
        ({"figures": {"bound": 1.5}}, "a comparison's bound of AUROC is out of range"),
        ({"figures": {"draws": 11}}, "a comparison's number of draws of AUROC is out of range"),
        ({"missing": ("x",) * 101}, "a comparison has more than 100 figures"),
    ],
)
def test_an_impossible_comparison_is_refused(fields: dict[str, Any], message: str) -> None:
    if isinstance(fields.get("figures"), dict):
        fields = {"figures": (dataclasses.replace(GOOD.figures[0], **fields["figures"]),)}
    with pytest.raises(IntegrityError) as error:
        dataclasses.replace(GOOD, **fields).check()
    assert str(error.value) == message

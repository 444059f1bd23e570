"""Scores of networks that tag tokens, by counts that a person can check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.choice import parse_metric
from hasten.inputs.metrics.tokens import EntityF1, TokenAccuracy
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.entities import Entities

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
FOUND = np.array([[0, 1, 2, 0, 3, 0], [0, 0, 0, 0, 0, 0]])
TRUTH = np.array([[-100, 1, 2, 0, 0, 3], [-100, 0, 0, 0, -100, -100]])


def scores_of(classes: Array) -> Array:
    return np.eye(len(TAGS), dtype=np.float32)[classes]


@pytest.mark.parametrize("output", [FOUND, scores_of(FOUND)])
def test_the_accuracy_is_the_share_of_right_tokens_that_count(output: Array) -> None:
    assert TokenAccuracy().score({"y": output}, {}, TRUTH).tolist() == [3 / 5, 1]
    same = TokenAccuracy().score({"y": output}, {"y": np.where(TRUTH < 0, 0, TRUTH)}, None)
    assert same.tolist() == pytest.approx([4 / 6, 1])


@pytest.mark.parametrize("output", [FOUND, scores_of(FOUND)])
def test_the_f1_is_that_of_whole_entities(output: Array) -> None:
    # Found A at 1-2 and B at 4; true are A at 1-2 and B at 5.
    assert EntityF1(TAGS).score({"y": output}, {}, TRUTH).tolist() == [0.5, 1]
    nothing = np.zeros_like(FOUND)
    assert EntityF1(TAGS).score({"y": nothing}, {}, TRUTH).tolist() == [0, 1]


@pytest.mark.parametrize("metric", [TokenAccuracy(), EntityF1(TAGS)])
def test_a_sample_without_labels_scores_1_only_where_it_is_unchanged(metric: Metric) -> None:
    labels = np.where(np.array([[True], [False]]), -100, TRUTH)
    own = {"y": FOUND}
    assert metric.score(own, own, labels).tolist() == [1, 1]
    changed = np.where(np.arange(6) == 1, 0, FOUND)
    assert metric.score({"y": changed}, own, labels).tolist() == [0, 1]


def test_a_class_below_0_is_no_entity() -> None:
    padded = {"y": np.array([[1, 2, -9, 0, -1]])}
    assert EntityF1(TAGS).score(padded, padded, None).tolist() == [1]
    assert EntityF1(TAGS).score(padded, {}, np.array([[1, 2, 0, 0, 0]])).tolist() == [1]


def test_tokens_that_do_not_count_do_not_divide_an_entity() -> None:
    # The middle token continues a word, so that its class, and its label, say nothing.
    assert EntityF1(TAGS).score({"y": np.array([[1, 0, 2]])}, {}, np.array([[1, -100, 2]])) == [1]


def test_labels_may_be_longer_than_one_samples_tokens() -> None:
    short = {"y": FOUND[:1, :3]}
    labels = np.array([[-100, 1, 2, -100, -100]])
    assert TokenAccuracy().score(short, {}, labels).tolist() == [1]
    with pytest.raises(InputError, match=r"integers \(n, 3\), below 0 for tokens that"):
        TokenAccuracy().score(short, {}, TRUTH[:1])


def test_answers_are_unchanged_where_every_token_is() -> None:
    for metric in (TokenAccuracy(), EntityF1(TAGS)):
        assert metric.unchanged({"y": FOUND}, {"y": scores_of(FOUND)}).tolist() == [True, True]
        moved = np.where(FOUND == 3, 4, FOUND)
        assert metric.unchanged({"y": FOUND}, {"y": moved}).tolist() == [False, True]


def test_tags_come_from_a_file_or_from_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("\n".join(TAGS) + "\n")
    assert parse_metric(f"entity_f1:{tmp_path}/tags.txt") == EntityF1(TAGS)
    assert parse_metric(f"entity_f1:{tmp_path}/tags.txt@y") == EntityF1(TAGS, "y")
    for name, text in (("tags.txt", "\r\n".join(TAGS)), ("tags.json", json.dumps(TAGS))):
        (tmp_path / name).write_text(text, "utf-8-sig")  # as editors of Windows write it
        assert parse_metric(f"entity_f1:{tmp_path}/{name}") == EntityF1(TAGS)
    around = Pipeline((), (Entities(TAGS, "y"),))
    assert parse_metric("entity_f1").around(around) == EntityF1(TAGS, "y")
    assert EntityF1(TAGS).around(None) == EntityF1(TAGS)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"entity_f1 needs the tag of each class: name a file"):
        EntityF1().score({"y": FOUND}, {}, TRUTH)
    with pytest.raises(InputError, match=r"entity_f1 has 2 tags; a token is of class 3"):
        EntityF1(TAGS[:2]).score({"y": FOUND}, {}, TRUTH)
    with pytest.raises(InputError, match=r"the tags no\.txt: no such file"):
        parse_metric("entity_f1:no.txt")
    with pytest.raises(InputError, match=r"token_accuracy reads scores \(n, tokens, classes\) or"):
        TokenAccuracy().score({"y": np.zeros((2, 6), np.float32)}, {}, TRUTH)
    with pytest.raises(InputError, match=r"reads labels that are classes: .* got float64 \(n, 6\)"):
        TokenAccuracy().score({"y": FOUND}, {}, TRUTH * 1.0)

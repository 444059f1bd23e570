"""Hashes of categories, held against CatBoost's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.inputs.pipeline import city_hash
from hasten.inputs.pipeline.city_hash import WordHashes, word_hash

LETTERS = list("abcXYZ 0189-_.äß€中🙂")


def test_texts_of_every_length_have_the_hashes_that_catboost_gives_them(tmp_path: Path) -> None:
    catboost = pytest.importorskip("catboost")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(LETTERS[: 4 if size % 2 else 99], size)) for size in range(270)]
    words += ["".join(rng.choice(LETTERS[:14], size)) for size in (511, 512, 513, 1000, 4096)]
    pool = catboost.Pool([[word] for word in words], np.arange(len(words)), cat_features=[0])
    model = catboost.CatBoostRegressor(
        iterations=2, depth=1, thread_count=1, verbose=0, allow_writing_files=False
    ).fit(pool)
    model.save_model(str(tmp_path / "model.json"), format="json", pool=pool)
    record = json.loads((tmp_path / "model.json").read_text())
    known = {one["value"]: one["hash"] for one in record["features_info"]["cat_features_hash"]}
    assert len(known) == len(set(words))
    assert {word: word_hash(word) % 2**32 for word in words} == known


def test_hashes_are_signed_and_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(city_hash, "_MOST_KEPT", 100)
    hashes = WordHashes()
    found = {number: hashes[number] for number in range(1000)}
    assert min(found.values()) < 0 < max(found.values())
    assert all(hashes[str(number)] == found[number] for number in range(1000))
    assert len(hashes) <= 100
    hashes["x" * 1_000_000]
    assert sum(map(sys.getsizeof, hashes)) < 100_000

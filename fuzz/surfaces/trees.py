"""Files of XGBoost, LightGBM and CatBoost, in each of their forms."""

from __future__ import annotations

import json
import random
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import Surface
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hasten.errors import HastenError

_SUFFIXES = {b"tree": ".txt", b"CBM1": ".cbm"}
_NUMBER = re.compile(rb"(?<=[ =])-?\d+(\.\d+)?(e[-+]?\d+)?")
_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"2",
    b"999",
    b"2147483647",
    b"-2147483648",
    b"1e308",
    b"nan",
    b"inf",
    b"",
)


class TreeFiles(Surface):
    """Files of trees; what is read is written as ONNX."""

    name = "trees"
    most_s = 10.0
    most_mib = 160

    def seeds(self) -> list[bytes]:
        return [*self._trained_once]

    @cached_property
    def _trained_once(self) -> list[bytes]:
        """The files; `harmful` asks for them again, and to train them takes seconds."""
        import catboost  # noqa: F401
        import lightgbm  # noqa: F401
        import sklearn.ensemble  # noqa: F401
        import xgboost  # noqa: F401

        # A process that has trained has threads, which the processes that are forked from it would wait for.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            return apart.submit(_trained, str(self.folder)).result()

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.1:
            return rng.choice((changed_bytes, grown))(seed, rng)
        if seed[:1] == b"{" and seed[1:2] in b'"\n ':
            change = changed_leaves if rng.random() < 0.7 else changed_record
            return json.dumps(change(json.loads(seed), rng, ("1", "-1", "nan", "x"))).encode()
        places = list(_NUMBER.finditer(seed)) if seed.startswith(b"tree") else []
        if not places:
            return changed_bytes(seed, rng)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.choice(places)
            seed = seed[: place.start()] + rng.choice(_NUMBERS) + seed[place.end() :]
            places = list(_NUMBER.finditer(seed))
        return seed

    def check(self, data: bytes) -> str:
        import lightgbm

        from hasten.inputs.models.source import find_model

        suffix = _SUFFIXES.get(data[:4], ".ubj" if data[1:2].isalpha() else ".json")
        path = self.folder / f"input{suffix}"
        path.write_bytes(data)
        try:
            # One thread: a process that was forked from one with threads would wait for these.
            lightgbm.basic._LIB.LGBM_SetMaxThreads(1)  # type: ignore[attr-defined]
            with threadpool_limits(1, "openmp"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                find_model(path).export(self.folder)
        except HastenError as error:
            return refused(error)
        return "written"


def _trained(folder: str) -> list[bytes]:
    """Train a small model or two of each library, and return their files."""
    import catboost
    import lightgbm
    import xgboost
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    x, y = x[::3].astype(np.float32), y[::3]
    words = np.column_stack([x[:, :2].astype(object), np.array(["a", "b"], object)[y % 2]])
    boosted = xgboost.XGBClassifier(n_estimators=2, max_depth=2, n_jobs=1).fit(x, y)
    made = [bytes(boosted.get_booster().save_raw(form)) for form in ("json", "ubj")]
    settings: dict[str, Any] = {
        "verbose": -1,
        "num_threads": 1,
        "num_leaves": 6,
        "min_data_in_leaf": 2,
    }
    settings |= {"min_data_per_group": 1, "cat_smooth": 0.0, "max_cat_to_onehot": 1}
    parts = np.column_stack([x[:, :3], np.arange(len(x)) % 7 + (y == 1)])
    several = {"objective": "multiclass", "num_class": 3}
    for more in (several, {"linear_tree": True}):
        data = lightgbm.Dataset(parts, y, categorical_feature=[3])
        light = lightgbm.train({**settings, **more}, data, 2)
        made.append(light.model_to_string().encode())
    quiet: dict[str, Any] = {"iterations": 2, "depth": 2, "verbose": False, "thread_count": 1}
    numbers = catboost.CatBoostClassifier(**quiet, allow_writing_files=False).fit(x, y)
    worded = catboost.CatBoostRegressor(**quiet, allow_writing_files=False)
    worded.fit(words, x[:, 3], cat_features=[2])
    for model, form in ((numbers, "cbm"), (numbers, "json"), (worded, "cbm"), (worded, "json")):
        path = Path(folder, f"seed.{form}")
        model.save_model(str(path), format=form)
        made.append(path.read_bytes())
    return made

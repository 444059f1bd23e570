"""The zoo's models of rows: fitted by scikit-learn in seconds, written as ONNX by skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import Arrays, Case


def _fitted(kind: str) -> Any:
    from sklearn import ensemble, linear_model, neural_network, pipeline, preprocessing, svm
    from sklearn.datasets import load_wine

    found = load_wine()
    settings = {"random_state": 0}
    models: dict[str, Any] = {
        "forest": lambda: ensemble.RandomForestClassifier(100, **settings),
        "boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=60, **settings),
        "mlp": lambda: pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            neural_network.MLPClassifier((64, 64), max_iter=300, **settings),
        ),
        "logistic": lambda: pipeline.make_pipeline(
            preprocessing.PolynomialFeatures(2),
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(max_iter=2000),
        ),
        "svm": lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC(**settings)),
    }
    return models[kind]().fit(found.data.astype(np.float32), found.target)


def _wines(rng: np.random.Generator, count: int) -> Arrays:
    """Return rows between two wines each, so that none repeats."""
    from sklearn.datasets import load_wine

    rows = load_wine().data
    first, second = (rows[rng.integers(0, len(rows), count)] for _ in range(2))
    share = rng.random((count, 1))
    return {"x": (share * first + (1 - share) * second).astype(np.float32)}


def _with_gaps(rng: np.random.Generator, count: int) -> Arrays:
    """Return such rows of which a tenth of the values is missing."""
    rows = _wines(rng, count)["x"]
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return {"x": rows}


def _boosted(library: str) -> Any:
    """Return trees that were fitted to rows with missing values."""
    from sklearn.datasets import load_wine

    found = load_wine()
    rows = found.data.copy()
    rows[np.random.default_rng(0).random(rows.shape) < 0.1] = np.nan
    if library == "lightgbm":
        import lightgbm

        trees = lightgbm.LGBMClassifier(n_estimators=60, random_state=0, verbose=-1)
        return trees.fit(rows, found.target)
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    return trees.fit(rows.astype(np.float32), found.target)


def _as_text(model: Any, folder: Path) -> str:
    model.booster_.save_model(folder / "model.txt")
    return str(folder / "model.txt")


def _predicted(model: Any) -> Callable[[Arrays], Arrays]:
    return lambda rows: {"probabilities": model.booster_.predict(rows["rows"])}


def _rows_with_gaps(rng: np.random.Generator, count: int) -> Arrays:
    return {"rows": _with_gaps(rng, count)["x"].astype(np.float64)}


_ROWS = {
    "metric": "agreement:probabilities",
    "samples": 1000,
    "outputs": ("label", "probabilities"),
    "multiplications": 0,
}
CASES = (
    Case("forest", "trees, skl2onnx", partial(_fitted, "forest"), _wines, **_ROWS, quick=True),
    Case("boosting", "trees, skl2onnx", partial(_fitted, "boosting"), _wines, **_ROWS),
    Case(
        "mlp-rows",
        "MLP, skl2onnx",
        partial(_fitted, "mlp"),
        _wines,
        **{**_ROWS, "multiplications": 13 * 64 + 64 * 64 + 64 * 3},
        quick=True,
    ),
    Case(
        "polynomial",
        "pipeline, skl2onnx",
        partial(_fitted, "logistic"),
        _wines,
        **{**_ROWS, "multiplications": 105 * 3},
    ),
    Case("svm", "kernel machine, skl2onnx", partial(_fitted, "svm"), _wines, **_ROWS),
    Case(
        "gaps",
        "trees, missing values, skl2onnx",
        partial(_boosted, "sklearn"),
        _with_gaps,
        **_ROWS,
        quick=True,
        pipeline=f"before:\n  - row: {{columns: [{', '.join(f'c{i}' for i in range(13))}], missing: nan}}\n",
    ),
    Case(
        "gaps-lightgbm",
        "trees, missing values, LightGBM's file",
        partial(_boosted, "lightgbm"),
        _rows_with_gaps,
        **{**_ROWS, "outputs": ("probabilities",)},
        ways=("script",),
        brought=_as_text,
        own=_predicted,
    ),
)

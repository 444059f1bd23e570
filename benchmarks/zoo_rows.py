"""The zoo's models of rows: fitted by scikit-learn in seconds, written as ONNX by skl2onnx."""

from __future__ import annotations

from functools import partial
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
)

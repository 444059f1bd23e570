"""A small real model: a linear classifier of scikit-learn's handwritten digits, fitted in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from hasten.core.tensors import Array

FITTED_ON = 400
COARSE = "tests.support.rivals:Coarse"


def digits() -> tuple[Array, Array]:
    """Return the images, float32 `(n, 1, 8, 8)` in [0, 1], that nothing was fitted on, and their labels."""
    x, y = _all()
    return x[FITTED_ON:], y[FITTED_ON:]


def classifier(folder: Path) -> Path:
    """Write a ridge regression of the classes as an ONNX file, right on about 93% of the images."""
    x, y = (part[:FITTED_ON] for part in _all())
    flat = np.hstack([x.reshape(len(x), 64), np.ones((len(x), 1))]).astype(np.float64)
    weights = np.linalg.solve(flat.T @ flat + np.eye(65), flat.T @ np.eye(10)[y])
    text = """<ir_version: 8, opset_import: ["": 17]>
        digits (float[batch, 1, 8, 8] image) => (float[batch, 10] logits) {
            flat = Flatten <axis = 1> (image)
            logits = Gemm(flat, w, b)
        }"""
    proto = onnx.parser.parse_model(text)
    for name, array in (("w", weights[:64]), ("b", weights[64])):
        own = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        proto.graph.initializer.append(own)
    onnx.save(proto, folder / "digits.onnx")
    return folder / "digits.onnx"


def _all() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    images = (found.images[order] / 16).astype(np.float32)[:, np.newaxis]
    return images, found.target[order].astype(np.int64)

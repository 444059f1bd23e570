"""Try an installed hasten: optimize a small model, load the bundle and compare its answers.

`make release` runs this with the Python of an empty environment, in a folder outside the repository. It needs
the extra `optimize`. It exits with 1 and one line where hasten isn't the one that was installed, a command fails
or an answer is wrong.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 64] x) => (float[N, 10] y) <float[64, 256] first, float[256, 10] last> {
    hidden = MatMul(x, first)
    positive = Relu(hidden)
    y = MatMul(positive, last)
}
"""
SAMPLES = 400


def main() -> None:
    """Run each command as a user would, and end with what was tried."""
    import hasten

    place = Path(hasten.__file__)
    if not place.is_relative_to(sys.prefix):
        raise SystemExit(f"trial: hasten comes from {place}, not from {sys.prefix}")
    run("--version")
    run("doctor")
    weights, samples = write_inputs()
    run(
        "optimize",
        "model.onnx",
        "--data",
        "data.npz",
        "--effort",
        "quick",
        "--time-limit",
        "30s",
        "--max-drop",
        "2%",
        "--out",
        "model.hasten",
    )
    run("inspect", "model.hasten")
    expected = np.maximum(samples @ weights[0], 0) @ weights[1]
    with hasten.load("model.hasten") as loaded:
        answers = np.stack(
            [next(iter(loaded(sample[None]).values()))[0] for sample in samples[:50]]
        )
    same = (answers.argmax(1) == expected[:50].argmax(1)).mean()
    if same < 0.96:
        raise SystemExit(f"trial: only {same:.0%} of the bundle's answers are those of the model")
    print(
        f"trial: hasten {hasten.__version__} on Python {sys.version.split()[0]} optimized a model and answered"
    )


def write_inputs() -> tuple[list[np.ndarray], np.ndarray]:
    """Write model.onnx and data.npz; return the weights and the samples."""
    chance = np.random.default_rng(0)
    weights = [
        (chance.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
        for shape in ((64, 256), (256, 10))
    ]
    model = onnx.parser.parse_model(MODEL)
    for name, value in zip(("first", "last"), weights, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, "model.onnx")
    samples = chance.standard_normal((SAMPLES, 64)).astype(np.float32)
    np.savez("data.npz", x=samples)
    return weights, samples


def run(*words: str) -> None:
    """Run a command of the hasten beside this Python; exit where it fails."""
    print("$ hasten", *words, flush=True)
    program = Path(sys.executable).with_name("hasten")
    code = subprocess.run([program, *words], check=False).returncode
    if code:
        raise SystemExit(f"trial: hasten {words[0]} ended with {code}")


if __name__ == "__main__":
    main()

"""Whole runs on a small real model: their record says how many answers change, as a server counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession
from tests.support.digits import COARSE, classifier, digits
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.tensors import Array
from hasten.inputs.data.samples import tensors_hash
from hasten.serving.monitoring.judging import Judging

pytestmark = pytest.mark.seconds

STEPS = np.float32(6)
MINE = """
import numpy as np
def score(outputs, labels):
    return (np.argmax(outputs["logits"], 1) == labels).astype(float)
"""


@pytest.mark.parametrize(
    ("metric", "groups", "method"),
    [
        ("top1", False, "Clopper-Pearson"),
        ("top1", True, "betting"),
        ("mine", False, "Clopper-Pearson"),
    ],
)
def test_a_server_counts_on_the_sealed_data_what_the_record_states(
    tmp_path: Path, metric: str, groups: bool, method: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    images, labels = digits()
    data: dict[str, Any] = {"image": images, "labels": labels}
    if groups:
        data["groups"] = np.arange(len(images)) // 2
    with quick_runs(races=False):
        result = hasten.optimize(
            classifier(tmp_path),
            data,
            max_drop=0.06,
            calibration=60,
            engines=(COARSE,),
            metric=f"{tmp_path}/mine.py:score" if metric == "mine" else metric,
            out=tmp_path / "b.hasten",
        )
    assert result.status == "certified"
    manifest = read(result.bundle)
    assert manifest.certificate is not None
    stated = manifest.certificate["changed"]
    judging = Judging(manifest, 0.0)
    changed = []
    model = InferenceSession(str(tmp_path / "digits.onnx"))
    for one in _sealed(result.bundle, images)[:, np.newaxis]:
        # What ships is the same model on rounded inputs.
        served, exact = (
            {"logits": model.run(["logits"], {"image": image})[0]}
            for image in (np.round(one * STEPS) / STEPS, one)
        )
        changed.append(judging.changed(served, exact))
    assert stated["share"] == pytest.approx(np.mean(changed))
    assert 0 < stated["share"] < stated["bound"] < 0.1
    assert stated["method"] == method
    assert judging.answers is not None
    assert judging.answers.null.limit >= stated["bound"]


def _sealed(bundle: Path, images: Array) -> Array:
    """Return the sealed images, whose hashes stand in the evidence."""
    hashes = set(json.loads((bundle / "evidence" / "sealed.json").read_bytes())["hashes"])
    return np.array([one for one in images if tensors_hash({"image": one}).hex() in hashes])

"""The page about rows: its Python blocks run as they stand, and its JSON is answered as it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.testing import models

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "rows.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
BODIES = re.findall(r"^curl .* -d '(.*)'$", PAGE, re.MULTILINE)
SCORE = """
    m (float[N, 3] x) => (float[N, 1] y)
    <int64[1] axes = {1}> { s = ReduceSum<keepdims = 1>(x, axes)  y = Sigmoid(s) }
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that the page speaks of."""
    folder = tmp_path_factory.mktemp("page")
    model = models.write(folder / "desk.onnx", SCORE, {})
    pipeline = Pipeline((Row(("age", "income", "years")),), (Threshold(),))
    return bundle_of(folder, model, engine=CompiledC(), pipeline=pipeline)


def test_the_blocks_of_the_page_run_as_they_stand(bundle: Path) -> None:
    assert len(BLOCKS) == 3
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "".join(BLOCKS)],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "{'positive': True, 'score': 1.0, 'threshold': 0.5}" in done.stdout


def test_the_rows_of_the_page_are_answered_by_a_server(bundle: Path) -> None:
    decision = {"positive": True, "score": 1.0, "threshold": 0.5}
    expected: list[dict[str, object]] = [
        {"decision": decision},
        {"decisions": [decision, decision]},
    ]
    with ServerThread(place_of(bundle, compiled=str(bundle.parent))) as server:
        url = f"{server.http_url}/v2/models/desk/infer"
        for body, answer in zip(BODIES, expected, strict=True):
            kind = {"Content-Type": "application/json"}
            found = httpx.post(url, content=body.encode(), headers=kind, timeout=60)
            told = {"model_name": "desk", "model_version": "1", **answer}
            assert json.loads(found.text) == told

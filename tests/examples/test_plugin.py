"""The plug-in of examples/plugin, installed from outside the tree: nothing here knows of it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.support.bundles import forge

import hasten
from hasten.bundle import load, read, requirements
from hasten.engines.installed import tried_on
from hasten.errors import IntegrityError

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
RUN = '''
import json, sys, urllib.request
from pathlib import Path

import numpy as np
import onnx
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, bundle_of, place_of

import hasten
from hasten.bundle import read, requirements
from hasten.engines.base import Engine
from hasten.engines.installed import tried_on
from hasten.evaluation.doctor import examine
from hasten.inputs.pipeline.config import from_yaml
from hasten.passes.base import Pass
from hasten.reporting.publication import report as publish

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
grades (float[batch, 1024] x) => (float[batch, 4] grade) {
    [wide] h = MatMul (x, w)
    [relu] r = Relu (h)
    [last] grade = Gemm (r, v, b)
}
"""
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
# So wide that the thin product is many times as fast, whatever else the machine does.
w = (rng.standard_normal((1024, 8)) @ rng.standard_normal((8, 1024)) / 90).astype(np.float32)
v, b = rng.standard_normal((1024, 4), dtype=np.float32), np.zeros(4, np.float32)
proto = onnx.parser.parse_model(TEXT)
for name, weight in (("w", w), ("v", v), ("b", b)):
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
onnx.save(proto, folder / "grades.onnx")
x = rng.standard_normal((800, 1024), dtype=np.float32)
exact = np.maximum(x @ w, 0) @ v
np.savez(folder / "eval.npz", x=x, labels=exact.argmax(axis=1))
out = folder / "grades.hasten"
with quick_runs(passes=Pass.member("low_rank"), rounds=6):
    hasten.optimize(
        folder / "grades.onnx",
        folder / "eval.npz",
        max_drop=0.05,
        metric="within:1",
        engines=("numpy",),
        out=out,
    )
    publish(out, folder / "page.html")
with hasten.load(out) as model:
    loaded = model(x[:1])["grade"]
    properties = dict(model.properties())
body = {"inputs": [{"name": "x", "shape": [1, 1024], "datatype": "FP32", "data": x[0].tolist()}]}
with ServerThread(place_of(out)) as server:
    asked = urllib.request.Request(
        f"http://{server.host}/v2/models/grades/infer", json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        served = json.load(answer)["outputs"][0]["data"]
(folder / "steps.yaml").write_text(
    "before: [features]\\nafter:\\n- grade: {labels: [poor, fair, good, best]}"
)
graded = bundle_of(
    folder,
    folder / "grades.onnx",
    "graded",
    engine=Engine.member("numpy")(),
    pipeline=from_yaml(folder / "steps.yaml"),
)
with hasten.load(graded) as model:
    decided = model.decide(x[0].tobytes())
with ServerThread(place_of(graded)) as server:
    asked = urllib.request.Request(
        f"http://{server.host}/v2/models/graded/infer",
        x[0].tobytes(),
        {"Content-Type": "application/octet-stream"},
        method="POST",
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        decision = json.load(answer)["decision"]
manifest = read(out)
print(json.dumps({
    "tried": tried_on("host"),
    "doctor": dict(examine())["numpy"],
    "status": manifest.status,
    "engine": manifest.winner.engine,
    "passes": manifest.winner.passes,
    "metric": manifest.metric,
    "origin": manifest.environment["hasten.engines:numpy"],
    "requirements": requirements(manifest, ["serve"]),
    "loaded": loaded.ravel().tolist(),
    "served": served,
    "exact": exact[0].tolist(),
    "runs": properties["runs"],
    "decided": decided,
    "decision": decision,
}))
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plug-in as an installer leaves it, built from its sources alone."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=folder / "source",
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def with_plugin(site: Path, *command: str) -> str:
    """Run Python with the plug-in installed, in a process of its own; return what it prints."""
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def seen(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a bundle of the plug-in's parts, and what was seen of it where they are installed."""
    folder = tmp_path_factory.mktemp("run")
    found: dict[str, Any] = json.loads(with_plugin(site, "-c", RUN, str(folder)).splitlines()[-1])
    return folder, found


def test_its_engine_pass_and_metric_are_chosen_and_certified(
    seen: tuple[Path, dict[str, Any]],
) -> None:
    _, found = seen
    assert found["tried"] == ["onnxruntime", "openvino", "litert", "compiled", "numpy"]
    assert found["doctor"] == "0.1.0"
    assert found["status"] == "certified"
    assert found["engine"] == {"type": "numpy"}
    *_, made = [step["type"] for step in found["passes"]]  # fixed shapes may be faster, too
    assert made == "low_rank"
    assert found["metric"] == {"type": "within", "distance": 1, "output": None}


def test_its_bundle_is_loaded_served_and_reported(seen: tuple[Path, dict[str, Any]]) -> None:
    folder, found = seen
    assert found["runs"] == "numpy"
    assert found["loaded"] == pytest.approx(found["exact"], rel=1e-2, abs=1e-2)
    assert found["served"] == pytest.approx(found["loaded"], rel=1e-4, abs=1e-4)
    assert "the share of near hits" in (folder / "page.html").read_text()
    assert found["origin"] == "hasten-numpy"
    assert found["requirements"][0].startswith("hasten[serve]==")
    assert "hasten-numpy==0.1.0" in found["requirements"]


def test_its_steps_decide_where_the_bundle_is_loaded_and_served(
    seen: tuple[Path, dict[str, Any]],
) -> None:
    _, found = seen
    best = max(found["exact"])
    grade = ("poor", "fair", "good", "best")[found["exact"].index(best)]
    assert found["decided"] == {"grade": grade, "score": pytest.approx(best, rel=1e-4)}
    assert found["decision"] == {"grade": grade, "score": pytest.approx(best, rel=1e-4)}


def test_where_it_is_not_installed_its_bundle_says_what_is_missing_and_names_nothing_to_install(
    seen: tuple[Path, dict[str, Any]],
) -> None:
    bundle = seen[0] / "grades.hasten"
    assert "numpy" not in tried_on("host")
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == (
        "the engine 'numpy' isn't installed: it comes from 'hasten-numpy', as the bundle says; install that "
        "package if you trust it"
    )
    lines = requirements(read(bundle))
    assert not [line for line in lines if line.startswith("hasten-numpy")]
    assert lines[-1] == (
        "# The engine 'numpy' comes from 'hasten-numpy', as the bundle says: add that package if you "
        "trust it"
    )


def test_where_it_is_not_installed_a_bundle_with_its_steps_is_not_called_damaged(
    seen: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle = shutil.copytree(seen[0] / "graded.hasten", tmp_path / "graded.hasten")
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == (
        f"{bundle}: the step 'features' isn't installed: it comes from 'hasten-numpy', as the bundle says; "
        "install that package if you trust it"
    )

    def older(record: Any) -> None:
        del record["environment"]["hasten.steps:features"]

    forge(bundle, older)
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value).startswith(
        f"{bundle}: the step 'features' isn't installed: it's no step of hasten's own; there are: decode, "
    )


def test_where_it_is_not_installed_certify_says_what_metric_is_missing(
    seen: tuple[Path, dict[str, Any]],
) -> None:
    folder = seen[0]
    with pytest.raises(IntegrityError) as error:
        hasten.certify(folder / "grades.hasten", folder / "eval.npz")
    assert str(error.value) == (
        f"{folder / 'grades.hasten'}: the metric 'within' isn't installed: it comes from 'hasten-numpy', as "
        "the bundle says; install that package if you trust it; or give another metric="
    )


def test_its_own_tests_pass(site: Path) -> None:
    with_plugin(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/plugin/tests")

"""What a bare installation says: a module that isn't there is named, and the extra that brings it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.testing import models

pytestmark = pytest.mark.seconds

WITHOUT = """
import sys
for module in {missing}:
    sys.modules[module] = None  # an import of it then fails as if it weren't installed
{then}
"""
QUICK_LACKS = (
    *(
        "matplotlib",
        "nncf",
        "onnxslim",
        "openvino",
        "ai_edge_litert",
        "ai_edge_quantizer",
        "PIL",
        "simplejpeg",
        "sympy",
        "sklearn",
        "yaml",
    ),
)
"""What `hasten[quick]` doesn't bring."""
OPTIMIZE = ("matplotlib", "nncf", "onnx", "onnxslim", "PIL", "rich", "scipy", "yaml")
ALL = (*OPTIMIZE, "onnxruntime", "openvino", "torch", "grpc", "orjson", "httptools", "nacl", "av")


def said(missing: tuple[str, ...], then: str) -> tuple[int, list[str]]:
    code = WITHOUT.format(missing=missing, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("command", ["optimize", "bench", "certify"])
def test_a_command_that_needs_an_extra_names_it(command: str) -> None:
    options = [] if command == "bench" else ["--data", "d.npz"]
    then = f"from hasten.cli import main; main({[command, 'm', *options]})"
    line = f"hasten: hasten.{command} needs the module scipy: pip install 'hasten[optimize]'"
    assert said(OPTIMIZE, then) == (2, [line])


def test_each_command_has_its_help_without_any_extra() -> None:
    then = (
        "from click.testing import CliRunner; from hasten.cli import main\n"
        "for name in main.commands:\n"
        "    done = CliRunner().invoke(main, [name, '--help'])\n"
        "    if done.exit_code: print(name, repr(done.exception), done.output)"
    )
    assert said(ALL, then) == (0, [])


@pytest.mark.parametrize("demo", ["photos", "digits"])
@pytest.mark.parametrize("missing", ["scipy", "torch"])
def test_a_demo_that_lacks_a_module_names_it(demo: str, missing: str) -> None:
    then = f"from hasten.cli import main; main(['demo', '{demo}'])"
    line = f"hasten: the demos need the module {missing}: pip install 'hasten[demo]'"
    assert said((missing,), then) == (2, [line])


@pytest.mark.parametrize("missing", ["scipy", "matplotlib.axes"])
def test_a_report_that_lacks_a_module_names_it(missing: str) -> None:
    then = "from hasten.cli import main; main(['report', 'b.hasten', '--json'])"
    line = f"hasten: hasten.report needs the module {missing}: pip install 'hasten[optimize]'"
    assert said((missing,), then) == (2, [line])


def test_python_gives_the_same_error() -> None:
    code, lines = said(OPTIMIZE, "import hasten; hasten.optimize")
    assert code == 1
    assert lines[-1] == (
        "hasten.errors.InputError: hasten.optimize needs the module scipy: "
        "pip install 'hasten[optimize]'"
    )


def test_what_loads_and_inspects_bundles_needs_no_extra() -> None:
    then = "from hasten import load; from hasten.cli import main; main(['inspect', 'no.hasten'])"
    line = "hasten: no bundle at no.hasten: no such file or folder"
    assert said((*OPTIMIZE, "torch"), then) == (2, [line])
    code, lines = said((*OPTIMIZE, "torch"), "from hasten.cli import main; main(['doctor'])")
    assert code == 0
    assert "[optimize]:   missing: pip install 'hasten[optimize]' adds search and certify" in lines


def test_a_profile_needs_an_extra_only_to_read_an_onnx_file(tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    line = "hasten: an ONNX model needs the extra: pip install 'hasten[optimize]'"
    then = f"from hasten.cli import main; main(['profile', '{model}'])"
    assert said((*OPTIMIZE, "torch"), then) == (2, [line])


def test_signatures_name_their_extra() -> None:
    key = "RWTATJS2uNRjXI+OoL03BTuzyQfb4ddKerqyxGBbi370PRY5D/m2q/vR"
    line = "hasten: signatures need the module nacl: pip install 'hasten[sign]'"
    for command in (["inspect", "m.hasten", "--trusted", key], ["keygen", "/dev/null/k"]):
        then = f"from hasten.cli import main; main({command})"
        assert said(("nacl",), then) == (2, [line])


@pytest.mark.parametrize("missing", ["httptools", "orjson", "uvloop"])
def test_serving_names_its_extra(missing: str) -> None:
    then = "from hasten.cli import main; main(['serve', 'model.hasten'])"
    line = f"hasten: serving needs the module {missing}: pip install 'hasten[serve]'"
    assert said((missing,), then) == (2, [line])


def test_a_server_and_its_load_test_need_nothing_of_the_optimizer() -> None:
    then = (
        "import hasten.serving.supervision.process, hasten.serving.grpc.service, hasten.serving.http.routes\n"
        "import hasten.evaluation.loadtest.generator\n"
        "loaded = sys.modules.keys()\n"
        "print(sorted(m for m in loaded if m.startswith(('hasten.passes', 'hasten.optimization.search', "
        "'hasten.inputs.models', 'onnxruntime', 'openvino'))))"
    )
    assert said((*OPTIMIZE, "torch", "ray", "opentelemetry"), then) == (0, ["[]"])


def test_the_quick_extra_makes_a_bundle_and_says_what_it_does_without(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(tmp_path / "eval.npz", x=x)
    words = ["optimize", str(models.linear_classifier(tmp_path)), "--data", f"{tmp_path}/eval.npz"]
    words += ["--max-drop", "5%", "--out", f"{tmp_path}/b.hasten"]
    then = (
        "from tests.support.quick import quick_runs\n"
        "from hasten.cli import main\n"
        f"with quick_runs(passes=True, plots=True, rounds=6): main({words})\n"
    )
    code, lines = said(QUICK_LACKS, then)
    assert code == 0, lines
    assert (
        "- Not installed, so their candidates aren't tried: openvino, onnxslim, nncf; pip install "
        "'hasten[optimize]' installs them."
    ) in lines
    assert (
        "- There is no report, because matplotlib isn't installed: pip install 'hasten[optimize]', then "
        "hasten report makes it from the bundle."
    ) in lines
    assert not (tmp_path / "b.hasten" / "report.html").exists()
    assert not [line for line in lines if "No module" in line]


def test_a_pass_that_lacks_a_module_names_its_extra_where_it_was_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "eval.npz", x=np.zeros((300, 16), np.float32))
    words = ["optimize", str(models.linear_classifier(tmp_path)), "--data", f"{tmp_path}/eval.npz"]
    words += ["--pass", "nncf_quantization", "--out", f"{tmp_path}/b.hasten"]
    code, lines = said(QUICK_LACKS, f"from hasten.cli import main; main({words})")
    assert (code, lines[-1]) == (
        2,
        "hasten: the pass nncf_quantization needs the module nncf: pip install 'hasten[optimize]'",
    )


def test_opening_a_report_without_what_draws_it_names_the_extra(tmp_path: Path) -> None:
    then = f"from hasten.cli import main; main(['open', '{tmp_path}'])"
    line = "hasten: hasten open needs the module matplotlib.axes: pip install 'hasten[optimize]'"
    assert said(QUICK_LACKS, then) == (2, [line])

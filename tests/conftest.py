"""What holds for every test: nothing is sent, written outside a temporary folder, or left running."""

import contextlib
import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from tests.support import stranded
from tests.support.compiled_once import compiled_once
from tests.support.kept_compiled import only_below
from tests.support.nominal_times import only_hanging_engines_are_limited
from tests.support.once import made_once, shared
from tests.support.quick import quick_runs

import hasten
from hasten.core.telemetry import OFF
from hasten.testing import models

pytest.register_assert_rewrite("hasten.testing.engine_tests", "hasten.testing.pass_tests")
os.environ.update(OFF)
os.environ["HASTEN_CACHE"] = "off"  # a test that is about the cache names a folder of its own
os.environ["HASTEN_LEDGER"] = "off"  # and one that is about the ledger likewise
_STATE = tempfile.TemporaryDirectory(prefix="hasten-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name  # else tests leave evidence in the home folder
_HURRIED = tempfile.TemporaryDirectory(prefix="hasten-hurried-")
os.environ["HASTEN_TEST_HURRIED"] = _HURRIED.name  # one value for all tests: see OneEnvironment
# torch's threads spin while they wait: beside other tests they take thrice the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles all that it imports
sys.dont_write_bytecode = False
stranded.mark()
_FONTS = tempfile.TemporaryDirectory(prefix="hasten-fonts-")
os.environ["MPLCONFIGDIR"] = (
    _FONTS.name
)  # else matplotlib lists this machine's fonts in the home folder
# By default the same examples in every run, so that one that fails is the fault of what was changed;
# whoever looks for new ones says --hypothesis-profile=explore, and keeps what is found as @example.
hypothesis.settings.register_profile("explore", database=None, deadline=None, max_examples=2000)
_SAME = hypothesis.settings(hypothesis.settings.get_profile("explore"), derandomize=True)
hypothesis.settings.register_profile("ci", _SAME, max_examples=200)
hypothesis.settings.register_profile("home", _SAME, max_examples=25)
hypothesis.settings.load_profile("home")  # --hypothesis-profile=ci for more

_BEGAN_S = time.monotonic()
_MANY_MODULES = 200
_kept = {"modules": 0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="SECONDS",
        help="skip each test that would begin later than that, unless it needs a device",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test for which no time is left; pytest-timeout would fail the whole session instead."""
    limit_s = item.config.getoption("--begin-within")
    if limit_s is None or item.get_closest_marker("device") is not None:
        return
    if time.monotonic() - _BEGAN_S >= limit_s:
        pytest.skip(f"not begun within {limit_s:g} s")


def pytest_collectstart() -> None:
    """Look for no garbage until all tests are collected, which makes hardly any."""
    gc.disable()


def pytest_collection_finish() -> None:
    _keep_what_is_imported()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Keep what a test was the first to import; torch's exporter alone brings a thousand modules."""
    if len(sys.modules) >= _kept["modules"] + _MANY_MODULES:
        _keep_what_is_imported()


def _keep_what_is_imported() -> None:
    """Let no collection of garbage look through what is imported by now, which stays to the end."""
    gc.collect()
    gc.freeze()
    _kept["modules"] = len(sys.modules)


class OneEnvironment:
    """Lets all tests share one server of workers, which pytest's name for the test would end."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self) -> None:
        os.environ["PYTEST_CURRENT_TEST"] = "one of hasten's"

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self) -> None:
        os.environ["PYTEST_CURRENT_TEST"] = "one of hasten's"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(OneEnvironment())  # a conftest has no say in a session's fixtures


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Fail a file that leaves a program running: it could hold up the end of the whole suite."""
    before = stranded.running()
    yield
    left = stranded.left(before)
    assert not left, f"left running, and killed now: {left}"


@pytest.fixture(autouse=True)
def _log_as_at_first() -> None:
    """Begin with hasten's log as Python makes it: clients of an earlier test's server can change it.

    Warnings are taken whatever level a library gave to the root of all logs.
    """
    log = logging.getLogger("hasten")
    log.setLevel(logging.WARNING)
    log.propagate, log.handlers[:] = True, []
    logging.disable(logging.NOTSET)


def _seed_torch() -> None:
    """Let networks draw the same weights whatever tests ran before, which a bound may hang on.

    `torch.manual_seed` takes a thousand times as long: it keeps the call's stack for devices that aren't in use.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="module", autouse=True)
def _seeded_file() -> None:
    """Seed what a file's fixtures draw."""
    _seed_torch()


@pytest.fixture(autouse=True)
def _seeded_test() -> None:
    """Seed what a test draws."""
    _seed_torch()


@pytest.fixture(scope="session", autouse=True)
def _bytecode_of_installed_modules() -> Iterator[None]:
    """Leave nothing beside a user's module that a test reads; the tests themselves are compiled by now."""
    with only_below(sys.prefix, Path(hasten.__file__).parent):
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """Let tests that run the same model share what the C compiler made of it, now or in an earlier suite.

    Where pytest's cache can't be written, as in a checkout that is read-only, this suite alone does.
    """
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # `-p no:cacheprovider`: none
    lasting = None
    with contextlib.suppress(OSError):
        if cache is not None and os.access(folder := cache.mkdir("compiled"), os.W_OK):
            lasting = folder
    with compiled_once(shared(tmp_path_factory) / "compiled", lasting):
        yield


@pytest.fixture(scope="session")
def exact_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the linear classifier on ONNX Runtime; don't change it, copy it."""
    with made_once(tmp_path_factory, "exact") as (folder, missing):
        if missing:
            make_exact_bundle(folder)
    return folder / "model.hasten"


def make_exact_bundle(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(folder / "eval.npz", x=x)
    with quick_runs(plots=True):
        hasten.optimize(
            models.linear_classifier(folder),
            folder / "eval.npz",
            max_drop=0.05,
            out=folder / "model.hasten",
            engines=("onnxruntime",),
        )


@pytest.fixture(scope="session")
def certified_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle of a whole run in which rivals died; don't change it, copy it."""
    with made_once(tmp_path_factory, "certified") as (folder, missing):
        if missing:
            make_certified_bundle(folder)
    return folder / "b.hasten"


def make_certified_bundle(folder: Path) -> None:
    with quick_runs(plots=True, fresh=True), only_hanging_engines_are_limited():
        hasten.optimize(
            models.linear_classifier(folder),
            np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32),
            max_drop=0.05,
            metric="agreement",
            out=folder / "b.hasten",
            engines=("tests.support.rivals:Unlucky",),
            trial_limit_s=3.0,
        )


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file that certifies 127.0.0.1 by itself; `key.pem` beside it is its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate

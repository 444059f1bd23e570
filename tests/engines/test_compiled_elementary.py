"""Elementary functions of compiled models against numpy's and scipy's in double precision."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from hasten.core.c_compiler import Compiler

Array = npt.NDArray[Any]

_NAMES = ("exp", "log", "sigmoid", "tanh", "sin", "cos")
_LIMITS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Each function as a loop over an array, compiled as a model is."""
    text = resources.files("hasten.engines.compiled").joinpath("c", "math.c").read_text()
    loops = [
        f"""__attribute__((visibility("default")))
        void loop_{name}(const {kind} *x, const {kind} *z, {kind} *y, long n) {{
            for (long i = 0; i < n; i++) y[i] = {call};
        }}"""
        for name, kind, call in (
            *((f"{one}_f", "float", f"{one}_f(x[i])") for one in (*_NAMES, "erf")),
            *((f"{one}_d", "double", f"{one}_d(x[i])") for one in _NAMES),
            ("pow_f", "float", "pow_f(x[i], z[i])"),
            ("pow_d", "double", "pow_d(x[i], z[i])"),
            ("fmod_f", "float", "fmod_f(x[i], z[i])"),
        )
    ]
    path = tmp_path_factory.mktemp("elementary") / "elementary.so"
    path.write_bytes(Compiler.find().compile("\n".join((text, *loops))).content)
    return ctypes.CDLL(str(path))


def called(library: ctypes.CDLL, name: str, x: Array, z: Array | None = None) -> Array:
    """Return a function of each number."""
    x = np.ascontiguousarray(x, np.float32 if name.endswith("_f") else np.float64)
    z = x if z is None else np.ascontiguousarray(np.broadcast_to(z, x.shape), x.dtype)
    y = np.empty_like(x)
    pointers = (ctypes.c_void_p(one.ctypes.data) for one in (x, z, y))
    getattr(library, f"loop_{name}")(*pointers, ctypes.c_long(x.size))
    return y


def ulps(found: Array, exact: Array) -> Array:
    """Return errors in units of the last place of the exact number."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(found.dtype)
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    step = np.spacing(np.maximum(np.abs(rounded), np.finfo(found.dtype).tiny))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(found.astype(np.longdouble) - exact) / step
    return np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf)).astype(np.float64)


def exactly(function: Callable[..., Array], *x: Array) -> Array:
    """Return a function with more digits than the numbers have, where numpy has them."""
    with np.errstate(all="ignore"):
        return np.asarray(function(*(one.astype(np.longdouble) for one in x)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


_DENSE: dict[str, tuple[Callable[..., Array], Array]] = {
    "exp": (np.exp, np.linspace(-110, 95, 400_001)),
    "log": (np.log, np.geomspace(1e-45, 3e38, 400_001)),
    "sigmoid": (_sigmoid, np.linspace(-80, 110, 400_001)),
    "tanh": (np.tanh, np.linspace(-12, 12, 400_001)),
    "sin": (np.sin, np.linspace(-3000, 3000, 100_001)),
    "cos": (np.cos, np.linspace(-3000, 3000, 100_001)),
}


@pytest.mark.parametrize(
    ("name", "most"),
    [("exp", 1.5), ("log", 1.5), ("sigmoid", 2.5), ("tanh", 2.5), ("sin", 1.0), ("cos", 1.0)],
)
def test_a_function_in_single_precision_is_off_by_few_last_places(
    library: ctypes.CDLL, name: str, most: float
) -> None:
    function, x = _DENSE[name]
    x = np.concatenate((x, np.geomspace(1e-30, 1, 20_001))).astype(np.float32)
    x = x[: len(x) if name != "log" else 400_001]
    assert ulps(called(library, f"{name}_f", x), exactly(function, x)).max() <= most


@pytest.mark.parametrize(
    ("name", "most"),
    [("exp", 2.0), ("log", 2.5), ("sigmoid", 3.5), ("tanh", 4.0)],
)
def test_a_function_in_double_precision_is_off_by_few_last_places(
    library: ctypes.CDLL, name: str, most: float
) -> None:
    function, x = _DENSE[name]
    x = x * 6 if name in ("exp", "sigmoid") else x
    assert ulps(called(library, f"{name}_d", x), exactly(function, x)).max() <= most


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves_in_double_precision_are_exact_to_some_last_places_of_1(
    library: ctypes.CDLL, name: str
) -> None:
    function, x = _DENSE[name]
    for scale in (1e-3, 1.0, 100.0):
        found = called(library, f"{name}_d", x * scale)
        assert np.abs(found - exactly(function, x * scale)).max() < 3e-16 + 1e-22 * scale * 3000


def test_the_error_function_is_off_by_few_last_places(library: ctypes.CDLL) -> None:
    x = np.linspace(-6, 6, 400_001).astype(np.float32)
    assert ulps(called(library, "erf_f", x), special.erf(x.astype(np.float64))).max() <= 4.0


@pytest.mark.parametrize(
    "name", [*(f"{one}_f" for one in (*_NAMES, "erf")), *(f"{one}_d" for one in _NAMES)]
)
def test_limits_are_those_of_the_function(library: ctypes.CDLL, name: str) -> None:
    functions = {"sigmoid": _sigmoid, "erf": special.erf}
    function = functions.get(name[:-2]) or getattr(np, name[:-2])
    with np.errstate(all="ignore"):
        wanted = function(_LIMITS)
    np.testing.assert_array_equal(called(library, name, _LIMITS), wanted)
    large = np.array([1e30, -1e30, 3e38, -3e38])
    found = called(library, name, large)
    if name[:-2] in ("exp", "sigmoid", "tanh", "erf"):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found, function(large))
    if name[:-2] == "log":
        assert np.isnan(found[[1, 3]]).all()


def test_powers_are_c_s(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    x, z = np.abs(rng.standard_normal(100_000)) * 10, rng.standard_normal(100_000) * 12
    x, z = x.astype(np.float32), z.astype(np.float32)
    assert ulps(called(library, "pow_f", x, z), exactly(np.power, x, z)).max() <= 0.51
    exact = exactly(np.power, x, z)
    assert (np.abs(called(library, "pow_d", x, z) - exact) <= 1e-13 * exact).all()
    bases = np.array([-2, -1.5, -0.0, 0.0, 1, -1, 2, np.inf, -np.inf, np.nan, 0.5])
    powers = np.array([0, 1, -1, 2, 3, -3, 0.5, np.inf, -np.inf, np.nan, 1.5])
    x, z = (one.ravel() for one in np.meshgrid(bases, powers))
    with np.errstate(all="ignore"):
        wanted = np.power(x, z)
    for name in ("pow_f", "pow_d"):
        found = called(library, name, x, z)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        kept = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found)[kept], np.signbit(wanted)[kept])


def test_rests_are_c_s(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((2, 100_000)) * [[1e5], [3]]).astype(np.float32)
    np.testing.assert_array_equal(called(library, "fmod_f", x, z), np.fmod(x, z))
    x, z = np.array([5.0, -5, np.inf, 0, 5]), np.array([0.0, np.inf, 2, 3, np.nan])
    with np.errstate(all="ignore"):
        wanted = np.fmod(x, z)
    np.testing.assert_array_equal(called(library, "fmod_f", x, z), wanted)


def test_rests_of_numbers_of_any_size_are_c_s(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    x, z = (10 ** rng.uniform(-38, 38, (2, 5000)) * rng.choice([-1, 1], (2, 5000))).astype("f4")
    assert np.array_equal(called(library, "fmod_f", x, z), np.fmod(x, z))


@pytest.mark.parametrize("name", ["sin_f", "cos_f", "sin_d", "cos_d"])
def test_waves_of_any_number_are_no_more_than_1(library: ctypes.CDLL, name: str) -> None:
    x = 10 ** np.random.default_rng(0).uniform(0, 38, 5000)
    assert (np.abs(called(library, name, x)) <= 1 + 1e-9).all()

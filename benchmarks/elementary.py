"""Fits of the polynomials in src/hasten/engines/compiled/c/math.c, with their largest weighted errors.

    python benchmarks/elementary.py

Least squares whose weights grow where the error is large come close to the smallest largest error.
Coefficients are printed from the highest power to the lowest, as Horner's scheme takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import polynomial
from scipy import special

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]
_PLACES, _TURNS = 4000, 60


def fit(function: Function, low: float, high: float, degree: int, weight: Function) -> Any:
    """Return coefficients from the lowest power on, and the largest error times its weight."""
    angles = np.pi * (np.arange(_PLACES) + 0.5) / _PLACES
    x = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    scaled = (x - (low + high) / 2) / ((high - low) / 2)
    wanted, weights = function(x), weight(x)
    powers = np.vander(scaled, degree + 1, increasing=True)
    shares = np.ones(_PLACES)
    for _ in range(_TURNS):
        root = np.sqrt(shares)
        by = (powers * (weights * root)[:, None], wanted * weights * root)
        found, *_ = np.linalg.lstsq(*by, rcond=None)
        errors = np.abs((powers @ found - wanted) * weights)
        shares = shares * (errors / errors.max() + 1e-3)
        shares /= shares.sum()
    made = polynomial.Polynomial(found, domain=[low, high], window=[-1, 1]).convert()
    return made.coef, errors.max()


def exp_rest(r: Array) -> Array:
    """Return p of exp(r) = 1 + r + r^2 p(r)."""
    series = sum((r**k / math.factorial(k + 2) for k in range(4)), np.zeros_like(r))
    near = np.abs(r) < 1e-3
    safe = np.where(near, 1.0, r)
    return np.where(near, series, (np.exp(safe) - 1 - safe) / safe**2)


def log_rest(f: Array) -> Array:
    """Return p of log(1 + f) = f - f^2 / 2 + f^3 p(f)."""
    near = np.abs(f) < 3e-2
    series = sum(((-f) ** k / (k + 3) for k in range(12)), np.zeros_like(f))
    safe = np.where(near, 1.0, f)
    return np.where(near, series, (np.log1p(safe) - safe + safe**2 / 2) / safe**3)


def tanh_rest(s: Array) -> Array:
    """Return p of tanh(x) = x + x^3 p(x^2)."""
    near = s < 1e-4
    x = np.sqrt(np.where(near, 1.0, s))
    return np.where(near, -1 / 3 + 2 * s / 15 - 17 * s * s / 315, (np.tanh(x) - x) / x**3)


def erf_rest(s: Array) -> Array:
    """Return p of erf(x) = x + x p(x^2)."""
    near = s < 1e-6
    x = np.sqrt(np.where(near, 1.0, s))
    slope = 2 / math.sqrt(math.pi)
    return np.where(near, slope - 1 - s * slope / 3, special.erf(x) / x - 1)


def erf_tail(x: Array) -> Array:
    """Return p of 1 - erf(x) = exp(-x^2 - p(x))."""
    return np.asarray(-np.log(special.erfcx(x)))


def _one(x: Array) -> Array:
    return np.ones_like(x)


HALF = math.log(2) / 2 * 1.01
FITS: tuple[tuple[str, Function, float, float, int, Function, bool], ...] = (
    ("exp_f", exp_rest, -HALF, HALF, 5, lambda r: r * r + 1e-9, False),
    ("exp_d", exp_rest, -HALF, HALF, 10, lambda r: r * r + 1e-9, True),
    ("log_f", log_rest, math.sqrt(0.5) - 1, math.sqrt(2) - 1, 8, lambda f: f * f + 1e-9, False),
    ("tanh_f", tanh_rest, 0, 0.625**2, 4, lambda s: s + 1e-9, False),
    ("tanh_d", tanh_rest, 0, 0.625**2, 10, lambda s: s + 1e-9, True),
    ("erf_f, below 1", erf_rest, 0, 1, 6, _one, False),
    ("erf_f, from 1 on", erf_tail, 0.9, 4, 7, _one, False),
)

if __name__ == "__main__":
    for name, function, low, high, degree, weight, double in FITS:
        found, error = fit(function, low, high, degree, weight)
        shown = [float(one).hex() if double else f"{np.float32(one):.10e}f" for one in found[::-1]]
        print(f"{name}: largest error {error:.1e}", *shown, sep="\n  ")

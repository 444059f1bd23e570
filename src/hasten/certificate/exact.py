"""Exact bounds for 0/1 scores: on one share (Clopper-Pearson), and on a drop between paired ones.

The test of a drop is unconditional. Of `n` inputs, `lost` were right and became wrong, and `gained`
were wrong and became right. The null hypothesis is p_lost - p_gained >= drop, and q = p_gained is
the nuisance. A drop below 0 is a rise, which the mirrored test uses. Four facts make the p-value an
upper bound, not just the best value on a grid:

1. Outcomes are ordered by the upper limit of Tango's score interval (Stat. Med. 17:891, 1998). An
   outcome's region is every outcome with no larger limit. Since the region doesn't depend on the
   drop that is tested, its p-value falls as that drop rises: the bound found by bisection and the
   verdict at one drop can't disagree (Buehler, JASA 52:482, 1957).
2. The region is closed under one fewer lost and under one more gained, so its probability falls in
   p_lost and rises in p_gained (couple two samples that differ by mass moved to or from the
   unchanged cell). The supremum over drops of `drop` or more is therefore on p_lost = q + drop,
   with q = -drop and p_lost = 0 in place of every smaller q where the drop is below 0.
3. There the probability is a polynomial f(q) of degree n whose derivatives are bounded beforehand:
   |f^(k)| <= sqrt(k! n^k J^k) / 2, with J = 1/(q+d) + 1/q + 4/(1-2q-d) the Fisher information of
   one sample. Proof: f^(k)(q) = E[(1_R - 1/2) L_k] with L_k = p^(k)/p; on a line through the
   simplex E[p(q+s) p(q+t) / p(q)^2] = (1 + s t J)^n, whose coefficients give
   E[L_k^2] = k! n!/(n-k)! J^k; then Cauchy-Schwarz. Also |f^(k)| <= (4 n)^k / 2, from k-fold
   differences of an indicator. So f is known between a few Chebyshev nodes to within a stated
   error, and its maximum with it.
4. q is held to a Clopper-Pearson interval from `gained`, and the chance `gamma` that the interval
   misses is added to the p-value (Berger and Boos, JASA 89:1012, 1994).
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hasten.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

GAMMA = 1e-6

_NODES = 16
_GRID = 1024
_INTERPOLATION_ERROR = 1e-6
_LOG_TAIL = 30.0  # each tail left out of a sum holds at most exp(-30) = 1e-13, and is added back
_ROUNDING = 1e-9  # error of the special functions, with room to spare
_BISECTION_WIDTH = 1e-4  # relative width of the bound, far below what is printed


def clopper_pearson_upper(count: int, n: int, alpha: float) -> float:
    """Return an upper confidence bound on a share (Clopper and Pearson, Biometrika 1934).

    Returns:
        The share p at which P(Binomial(n, p) <= count) = alpha; 1.0 where count = n.

    Raises:
        InputError: count is outside 0..n, n < 1, or alpha is outside (0, 1).
    """
    _check_level(alpha)
    if not 0 <= count <= n or n < 1:
        raise InputError(
            f"a share needs 0 <= count <= n and n >= 1: got count={count} and n={n}; check the counts"
        )
    return 1.0 if count == n else float(special.betaincinv(count + 1, n - count, 1 - alpha))


def tango_statistic(lost: Ints, gained: Ints, n: int, drop: float) -> Floats:
    """Return Tango's score statistic for p_lost - p_gained = drop: about normal, lower is safer.

    (b - c - n d) / sqrt(n (2 q + d (1 - d))), with q the maximum-likelihood p_gained under that
    drop: the larger root of 2 n q^2 - B q - c d (1 - d) = 0, B = b (1 + d) + c (1 - d) - 2 n d.

    Args:
        lost: Counts b, of any shape that broadcasts with `gained`.
        gained: Counts c.
        drop: Drop d, in (-1, 1].
    """
    linear = lost * (1 + drop) + gained * (1 - drop) - 2 * n * drop
    constant = gained * (drop * (1 - drop))
    root = np.sqrt(np.maximum(linear**2 + 8 * n * constant, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Two forms of one root: each where it doesn't subtract nearly equal numbers.
        q = np.where(linear >= 0, (linear + root) / (4 * n), 2 * constant / (root - linear))
    variance = n * (2 * q + drop * (1 - drop))
    return np.asarray(
        (lost - gained - n * drop) / np.sqrt(np.maximum(variance, 1e-300)), dtype=np.float64
    )


def paired_p_value(
    lost: int, gained: int, n: int, drop: float, *, alpha: float = 0.05, gamma: float = GAMMA
) -> float:
    """Bound from above the exact unconditional p-value of "accuracy fell by `drop` or more".

    Args:
        lost: Number of samples that became wrong.
        gained: Number of samples that became right.
        n: Number of samples.
        drop: Drop as an absolute share, in (-1, 1); below 0 it means "accuracy rose by at most
            -drop, or fell".
        alpha: Level whose score limits order the outcomes. The p-value is valid for any level fixed
            beforehand, and most powerful for tests at about that level.
        gamma: Chance that the nuisance lies outside its interval, added to the p-value; 0 searches
            the whole range.

    Returns:
        The bound, between 2e-6 and 1. Without gamma it is above the supremum that it bounds by at
        most about 1e-6 and 0.03% of itself.

    Raises:
        InputError: the counts don't fit n, or the drop or a level is out of its range.
    """
    _check_counts(lost, gained, n)
    _check_level(alpha)
    if not -1 < drop < 1:
        raise InputError(f"a drop is a share between -1 and 1: got {drop}; 1% is 0.01")
    return _largest_probability(_smallest_gained(lost, gained, n, alpha), gained, n, drop, gamma)


def paired_certifies(lost: int, gained: int, n: int, max_drop: float, alpha: float) -> bool:
    """Whether drops of `max_drop` or more are rejected at level `alpha`; see `paired_p_value`."""
    return paired_p_value(lost, gained, n, max_drop, alpha=alpha) <= alpha


def paired_refutes(lost: int, gained: int, n: int, max_drop: float, alpha: float) -> bool:
    """Whether drops of `max_drop` or less are rejected at level `alpha`; see `paired_p_value`.

    This is the test of `paired_certifies`, mirrored: lost counts as gained, and the drop as a rise.
    """
    return paired_p_value(gained, lost, n, -max_drop, alpha=alpha) <= alpha


def paired_upper_bound(lost: int, gained: int, n: int, alpha: float) -> float:
    """Return an upper confidence bound on the drop, as an absolute share between 0 and 1.

    The bound is at most `max_drop` (to within 0.01% of itself) if and only if `paired_certifies`.
    Bisection finds it because the p-value falls as the drop rises: one region serves all drops, and
    the set of nuisances shrinks. The rejected end of the last bracket is returned, never its
    middle.

    Raises:
        InputError: the counts don't fit n, or the level is outside (0, 1).
    """
    _check_counts(lost, gained, n)
    _check_level(alpha)
    region = _smallest_gained(lost, gained, n, alpha)

    def rejects(drop: float) -> bool:
        return _largest_probability(region, gained, n, drop, GAMMA) <= alpha

    guess = max(_tango_upper(lost, gained, n, alpha), 1 / n**2)
    low, high = 0.0, min(guess * 1.25, 1.0)
    while high < 1 and not rejects(high):
        low, high = high, min(high * 1.5, 1.0)
    while high - low > _BISECTION_WIDTH * high and high > _BISECTION_WIDTH / n:
        middle = (low + high) / 2
        low, high = (low, middle) if rejects(middle) else (middle, high)
    return high


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(
            f"alpha is a level between 0 and 1: got {alpha}; 95% confidence is alpha=0.05"
        )


def _check_counts(lost: int, gained: int, n: int) -> None:
    if lost < 0 or gained < 0 or n < 1 or lost + gained > n:
        raise InputError(
            f"lost and gained are counts among n samples: got lost={lost}, gained={gained} and n={n}; check the counts"
        )


def _tango_upper(lost: int, gained: int, n: int, alpha: float) -> float:
    """Return the drop at which Tango's statistic falls to the normal quantile of alpha."""
    cutoff = float(special.ndtri(alpha))
    b, c = np.array(lost), np.array(gained)
    low, high = -1.0, 1.0
    while high - low > 1e-15 * max(1.0, abs(high)) and low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if tango_statistic(b, c, n, middle) <= cutoff else (middle, high)
    return high


def _smallest_gained(lost: int, gained: int, n: int, alpha: float) -> Ints:
    """Return the observed outcome's region: for each lost count 0..n, the fewest gained in it.

    n + 1 stands for none. The running minimum closes the region under one fewer lost. The statistic
    is monotone already (Sidik, Stat. Med. 22:265, 2003), so the minimum only makes that certain.
    """
    limit, cutoff = _tango_upper(lost, gained, n, alpha), float(special.ndtri(alpha)) + 1e-9
    b = np.arange(n + 1)
    low, high = np.zeros(n + 1, dtype=np.int64), n - b + 1
    while np.any(low < high):
        middle = (low + high) // 2
        inside = (tango_statistic(b, np.minimum(middle, n - b), n, limit) <= cutoff) | (
            middle > n - b
        )
        low, high = np.where(inside, low, middle + 1), np.where(inside, middle, high)
    fewest = np.where(high > n - b, n + 1, high)
    fewest[lost] = min(fewest[lost], gained)
    return np.minimum.accumulate(fewest[::-1])[::-1]


def _largest_probability(region: Ints, gained: int, n: int, drop: float, gamma: float) -> float:
    """Return an upper bound on the region's probability over the nuisance interval, plus gamma."""
    first, last = max(0.0, -drop), (1 - drop) / 2
    low, high = first, last
    if gamma > 0:
        low = 0.0 if gained == 0 else float(special.betaincinv(gained, n - gained + 1, gamma / 2))
        high = max(first, min(last, clopper_pearson_upper(gained, n, gamma / 2)))
    # Above `last` no nuisance allows so large a drop, and `first` stands for all values below it.
    low = max(first, min(low, last))
    matrix, stretch = _interpolation()
    nodes = np.cos((2 * np.arange(_NODES) + 1) * math.pi / (2 * _NODES))
    largest = 0.0
    for start, stop in _pieces(n, drop, low, high):
        q = (start + stop) / 2 + (stop - start) / 2 * nodes
        largest = max(largest, float(np.max(matrix @ _probability(region, n, drop, q))))
    return min(1.0, largest * stretch + _INTERPOLATION_ERROR + _ROUNDING + gamma)


def _probability(region: Ints, n: int, drop: float, q: Floats) -> Floats:
    """Return P(region) at p_lost = q + drop and p_gained = q, tails included; shape of q, (k,)."""
    # p (1 - p) is at most this for every p between the ends; the radius is by Bernstein's
    # inequality.
    variance = n * (q.max() + drop) * min(1.0, 1 - q.min() - drop)
    radius = math.sqrt(2 * _LOG_TAIL * variance) + _LOG_TAIL / 3
    first = max(0, math.floor(n * (q.min() + drop) - radius))
    stop = min(n, math.ceil(n * (q.max() + drop) + radius)) + 1
    b = np.arange(first, stop)
    b = b[region[first:stop] <= n - b]
    p_lost, fewest = (q + drop)[:, None], region[b]
    choose = special.gammaln(n + 1) - special.gammaln(b + 1) - special.gammaln(n - b + 1)
    mass = np.exp(choose + special.xlogy(b, p_lost) + special.xlog1py(n - b, -p_lost))
    share = np.minimum(q[:, None] / np.maximum(1 - p_lost, 1e-300), 1.0)
    at_least = np.where(
        fewest == 0,
        1.0,
        special.betainc(np.maximum(fewest, 1), np.maximum(n - b - fewest + 1, 1), share),
    )
    return np.asarray((mass * at_least).sum(axis=1) + 2 * math.exp(-_LOG_TAIL), dtype=np.float64)


def _pieces(n: int, drop: float, low: float, high: float) -> Iterator[tuple[float, float]]:
    """Cut [low, high] into pieces on which the interpolation error is at most _INTERPOLATION_ERROR.

    With m Chebyshev nodes on a half-width h that error is at most max|f^(m)| h^m / (2^(m-1) m!).
    The two bounds on f^(m) in the module's docstring give the two half-widths. J is convex, so it
    is largest at an end.
    """
    uniform = (_INTERPOLATION_ERROR * math.factorial(_NODES)) ** (1 / _NODES) / (2 * n)
    by_information = 2 * (_INTERPOLATION_ERROR * math.sqrt(math.factorial(_NODES))) ** (1 / _NODES)

    def root_information(q: float) -> float:
        cells = (q + drop, q, 1 - 2 * q - drop)
        return (
            math.sqrt(n * (1 / cells[0] + 1 / cells[1] + 4 / cells[2]))
            if min(cells) > 0
            else math.inf
        )

    if low == high:
        yield low, high
    start = low
    while start < high:
        half = min(by_information / root_information(start), (high - start) / 2)
        while half > uniform and half * root_information(start + 2 * half) > by_information:
            half *= 0.7
        stop = start + 2 * max(half, uniform)
        # A remnant too short to move a float would loop forever.
        stop = high if stop >= high - 1e-15 else stop
        yield start, stop
        start = stop


@cache
def _interpolation() -> tuple[Floats, float]:
    """Return the matrix from Chebyshev nodes to a finer grid, and a factor on the maximum there.

    The maximum of a polynomial of degree m is at most its maximum over N Chebyshev points, times
    1 / cos(pi m / (2 N)) (Ehlich and Zeller, Math. Z. 86:41, 1964).
    """
    orders = np.arange(_NODES)
    at_nodes = np.cos(np.outer(orders, (2 * np.arange(_NODES) + 1) * math.pi / (2 * _NODES)))
    on_grid = np.cos(np.outer((2 * np.arange(_GRID) + 1) * math.pi / (2 * _GRID), orders))
    scale = np.where(orders == 0, 1.0, 2.0) / _NODES
    return on_grid @ (scale[:, None] * at_nodes), 1 / math.cos(math.pi * (_NODES - 1) / (2 * _GRID))

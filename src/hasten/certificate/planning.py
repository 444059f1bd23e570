"""Limits that a certificate may be asked for, and the data that it would take."""

import math
from numbers import Real

from scipy import special

from hasten.certificate.draws import BETTING, BETTING_COST, EXACT, Method, fewest_draws
from hasten.errors import InputError

_LEAST_DROP = 1e-9


def check_limits(max_drop: float, confidence: float) -> None:
    """Check the limits that a certificate is asked for.

    Raises:
        InputError: max_drop isn't a share between 0 and 1, or so small that no data could show it; or confidence
            isn't in [0.5, 1).
    """
    if not (isinstance(max_drop, Real) and 0 < max_drop < 1):
        raise InputError(f"max_drop is a share between 0 and 1: got {max_drop}; 1% is 0.01")
    if max_drop < _LEAST_DROP:
        raise InputError(
            f"max_drop is a share of at least {_LEAST_DROP:g}, since no data could show less: got {max_drop:g}; 1% is 0.01"
        )
    if not (isinstance(confidence, Real) and 0.5 <= confidence < 1):
        raise InputError(f"confidence is at least 0.5 and below 1: got {confidence}; 95% is 0.95")


def samples_needed(
    flip_rate: float,
    drop: float,
    max_drop: float,
    confidence: float,
    power: float = 0.8,
    *,
    method: Method = EXACT,
    unevenness: float = 1.0,
) -> int:
    """Return the draws that certify with probability `power`, and at least the fewest that can.

    This is a normal approximation, with the variance that Tango's test takes at the limit: that of the
    likeliest rates under which the drop is `max_drop` (Tango, Stat. Med. 17:891, 1998). It serves for one
    share too, where `drop` is `flip_rate`.

    Args:
        flip_rate: Share of samples expected to flip, lost and gained together; for fractional
            scores the mean squared difference.
        drop: Expected drop, below max_drop.
        max_drop: Limit on the drop, as an absolute share.
        confidence: Confidence of the certificate.
        power: Probability of certifying.
        method: Method that will judge; betting for groups, or for scores that aren't 0/1.
        unevenness: Rows of the largest draw by the mean draw's, where groups differ in size.

    Raises:
        InputError: a limit, level or power is outside (0, 1), the flip rate is outside [0, 1] or
            smaller than the drop, or no data could certify the drop.
    """
    check_limits(max_drop, confidence)
    if not (0 < power < 1 and 0 <= flip_rate <= unevenness and abs(drop) <= flip_rate + 1e-12):
        raise InputError(
            f"expected rates need abs(drop) <= flip_rate <= 1 and 0 < power < 1: got drop={drop}, flip_rate={flip_rate} and power={power}; check them"
        )
    if drop >= max_drop:
        raise InputError(
            f"no number of samples certifies a drop of {drop} as less than {max_drop}; raise max_drop"
        )
    fewest = fewest_draws(method, max_drop, 1 - confidence, unevenness)
    if flip_rate == 0:
        return fewest
    at_limit = _variance_at(max_drop, flip_rate, drop)
    expected = max(flip_rate - drop**2, 0.0)
    spread = special.ndtri(confidence) * math.sqrt(at_limit) + special.ndtri(power) * math.sqrt(
        expected
    )
    needed = (spread / (max_drop - drop)) ** 2 * (BETTING_COST if method == BETTING else 1)
    return max(fewest, math.ceil(float(needed) - 1e-9))


def _variance_at(limit: float, flip_rate: float, drop: float) -> float:
    """Return the variance of a difference under the likeliest rates whose drop is the limit."""
    lost, gained = (flip_rate + drop) / 2, (flip_rate - drop) / 2
    linear = lost * (1 + limit) + gained * (1 - limit) - 2 * limit
    constant = gained * limit * (1 - limit)
    # Two forms of one root: each where it doesn't subtract nearly equal numbers.
    root = math.sqrt(linear**2 + 8 * constant)
    q = (linear + root) / 4 if linear >= 0 else 2 * constant / (root - linear)
    return 2 * q + limit * (1 - limit)

"""The interval of a ratio over several processes of each model, by Student's t.

Two processes of one model differ lastingly, by where their memory and threads happen to lie. Rounds
of one process never show that, however many there are; so the processes are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def grouped(rounds: Sequence[int], processes: Mapping[int, int] | None) -> list[list[int]]:
    """Return the rounds of each process, in order; one group where no processes are told.

    Args:
        rounds: Numbers of rounds.
        processes: Round -> number of the process of each model that it was measured in.
    """
    if processes is None:
        return [list(rounds)]
    groups: dict[int, list[int]] = {}
    for number in rounds:
        groups.setdefault(processes.get(number, 0), []).append(number)
    return list(groups.values())


def interval(logs: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Return the mean of processes' log ratios, and the ends of its interval.

    Args:
        logs: Log ratio of each process of one model to the process of the other that took turns
            with it; at least two.
        confidence: Confidence of the interval.

    Source: Student's t over executions as the highest level of repetition (Kalibera and Jones,
    "Rigorous benchmarking in reasonable time", ISMM 2013). Resampling 3 to 5 processes instead gives
    intervals that are too narrow: benchmarks/latency_statistics.py.
    """
    values = np.asarray(logs, np.float64)
    count = len(values)
    mean = float(values.mean())
    half = student(count - 1, confidence) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def student(freedom: int, confidence: float) -> float:
    """Return the quantile of Student's t that a two-sided interval reaches to.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: Confidence of the interval, in (0, 1).

    Source: the distribution as a finite sum, Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Return P(|t| <= sqrt(freedom) * tan(angle))."""
    odd = freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 or not odd else 0.0
    for step in range(3 if odd else 2, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (step - 1) / step
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * (total if freedom > 1 else 0.0))
    return math.sin(angle) * total

"""Outline of `lighten`: what will be trained and about how long, said before anything is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hasten.core.progress import Outline
from hasten.core.words import amount, listed
from hasten.reporting.rows import latency

_INT8 = 1.25
"""Factor on a method's training time where int8 is taught too."""


def outline_of(
    methods: Sequence[str],
    *,
    students: int,
    minutes: float,
    budget_ns: float,
    trained_on: int,
    judged_on: int,
) -> Outline:
    """Return the outline of the training.

    Args:
        methods: Methods to use, by name.
        students: Number of other architectures to train.
        minutes: Longest time that each method trains, in minutes.
        budget_ns: Time that one request may take, in nanoseconds.
        trained_on: Number of samples to train on.
        judged_on: Number of samples to judge on.
    """
    networks = len(methods) + (students - 1 if "students" in methods else 0)
    return Outline(
        (
            (
                "trains",
                f"{amount(networks, 'network')}, by {amount(len(methods), 'method')}: {listed(*methods)}",
            ),
            ("data", f"{amount(trained_on, 'sample')} to train on, {judged_on:,} to judge on"),
            ("budget", f"{latency(budget_ns)} for one request on this machine"),
            (
                "time",
                f"a minute or more to time networks, at most about {_about(networks * minutes * _INT8)} "
                "to train, then a search as in hasten optimize",
            ),
        ),
        ("prepare", "train"),
    )


def _about(minutes: float) -> str:
    """Write a time in seconds below two minutes, and in minutes from there on."""
    return f"{minutes:.0f} min" if minutes >= 2 else f"{math.ceil(60 * minutes)} s"

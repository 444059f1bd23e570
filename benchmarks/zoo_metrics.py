"""Scores for the zoo's networks with several outputs, written as a user writes them."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def every_output(outputs: Arrays, labels: object, exact: Arrays) -> np.ndarray:
    """Return the share of the outputs whose cosine with the exact model's is 0.99 or more."""
    kept = []
    for name, theirs in exact.items():
        a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (outputs[name], theirs))
        long = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        kept.append((a * b).sum(axis=1) >= 0.99 * long - 1e-12)
    return np.mean(kept, axis=0)


def boxes(outputs: Arrays, labels: object, exact: Arrays) -> np.ndarray:
    """Return 1 where a picture's selected boxes are those of the exact model, within 2 pixels."""
    mine, theirs = outputs["boxes"], exact["boxes"]
    apart = np.abs(mine - theirs).reshape(len(theirs), -1)
    return (apart.max(axis=1, initial=0) < 2.0).astype(np.float64)

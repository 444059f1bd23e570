"""TF32 in torch, which is a setting of the whole process, set for the length of each run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Flags:
    """Settings that torch had for products of float32.

    torch before 2.9 has flags (`allow_tf32`). Since then it has a precision for each kind of
    operator as well (`fp32_precision`). Setting a flag sets the precision too, but not the other
    way round, and reading a flag fails where the two disagree.
    Source: torch, "Numerical accuracy" in its notes on CUDA; aten/src/ATen/Context.cpp.

    Attributes:
        matmul: Flag of cuBLAS's matrix products.
        cudnn: Flag of cuDNN's convolutions and recurrent layers.
        medium: Whether matrix products on the host may be in bfloat16, which goes with the flag.
        precisions: Precision of each kind of operator; empty before torch 2.9.
    """

    matmul: bool
    cudnn: bool
    medium: bool
    precisions: tuple[str, ...]

    @classmethod
    def now(cls, torch: Any) -> _Flags:
        """Return what is set now."""
        precisions = tuple(one.fp32_precision for one in _kinds(torch))
        matmul, convolution = (one == "tf32" for one in (*precisions, "", "")[:2])
        try:
            medium = torch.get_float32_matmul_precision() == "medium"
            matmul = torch.backends.cuda.matmul.allow_tf32
        except RuntimeError:  # the flag and the precision disagree
            matmul, medium = not matmul, False
        try:
            cudnn = torch.backends.cudnn.allow_tf32
        except RuntimeError:
            cudnn = not convolution
        return cls(matmul, cudnn, medium, precisions)

    def set(self, torch: Any) -> None:
        """Set what was set."""
        if self.medium:
            torch.set_float32_matmul_precision("medium")
        else:
            torch.backends.cuda.matmul.allow_tf32 = self.matmul
        torch.backends.cudnn.allow_tf32 = self.cudnn
        for kind, precision in zip(_kinds(torch), self.precisions, strict=True):
            kind.fp32_precision = "none"  # that of the kinds above it, which may be all there was
            if kind.fp32_precision != precision:
                kind.fp32_precision = precision


def _kinds(torch: Any) -> tuple[Any, ...]:
    """Return what has a precision of its own: matrix products, convolutions, recurrent layers."""
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        return ()
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _set(torch: Any, allowed: bool) -> None:
    """Allow TF32, or forbid it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    for kind in _kinds(torch):  # cuDNN's flag leaves it to the precision of the whole of torch
        kind.fp32_precision = "tf32" if allowed else "ieee"


class _Process:
    """The settings of this process, lent to any number of runs at once that want the same ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._runs = self._waiting = 0
        self._allowed = False
        self._before: _Flags | None = None

    def take(self, torch: Any, allowed: bool) -> None:
        """Wait until no run needs other settings, then set them."""
        with self._changed:
            # Whoever waits for other settings gets them once the present runs have ended.
            while self._runs and (self._allowed != allowed or self._waiting):
                self._waiting += 1
                try:
                    self._changed.wait()
                finally:
                    self._waiting -= 1
            if not self._runs:
                self._before, self._allowed = _Flags.now(torch), allowed
                _set(torch, allowed)
            self._runs += 1

    def give_back(self, torch: Any) -> None:
        """Set what was set before, once no run needs these settings."""
        with self._changed:
            self._runs -= 1
            if not self._runs:
                assert self._before is not None
                self._before.set(torch)
                self._changed.notify_all()


_processes: dict[int, _Process] = {}
"""This process's settings by its number: a fork may have copied a lock that is held."""


@contextmanager
def precise(torch: Any, *, tf32: bool) -> Iterator[None]:
    """Allow TF32 in torch's products of float32 while the block runs, or forbid it.

    Blocks that want the same run side by side; others wait, since torch has no setting for a
    single thread or stream.
    """
    process = _processes.setdefault(os.getpid(), _Process())
    process.take(torch, tf32)
    try:
        yield
    finally:
        process.give_back(torch)

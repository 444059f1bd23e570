"""Import of JAX and libtpu without telemetry, logs, or a TPU that wasn't asked for."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hasten.errors import InputError, first_words

_QUIET = {
    "ENABLE_RUNTIME_UPTIME_TELEMETRY": "0",  # torchax turns it on in libtpu unless it is set
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Facts that libtpu would otherwise wait for from a Google server; the type affects no topology."""


@contextmanager
def libtpu(*, present: bool) -> Iterator[None]:
    """Allow libtpu to be loaded while the block runs, then put the environment back.

    Args:
        present: Whether to use this host's TPU, instead of compiling for one that isn't here.
    """
    with _environment(_QUIET if present else {**_QUIET, **_NOWHERE}):
        yield


def load_jax(*, tpu: bool = False) -> Any:
    """Import JAX, to run on this host's processor or on its TPU.

    The choice holds for the process: it is settled when something first runs.

    Raises:
        InputError: JAX isn't installed.
    """
    try:
        with _environment(_QUIET):
            jax = importlib.import_module("jax")
            importlib.import_module("jax.export")
    except ImportError as error:
        raise _missing(error) from error
    jax.config.update("jax_platforms", "tpu,cpu" if tpu else "cpu")
    return jax


def load_torchax() -> Any:
    """Import torchax's table of operators.

    Raises:
        InputError: torchax isn't installed, or not for this version of torch.
    """
    load_jax()
    try:
        with _environment(_QUIET), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("torchax")
            return importlib.import_module("torchax.ops.jaten").ops_registry
    except (ImportError, AttributeError) as error:  # torchax uses private parts of torch
        raise _missing(error) from error


def _missing(error: Exception) -> InputError:
    return InputError(f"a TPU needs JAX, libtpu and torchax ({error}): pip install 'hasten[tpu]'")


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress warnings and logs of JAX and torchax, some of which come at every call."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """Return the first words of an error's message, or its type if there is no message."""
    return first_words(str(error)) or type(error).__name__


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

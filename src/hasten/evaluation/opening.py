"""Opening of a bundle, once, so that the next opening finds what was compiled."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hasten.bundle.loaded import NotCertifiedHere, UnfinishedRun
from hasten.bundle.loading import LOG, load
from hasten.bundle.signatures import Trusted
from hasten.core.cache_folder import cache_folder
from hasten.errors import InputError

_SHOWN = (NotCertifiedHere, UnfinishedRun)


def opened_once(
    bundle: Path, *, warm: bool, custom_ops: Sequence[Path] = (), trusted: Trusted = None
) -> Iterator[str]:
    """Open a bundle, answer one of its requests, and yield a line for each.

    Args:
        bundle: The bundle's folder.
        warm: Whether to keep what is compiled, in the cache that the environment names.
        custom_ops: Libraries with the model's own operators.
        trusted: Keys, one of which must have signed the bundle; see `hasten.load`.

    Raises:
        InputError: there is no bundle, an engine isn't installed, or there is no cache to keep it in.
        CandidateError: the engine can't open the model, or fails.
        IntegrityError: the bundle is damaged, or not signed by such a key.
    """
    kept = cache_folder() if warm else None
    if warm and kept is None:
        raise InputError("--warm keeps what is compiled, but HASTEN_CACHE=off: unset it")
    with warnings.catch_warnings(record=True) as caught:
        for kind in _SHOWN:
            warnings.simplefilter("always", kind)
        cache = False if kept is None else kept.path
        with _time_untold():
            opened = load(bundle, custom_ops=custom_ops, cache=cache, trusted=trusted)
        with opened as model:
            how = ", with what an earlier opening compiled" if model.from_cache else ""
            yield f"opened in {model.opened_s:.3f} s{how} ({model.signed})"
            if model.requests:
                began = time.perf_counter()
                model(model.requests[0])
                yield f"first answer after {(time.perf_counter() - began) * 1e3:.3f} ms more"
    if kept is not None:
        yield f"what was compiled is kept in {kept.path}"
    for one in caught:
        if issubclass(one.category, _SHOWN):
            yield str(one.message)


@contextmanager
def _time_untold() -> Iterator[None]:
    """Keep the time of an opening out of the log."""
    level = LOG.level
    LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOG.setLevel(level)

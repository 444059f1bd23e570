"""Results of torch.compile, kept for the next start.

What torch keeps are pickles and compiled libraries, which run as code. So they come only from the
user's own cache folder (`core/cache_folder.py` checks its owner), never from a bundle; and torch's
own folder, into which they are unpacked and from which torch loads them, must be the user's, too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from hasten.core.scratch import TORCH_FOLDER, torch_folder
from hasten.engines.compile_cache import CompileCache
from hasten.errors import CandidateError


class KeptPrograms:
    """Results of torch.compile for one program on one device.

    Args:
        torch: The module.
        compiled: Cache of the bundle.
        key: Key of the program, the device, its driver and torch's version.
    """

    def __init__(self, torch: Any, compiled: CompileCache, key: str) -> None:
        self._torch, self._compiled, self._key = torch, compiled, key
        self._known: set[tuple[str, str]] = set()

    def recall(self) -> None:
        """Give torch what an earlier start kept; its folder must have been checked to be the user's."""
        with self._compiled.entry(self._key) as found:
            if found is None:
                return
            told = self._torch.compiler.load_cache_artifacts(found.content)
        if told is None:
            self._compiled.drop(self._key)
        else:
            self._known = _keys(told)

    def keep(self) -> None:
        """Keep what torch has compiled, if there is anything that wasn't kept yet."""
        made = self._torch.compiler.save_cache_artifacts()
        if made is None:
            return
        content, told = made
        if _keys(told) - self._known:
            self._compiled.put(self._key, content)
            self._known |= _keys(told)


def _keys(told: Any) -> set[tuple[str, str]]:
    return {(kind, key) for kind, keys in told.artifacts.items() for key in keys}


def check_own_folder() -> None:
    """Check that nobody else can have written the folder from which torch loads what it compiled.

    By default it lies in the folder for temporary files, where anybody could have made it before.

    Raises:
        CandidateError: it belongs to another user, or anybody can write to it.
    """
    folder = Path(os.environ.get(TORCH_FOLDER) or torch_folder())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, facts = folder.lstat(), folder.stat()
    except OSError as error:
        raise CandidateError(
            f"torch's cache {folder} can't be used ({error.strerror or error}): set {TORCH_FOLDER} to a "
            "folder of your own"
        ) from error
    # Whoever owns a link to a folder of the user's could let it lead elsewhere later.
    others = facts.st_uid != os.geteuid() or link.st_uid not in (0, os.geteuid())
    if others or facts.st_mode & stat.S_IWOTH:
        whose = "belongs to another user" if others else "is writable by every user"
        raise CandidateError(
            f"torch's cache {folder} {whose}, and torch would run code from there: set "
            f"{TORCH_FOLDER} to a "
            "folder of your own"
        )

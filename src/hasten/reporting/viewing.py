"""A bundle's report as a page in a private folder, for a browser on this machine to open."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import tempfile
import time
from pathlib import Path

from hasten.bundle import unpacked
from hasten.core.cache_folder import cache_folder
from hasten.core.records import write_whole
from hasten.errors import InputError
from hasten.reporting.evidence import gathered
from hasten.reporting.page import render

_KEPT_S = 86400.0
"""Age from which the pages of earlier calls are removed: a browser may load a page again for a day."""


def page_to_view(bundle: str | os.PathLike[str]) -> Path:
    """Write a bundle's report to a folder that only this user can read, and return the page's path.

    The page is made from the bundle's records: the page that the bundle itself holds is never read, since a
    stranger may have written it. A bundle has one page there, which is rewritten each time; pages
    older than a day are removed.

    Args:
        bundle: Folder of the bundle, or a packed bundle.

    Raises:
        InputError: there is no bundle, its run didn't finish, or the page can't be written.
        IntegrityError: the bundle is damaged.
    """
    page = render(gathered(unpacked(bundle)))
    place = hashlib.sha256(os.fsencode(Path(bundle).resolve())).hexdigest()[:12]
    folder = _folder()
    _tidy(folder)
    file = folder / f"{Path(bundle).resolve().name}-{place}.html"
    write_whole(file, page)
    return file


def _folder() -> Path:
    """Return the folder of pages: in the cache, or in the temporary folder where the cache is off.

    Raises:
        InputError: it can't be made, or others can write to it.
    """
    cache = cache_folder()
    if cache is None:
        places = [Path(tempfile.gettempdir(), f"hasten-{os.geteuid()}")]
    else:  # who may write to the cache, or owns a link to it, can put another folder in the place of the inner one
        outer = Path(os.path.realpath(cache.path))
        places = [outer, outer / "reports"]
    try:
        for each in places:
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [(each, each.lstat()) for each in places]
    except OSError as error:
        raise InputError(f"can't write {places[-1]}: {error.strerror or error}") from error
    for each, facts in found:
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise InputError(
                f"{each} isn't a folder of yours: remove it, or name another folder with HASTEN_CACHE"
            )
        if facts.st_mode & 0o022:  # as of a folder that was made where new ones are the group's too
            raise InputError(
                f"others can write to {each}: run chmod go-w {shlex.quote(str(each))}, or name another folder with HASTEN_CACHE"
            )
    return places[-1]


def _tidy(folder: Path) -> None:
    """Remove pages that nobody opened for a day."""
    for page in folder.glob("*.html"):
        with contextlib.suppress(OSError):
            if time.time() - page.lstat().st_mtime > _KEPT_S:
                page.unlink()

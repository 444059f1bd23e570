"""The docs site in a real browser: it asks no other site, nothing sticks out, and axe-core finds nothing."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.accessibility import violations
from tests.support.chromium import chromium, in_chromium
from tests.support.once import made_once

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs/bin/mkdocs"
MERMAID = ROOT / ".venv-docs/.mermaid"
BUILT = ROOT / "site"
"""The site as `make docs` builds it."""
SOURCES = (
    *("docs", "design", "examples", "scripts", "src", "mkdocs.yml", "pyproject.toml"),
    *("CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"),
)
"""What the site is built from."""
LOOKS = {"desk, light": (1280, 900, "light"), "phone, dark": (360, 740, "dark")}
PAGES = (
    *("", "tutorials/first-ten-minutes/", "how-to/install/", "how-to/access/", "examples/"),
    *("reference/cli/", "reference/python/", "reference/protocol/", "design/front-door/"),
)
"""Pages with all kinds of elements: tables, blocks of code, pictures, diagrams, docstrings."""
# A pointer that can hover, as at a desk: only then does the theme let keys scroll a block of code.
POINTER = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def is_of_today(site: Path, root: Path = ROOT) -> bool:
    """Whether a site is there, and nothing that it is built from is newer."""
    index = site / "index.html"
    if not index.exists():
        return False
    built_ns = index.stat().st_mtime_ns
    folders = (root / name for name in SOURCES)
    files = (file for folder in folders for file in (folder, *folder.rglob("*")))
    return not any(
        file.stat().st_mtime_ns > built_ns
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the site that `make docs` built, or build it where a file changed since; return its address."""
    with made_once(tmp_path_factory, "site") as (folder, missing):
        if is_of_today(BUILT):
            folder = BUILT
        elif missing:
            subprocess.run(
                [MKDOCS, "build", "--quiet", "--site-dir", folder],
                cwd=ROOT,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
                check=True,
            )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = chromium("hide-scrollbars", f"blink-settings={POINTER}", logs=("browser",))
    yield driver
    driver.quit()


def test_a_site_counts_as_built_until_something_that_it_is_built_from_changes(
    tmp_path: Path,
) -> None:
    (tmp_path / "docs").mkdir()
    page, site = tmp_path / "docs" / "index.md", tmp_path / "site"
    page.touch()
    assert not is_of_today(site, tmp_path)
    site.mkdir()
    (site / "index.html").touch()
    os.utime(page, (1, 1))
    assert is_of_today(site, tmp_path)
    os.utime(site / "index.html", (2, 2))
    assert is_of_today(site, tmp_path)
    os.utime(page, (3, 3))
    assert not is_of_today(site, tmp_path)


@pytest.mark.slow
@in_chromium
@pytest.mark.skipif(not MERMAID.exists(), reason="needs the site's generator: make docs")
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page or "home")
def test_a_page_asks_no_other_site_fits_and_is_accessible(
    site: str, browser: Any, page: str, look: str
) -> None:
    width, height, scheme = LOOKS[look]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get_log("browser")
    browser.get(f"{site}/{page}")
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(one => one.name)"
    )
    assert [one for one in asked if not one.startswith((site, "data:", "blob:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    assert violations(browser) == []

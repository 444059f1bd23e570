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
pytestmark = [
    pytest.mark.slow,
    in_chromium,
    pytest.mark.skipif(not MERMAID.exists(), reason="needs the site's generator: make docs"),
]
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the site and serve it; return its address."""
    with made_once(tmp_path_factory, "site") as (folder, missing):
        if missing:
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

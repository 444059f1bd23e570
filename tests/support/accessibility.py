"""What axe-core finds wrong with a page that a browser shows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def violations(driver: Any) -> list[str]:
    """Return each rule that the page breaks, with the first elements that break it.

    The script is told to the browser itself, so that no policy of the page keeps it out.

    Args:
        driver: Selenium's driver of a Chromium that shows the page.
    """
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-playwright-python isn't installed")
    script = (Path(spec.origin).parent / "axe.min.js").read_text()
    driver.set_script_timeout(300)  # a machine that does other work takes long
    driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script})
    found = driver.execute_async_script(
        "axe.run(document, {resultTypes: ['violations'], selectors: false}).then(arguments[0], e => arguments[0]({error: `${e}`}))"
    )
    assert "error" not in found, found
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
        for one in found["violations"]
    ]

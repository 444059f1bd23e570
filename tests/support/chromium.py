"""A headless Chromium for tests of pages, and the mark of tests that need one."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 600
"""Time in which a busy host's browser answers a command, at the latest."""
in_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium: on Debian, apt-get install chromium chromium-driver",
)


def chromium(*switches: str, logs: tuple[str, ...] = ("browser", "performance")) -> Any:
    """Start a browser; whoever calls this ends it by `quit`.

    Args:
        switches: Further switches of the command line, without their dashes.
        logs: Logs that are kept.
    """
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", *switches):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    driver: Any = Chrome(options, ChromeService(DRIVER))
    driver.command_executor.client_config.timeout = PATIENCE_S
    return driver

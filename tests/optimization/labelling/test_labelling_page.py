"""The page to label on, in a real browser: by keyboard alone, with nothing lost and nothing asked for."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.chromium import chromium, in_chromium
from tests.support.labelling import labelling_folder

from hasten.optimization.labelling.answers import Form, read_labels
from hasten.optimization.labelling.folder import LABELS, PAGE
from hasten.optimization.labelling.served import served

pytestmark = in_chromium
HOSTILE = (
    "<img src=x onerror=\"document.title='ran'\"></script><script>document.title='ran'</script>"
)
PATIENCE_S = 120.0


def picture() -> str:
    data = io.BytesIO()
    Image.new("L", (8, 8), 200).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


ITEMS = [
    {"id": "s1", "row": 4, "picture": picture()},
    {"id": "s2", "row": 9, "text": HOSTILE},
    {"id": "s3", "row": 2, "table": [["age", "31"], [HOSTILE, HOSTILE]]},
]
FORM = Form(3, ("cat", "dog, wet", "cow"))


class Browser:
    """A headless Chromium, driven by its keyboard.

    Args:
        downloads: Folder for downloads.
    """

    def __init__(self, downloads: Path) -> None:
        self.driver = chromium()
        self.downloads = downloads
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior",
            {"behavior": "allow", "downloadPath": str(downloads), "eventsEnabled": False},
        )

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(url)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def until(self, script: str) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, PATIENCE_S, 0.05).until(lambda _: self.ask(script))

    @property
    def progress(self) -> str:
        return str(self.ask("document.getElementById('progress').textContent"))

    def requested(self) -> set[str]:
        entries = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return {
            e["params"]["request"]["url"]
            for e in entries
            if e["method"] == "Network.requestWillBeSent"
            and not e["params"]["request"]["url"].startswith(("data:", "blob:"))
        }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("downloads"))
    yield opened
    opened.driver.quit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return labelling_folder(tmp_path / "labels", ITEMS, FORM)


@pytest.mark.seconds
def test_by_keys_alone_all_is_labelled_kept_and_downloaded(browser: Browser, folder: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    url = (folder / PAGE).as_uri()
    browser.open(url)
    assert browser.progress == "Sample 1 of 3; 0 labelled"
    browser.press("1")  # a digit is a class
    assert browser.progress == "Sample 2 of 3; 1 labelled"
    browser.press("7")  # which isn't one
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.progress == "Sample 3 of 3; 1 labelled"
    browser.press("?")
    assert browser.progress == "Sample 2 of 3; 2 labelled"
    browser.driver.refresh()
    assert browser.progress == "Sample 1 of 3; 2 labelled"  # the browser kept them
    browser.press(Keys.ARROW_RIGHT)
    browser.ask("document.getElementById('typed').focus()")
    browser.press("horse", Keys.ENTER)
    said = browser.ask("document.getElementById('wrong').textContent")
    assert said == '"horse" isn\'t a label. Type a class or its number, then Enter.'
    browser.ask("document.getElementById('typed').select()")
    browser.press("cow", Keys.ENTER)
    assert browser.progress == "Sample 2 of 3; 3 labelled: all done"
    chord = ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL)
    chord.perform()
    file = browser.downloads / "labels.csv"
    browser.driver.set_script_timeout(PATIENCE_S)
    for _ in range(2000):
        if file.exists() and file.stat().st_size:
            break
        browser.driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert read_labels(file, ["s1", "s2", "s3"], FORM) == {"s1": "dog, wet", "s2": "cow", "s3": "?"}
    assert browser.requested() == {url}
    assert browser.driver.get_log("browser") == []


def test_texts_of_samples_are_shown_and_never_run(browser: Browser, folder: Path) -> None:
    from selenium.webdriver import Keys

    browser.open((folder / PAGE).as_uri())
    browser.ask("localStorage.clear()")
    browser.driver.refresh()
    browser.until("document.querySelector('#sample img')?.naturalWidth === 8")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.ask("document.querySelector('#sample .text').textContent") == HOSTILE
    browser.press(Keys.ARROW_RIGHT)
    cells = browser.ask("[...document.querySelectorAll('#sample td')].map(c => c.textContent)")
    assert cells == ["31", HOSTILE]
    assert browser.ask("document.title") == "Labels"
    assert browser.driver.get_log("browser") == []


def test_a_served_page_writes_each_label_and_takes_up_what_there_is(
    browser: Browser, folder: Path
) -> None:
    with served(folder) as url:
        browser.open(url)
        browser.press("0")
        browser.until(
            "document.getElementById('where').textContent === 'Saved in labels.csv as you label.'"
        )
        browser.press("2")
        browser.until("!unsaved")
        browser.ask("localStorage.clear()")
        browser.open(url)
        browser.until("document.getElementById('progress').textContent.includes('2 labelled')")
    assert read_labels(folder / LABELS, ["s1", "s2", "s3"], FORM) == {"s1": "cat", "s2": "cow"}
    browser.press("1")  # the server is gone
    browser.until(
        "document.getElementById('where').textContent.startsWith('Not saved by the server')"
    )


def test_many_classes_are_typed_and_enter_goes_on(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    folder = labelling_folder(tmp_path / "labels", ITEMS, Form(1000))
    browser.open((folder / PAGE).as_uri())
    browser.ask("localStorage.clear()")
    browser.driver.refresh()
    browser.press("999", Keys.ENTER)
    browser.press("1000", Keys.ENTER)
    assert browser.ask("document.getElementById('wrong').textContent").startswith(
        '"1000" isn\'t a label'
    )
    browser.ask("document.getElementById('typed').select()")
    browser.press("0", Keys.ENTER)
    assert browser.progress == "Sample 3 of 3; 2 labelled"
    kept = browser.ask("JSON.parse(localStorage.getItem(data.key))")
    assert kept == {"s1": "999", "s2": "0"}

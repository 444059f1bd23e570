"""The live page in a real browser, fed by a real server."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.accessibility import violations
from tests.support.chromium import chromium, in_chromium
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.serving.http import page
from hasten.serving.http.page import figures
from hasten.serving.models.repository import Repository
from hasten.serving.settings import ModelPlace
from hasten.serving.state import ServerState
from hasten.testing import models

SIZES = {"phone": (360, 740), "desk": (1280, 900)}
HOSTILE = "<img src=x onerror=\"document.title='ran'\">"
LONG = "a_very_long_name_without_any_break" * 6
PATIENCE_S = 120.0
HURRIED = """
for (const name of ['setTimeout', 'setInterval']) {
  const plain = window[name];
  window[name] = (work, ms, ...given) => plain(work, ms / 5, ...given);
}
"""
"""Lets a page wait a fifth as long before it asks or draws again."""
SECOND = 1_000_000_000


class Browser:
    """A headless Chromium, driven through its DevTools."""

    def __init__(self) -> None:
        self.driver = chromium("hide-scrollbars")
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=HURRIED)

    def open(self, url: str, size: str = "desk", scheme: str = "light") -> None:
        """Open the page anew at "phone" or "desk", "light" or "dark"."""
        width, height = SIZES[size]
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(url)

    def tell(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script.strip()}")

    def text(self, selector: str) -> list[str]:
        """The words of all elements that are shown, as they are shown."""
        return list(
            self.ask(
                f"[...document.querySelectorAll({json.dumps(selector)})]"
                ".filter(each => each.offsetParent).map(each => each.innerText)"
            )
        )

    def wait_for(self, what: Callable[[], bool]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < end_s, self.driver.find_element("tag name", "body").text
            time.sleep(0.05)

    def console(self) -> list[str]:
        """What the browser reported since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> set[str]:
        """What was asked for since the page was opened."""
        entries = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return {
            e["params"]["request"]["url"]
            for e in entries
            if e["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    return bundle_of(folder, models.linear_classifier(folder))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerThread]:
    """Two models, of which one can't be opened; no name or reason means well."""
    places = (
        place_of(bundle, "doors", cache_bytes=1 << 20),
        ModelPlace(HOSTILE, "1", bundle.parent / HOSTILE, place_of(bundle).settings),
    )
    with ServerThread(*places) as running:
        yield running


@pytest.fixture(scope="module")
def busy(server: ServerThread) -> Iterator[ServerThread]:
    """The same, with a client that keeps asking."""
    end = threading.Event()
    client = threading.Thread(target=keep_asking, args=(server, end))
    client.start()
    yield server
    end.set()
    client.join()


def infer(connection: http.client.HTTPConnection, value: float = 1.0, rows: int = 1) -> int:
    data = [value] * 16 * rows
    tensor = {"name": "x", "shape": [rows, 16], "datatype": "FP32", "data": data}
    connection.request("POST", "/v2/models/doors/infer", json.dumps({"inputs": [tensor]}))
    answer = connection.getresponse()
    answer.read()
    return answer.status


def keep_asking(server: ServerThread, end: threading.Event) -> None:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    value = 0.0
    while not end.wait(0.02):
        value += 1
        infer(connection, value // 2)
    connection.close()


# -- what it is told


def test_figures_are_of_the_requests_that_were_made(bundle: Path) -> None:
    with ServerThread(place_of(bundle, "doors", cache_bytes=1 << 20)) as running:
        connection = http.client.HTTPConnection(running.host, timeout=PATIENCE_S)
        asked = [infer(connection, *each) for each in ((1, 1), (2, 3), (1, 1), (3, 1000))]
        assert asked == [200, 200, 200, 400]
        connection.request("GET", "/live.json")
        assert connection.getresponse().read().startswith(b"{")
        connection.close()
        state = running.server.state
        later_ns = time.perf_counter_ns() + 2 * SECOND
        told = running.call(lambda: [figures(state, clock_ns=lambda: later_ns)])[0]
    (model,) = told["models"]
    assert (model["name"], model["version"], model["state"]) == ("doors", "1", "READY")
    served = model["served"]
    assert (served["answers"], served["status"], served["fell_back"]) == ("winner", "exact", False)
    assert (served["requests"], served["rows"]) == (3, 5)
    assert served["batches"] == [[1, 1], [3, 1]]
    assert served["refusals"] == {"INVALID": 1}
    stages = served["stages"]
    assert [each["stage"] for each in stages] == ["parse", "queue", "batch", "compute", "encode"]
    assert sum(each["share"] for each in stages) == pytest.approx(1)
    assert all(each["p50_ns"] <= each["p99_ns"] for each in stages)
    assert (served["cache"]["hits"], served["cache"]["misses"]) == (1, 2)
    assert sum(served["series"]["requests"]) == served["minute"]["requests"] == 3
    assert served["now"]["throughput_per_s"] == 0.3
    assert served["now"]["p50_ns"] <= served["now"]["p90_ns"] <= served["now"]["p99_ns"]
    assert served["queue"] == {"rows": 0, "wait_ns": 0}
    assert served["shadow"] is None


def test_figures_are_made_once_for_all_who_ask_within_a_moment(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ServerState] = []

    def counted(state: ServerState, clock_ns: Callable[[], int]) -> dict[str, Any]:
        made.append(state)
        return figures(state, clock_ns)

    monkeypatch.setattr(page, "figures", counted)
    monkeypatch.setattr(page, "_KEPT_NS", 3_600 * SECOND)
    question = b"GET /live.json HTTP/1.1\r\nHost: here\r\n\r\n"
    with ServerThread(place_of(bundle)) as running:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", running.http_port), PATIENCE_S) as one:
                one.sendall(
                    question * 20 + question.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                )
                assert one.makefile("rb").read().count(b"HTTP/1.1 200 OK") == 21
    assert len(made) == 1


def test_figures_are_made_again_once_their_moment_is_over(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_KEPT_NS", SECOND)
    with ServerThread(place_of(bundle)) as running:
        state = running.server.state
        now_ns, uptimes = [state.began_ns], []
        told = page.KeptFigures(state, clock_ns=lambda: now_ns[0])
        for _ in range(5):
            uptimes.append(json.loads(running.call(told.text))["uptime_s"])
            now_ns[0] += SECOND // 2
    assert uptimes == [0, 0, 1, 1, 2]


# -- what it shows


@in_chromium
def test_figures_are_live_while_requests_are_made(browser: Browser, busy: ServerThread) -> None:
    browser.open(busy.http_url)
    browser.wait_for(lambda: any(each.endswith("/s") and each != "0/s" for each in cards(browser)))
    assert browser.text("#headline") == ["1 of 2 models ready"]
    browser.wait_for(lambda: browser.text("#pulse-words") == ["Live"])
    first = facts(browser)["Answered"]
    browser.wait_for(lambda: facts(browser)["Answered"] != first)
    drawn = browser.ask("document.querySelector('#models path.line').getAttribute('d')")
    assert drawn.count("L") == 59
    labels = browser.ask("[...document.querySelectorAll('svg')].map(s => s.ariaLabel)")
    assert [label.partition(" over ")[0] for label in labels[:2]] == [
        "Requests per second",
        "Latency",
    ]
    assert browser.console() == []
    browser.wait_for(lambda: browser.driver.title == "hasten: 1 of 2 models ready")


@pytest.mark.seconds
@in_chromium
@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desk", "dark")])
def test_axe_finds_nothing_with_data_an_alarm_or_no_answer(
    browser: Browser, busy: ServerThread, size: str, scheme: str
) -> None:
    browser.open(busy.http_url, size, scheme)
    browser.wait_for(lambda: any(each.endswith("/s") and each != "0/s" for each in cards(browser)))
    browser.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert violations(browser.driver) == []
    alarm(browser)
    assert browser.text("#models .notice")[0].startswith("Alarm: the answers change")
    assert "doors version 1 is ready and in alarm: the answers change" in browser.ask(
        "$('said').textContent"
    )
    assert violations(browser.driver) == []
    browser.ask("(clearTimeout(timer), condition({}))")
    assert violations(browser.driver) == []


def alarm(browser: Browser) -> None:
    """Show the last figures with an alarm of the monitor, and ask for no more."""
    told = {
        "alarms": ["the answers change more often than 1%"],
        "limits": [
            {"what": "changed", "limit": 0.01, "n": 90, "low": 0.02, "high": 0.1, "alarm": True}
        ],
        "drift": {"asked_again": None, "margin": {"n": 0}, "outside": {"n": 0}},
    }
    show(browser, "figures.models[0].served.monitor = given", told)


def stop_asking(browser: Browser) -> None:
    """Wait until the page asks for no figures, and have it ask for no more."""
    browser.wait_for(lambda: not browser.ask("(clearTimeout(timer), asking)"))


def show(browser: Browser, change: str, given: Any = None) -> None:
    """Show the server's figures after a change, and ask for no more."""
    stop_asking(browser)
    script = (
        "const [given, done] = arguments;"
        f"ask().then(({{figures}}) => {{ {change}; update(figures); done(true); }}, () => done(false));"
    )
    browser.wait_for(lambda: bool(browser.driver.execute_async_script(script, given)))


@in_chromium
def test_each_chart_is_titled_by_what_it_shows(browser: Browser, busy: ServerThread) -> None:
    browser.open(busy.http_url)
    browser.wait_for(lambda: any(each.endswith("/s") and each != "0/s" for each in cards(browser)))
    titles = browser.text("#models figcaption h3")
    assert [
        re.sub(r"\d[\d.,]*\d|\d", "N", re.sub(r"(?<=\d) ?(ms|µs|s|%)(?= |,|$)", "", title))
        for title in (one.replace("1 request in", "1 requests in") for one in titles)
    ] == [
        "N requests in the last second, at most N in any",
        "Half of the requests took at most N, N of N at most N",
        "N of the batches had N row",
    ]
    assert browser.ask(
        "[...document.querySelectorAll('#models .answers li')].every(li => li.title)"
    )


def cards(browser: Browser) -> list[str]:
    return browser.text("#models .figure")


def facts(browser: Browser) -> dict[str, str]:
    names, words = browser.text("#models dt"), browser.text("#models dd")
    return dict(zip(names, words, strict=True))


@in_chromium
def test_nothing_is_asked_of_anybody_but_the_server(browser: Browser, busy: ServerThread) -> None:
    browser.open(busy.http_url)
    browser.wait_for(lambda: bool(cards(browser)))
    own = f"{busy.http_url}/"
    asked = {url for url in browser.asked() if not url.startswith("data:")}
    assert asked - {"about:blank"} == {own, f"{own}live.json"}


@in_chromium
def test_names_and_reasons_never_become_markup(browser: Browser, server: ServerThread) -> None:
    browser.open(server.http_url)
    browser.wait_for(lambda: len(browser.text("#models h2")) == 2)
    assert browser.text("#models h2")[1] == f"{HOSTILE} version 1 unavailable"
    assert HOSTILE in browser.text("#models .why")[1]
    assert browser.text("#overview tbody th") == ["doors", HOSTILE]
    assert browser.ask("document.images.length") == 0
    assert browser.driver.title == "hasten: 1 of 2 models ready"


@in_chromium
def test_not_even_its_own_script_could_make_markup(browser: Browser, server: ServerThread) -> None:
    browser.open(server.http_url)
    said = browser.ask("""(() => {
        try { document.body.innerHTML = "<p>"; } catch (error) { return error.name; }
        return "made";
    })()""")
    assert said == "TypeError"
    browser.ask("""(() => {
        const image = new Image();
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
    })()""")
    browser.wait_for(lambda: any("img-src data:" in each for each in browser.console()))


@in_chromium
def test_the_numbers_are_there_as_tables_too(browser: Browser, busy: ServerThread) -> None:
    browser.open(busy.http_url)
    browser.wait_for(lambda: bool(cards(browser)))
    browser.driver.find_element("css selector", "#models summary").click()
    browser.wait_for(lambda: len(browser.text("details tbody tr")) >= 61)
    heads = browser.ask(
        "[...document.querySelectorAll('details table')].map(t => [...t.tHead.rows[0].cells]"
        ".map(c => c.textContent))"
    )
    assert heads[:3] == [
        ["Rows in a batch", "Batches", "Share"],
        ["Second", "Requests", "Half within", "99 of 100 within"],
        ["Stage", "Share of the time", "Half within", "99 of 100 within"],
    ]
    browser.wait_for(lambda: "computing" in browser.text("details tbody th"))


@in_chromium
def test_a_server_that_stops_answering_is_said_plainly(
    browser: Browser, server: ServerThread
) -> None:
    browser.open(server.http_url)
    browser.wait_for(lambda: browser.text("#pulse-words") == ["Live"])
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.tell("Network.emulateNetworkConditions", offline=True, **offline)
    try:
        browser.wait_for(lambda: browser.text("#notice")[:1] != [])
        assert "No answer for" in browser.text("#notice")[0]
        assert browser.text("#notice")[0].endswith("The figures are from before that.")
        assert browser.ask("document.querySelector('main').className") == "stale"
        assert browser.ask("$('said').textContent") == "The server stopped answering."
        first = browser.text("#pulse-words")
        browser.wait_for(lambda: browser.text("#pulse-words") != first)
        assert browser.driver.title == "hasten: no answer"
    finally:
        browser.tell("Network.emulateNetworkConditions", offline=False, **offline)
    browser.wait_for(lambda: browser.text("#pulse-words") == ["Live"])
    assert browser.text("#notice") == []
    assert browser.ask("$('said').textContent") == "The server answers again."


@in_chromium
def test_a_change_of_state_is_read_out(browser: Browser, bundle: Path) -> None:
    with ServerThread(place_of(bundle, "doors")) as running:
        browser.open(running.http_url)
        browser.wait_for(lambda: browser.text("#headline") == ["1 model, ready"])
        repository = running.server.state.repository
        (registered,) = repository

        async def unloaded() -> str:
            await repository.unload(registered)
            return registered.reason

        assert running.call(unloaded) == "unloaded"
        browser.wait_for(lambda: browser.text("#headline") == ["0 of 1 model ready"])
        said = browser.ask("$('said').textContent")
        assert said.startswith("doors version 1 is un")  # unloading, then unavailable
        browser.wait_for(lambda: browser.text("#models .why") == ["unloaded"])
        assert cards(browser) == []
        assert browser.console() == []


@in_chromium
def test_the_token_comes_from_the_address(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    token = "kept+secret/of=16&more"
    file = tmp_path / "token"
    file.write_text(token)
    with ServerThread(place_of(bundle, "doors"), token_file=file) as running:
        for fragment, said in (
            ("", "This server requires a token: add #token=YOUR_TOKEN to this page's address."),
            ("#token=another", "The token in this page's address isn't the server's."),
        ):
            browser.open(f"{running.http_url}/{fragment}")
            browser.wait_for(lambda said=said: browser.text("#notice") == [said])  # type: ignore[misc]
            assert cards(browser) == []
        browser.open(f"{running.http_url}/#token={token.replace('&', '%26')}")
        browser.wait_for(lambda: browser.text("#headline") == ["1 model, ready"])
        assert browser.text("#notice") == []
        assert not any(token in url for url in browser.asked())


@in_chromium
def test_a_token_without_the_scope_says_so(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.touch(0o600)
    file.write_text('[asker]\nscopes = ["infer"]\ntoken = "a-token-to-infer-with"\n')
    said = "The server refuses: this needs the scope read, but 'asker' has only infer."
    with ServerThread(place_of(bundle, "doors"), tokens=file) as running:
        browser.open(f"{running.http_url}/#token=a-token-to-infer-with")
        browser.wait_for(lambda: browser.text("#notice") == [said])
        assert cards(browser) == []


@in_chromium
def test_nothing_is_asked_while_nobody_looks(browser: Browser, server: ServerThread) -> None:
    browser.open(server.http_url)
    browser.wait_for(lambda: browser.text("#pulse-words") == ["Live"])
    see = "Object.defineProperty(document, 'visibilityState', {{value: '{}', configurable: true}})"
    count = "window.asked"
    turned = "document.dispatchEvent(new Event('visibilitychange'))"
    browser.ask(
        "(window.asked = 0, window.plain = fetch,"
        " window.fetch = (...given) => { asked += 1; return plain(...given); }, true)"
    )
    browser.ask(f"(void poll(), {see.format('hidden')}, {turned})")
    before = browser.ask(count)
    time.sleep(0.5)  # for longer than the page waits before it asks again
    assert browser.ask(count) == before
    browser.ask(f"({see.format('visible')}, {turned})")
    browser.wait_for(lambda: browser.ask(count) > before)


@in_chromium
def test_without_a_model_it_says_so(browser: Browser, server: ServerThread) -> None:
    browser.open(server.http_url)
    browser.wait_for(lambda: browser.text("#pulse-words") == ["Live"])
    none = {"uptime_s": 1, "connections": 0, "body_bytes": 0, "models": [], "now_s": 10}
    stop_asking(browser)
    browser.ask(f"update({json.dumps(none)})")
    assert browser.text("#headline") == ["No models"]
    assert browser.text("#empty")[0].startswith("No model is loaded. Start the server with one")
    assert violations(browser.driver) == []
    assert browser.text("#models section") == []


@in_chromium
def test_a_model_without_requests_and_a_server_that_drains_are_told_plainly(
    browser: Browser, bundle: Path
) -> None:
    with ServerThread(place_of(bundle)) as idle:
        browser.open(idle.http_url)
        browser.wait_for(lambda: len(browser.text("#models figcaption h3")) == 3)
        browser.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        said = ["No request in the last minute", "No request in the last minute", "No batch yet"]
        browser.wait_for(lambda: browser.text("#models figcaption h3") == said)
        # Figures of a row stand on one line, however many lines the words above take.
        tops = browser.ask(
            "[...document.querySelectorAll('.answers .figure')].map(e => e.offsetTop)"
        )
        assert len(set(tops)) == 1
        assert browser.ask("document.querySelector('details table').checkVisibility()") is False
        show(browser, "figures.draining = true")
        assert browser.text("#headline") == ["Draining: no new work is accepted"]
        assert violations(browser.driver) == []


@in_chromium
@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out_sideways(browser: Browser, bundle: Path, size: str) -> None:
    broken = ModelPlace(LONG, "1", bundle.parent / LONG, place_of(bundle).settings)
    with ServerThread(place_of(bundle, LONG + "s"), broken) as running:
        browser.open(running.http_url, size)
        browser.wait_for(lambda: len(browser.text("#models h2")) == 2)
        browser.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        browser.wait_for(lambda: len(browser.text("details tbody tr")) >= 60)
        assert browser.ask("document.documentElement.scrollWidth") == SIZES[size][0]
        assert browser.ask("innerWidth") == SIZES[size][0]


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_letters_are_read_on_either_paper(
    browser: Browser, busy: ServerThread, size: str, scheme: str
) -> None:
    browser.open(busy.http_url, size, scheme)
    browser.wait_for(lambda: len(browser.text("#models h2")) == 2)
    shot = browser.tell("Page.captureScreenshot", captureBeyondViewport=True)
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L")
    pixels = np.asarray(picture, np.int64)
    paper = pixels[1, 1]
    assert (paper > 128) == (scheme == "light")
    assert np.abs(pixels - paper).max() > 180
    assert (np.abs(pixels - paper) > 60).mean() > 0.01
    heights = browser.ask(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        ".filter(height => height > 0)"
    )
    assert min(heights) >= 9.5  # of a line, in CSS pixels


def test_the_uptime_doesnt_follow_the_clock_on_the_wall() -> None:
    loop = asyncio.new_event_loop()
    state = ServerState(Repository([], loop), began_ns=5 * SECOND)
    loop.close()
    assert figures(state, clock_ns=lambda: 12 * SECOND)["uptime_s"] == 7.0

"""The monitor of a served bundle: through real clients, a real server, and files as they end up."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import http.client
import http.server
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tritonclient.http as triton
from click.testing import CliRunner
from tests.support import models
from tests.support.bundles import forge
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until
from tests.support.watched import ENOUGH, OTHER, SAME, certified

from hasten.bundle import MANIFEST
from hasten.certificate.monitor import Null
from hasten.cli import main
from hasten.core.records import file_digest
from hasten.errors import InputError
from hasten.serving.cluster.federation import Federation
from hasten.serving.cluster.pooling import Pool
from hasten.serving.models import repository
from hasten.serving.models.trial import compare
from hasten.serving.monitoring import kept, webhook
from hasten.serving.settings import ServerSettings
from hasten.testing.models import write


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def serving(path: Path, state: Path, **settings: Any) -> ServerThread:
    given = {"shadow": 1.0, "monitor_state": str(state), **settings}
    return ServerThread(place_of(path, "watched", **given))


def ask(server: ServerThread, row: list[float], count: int = 1, name: str = "") -> Any:
    """Ask so often for one row, each time after the last answer was audited."""
    client = triton.InferenceServerClient(server.host)
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([row], np.float32))
    for _ in range(count):
        watch = served(server).watch
        before = 0 if watch is None else watch.audited + watch.dropped + watch.failed
        answer = client.infer("watched", [tensor], request_id=name).as_numpy("y").tolist()
        if served(server).answers == "winner" and watch is not None:
            until(partial(_more, watch, before))
    client.close()
    return answer


def _more(watch: Any, before: int) -> bool:
    return bool(watch.audited + watch.dropped + watch.failed > before)


def _audited(server: ServerThread, count: int) -> bool:
    return bool(served(server).watch.audited == count)


def served(server: ServerThread) -> Any:
    return server.server.state.repository.find("watched")


def fetched(server: ServerThread, path: str, body: Any = None) -> tuple[int, Any]:
    client = http.client.HTTPConnection(server.host, timeout=60)
    client.request("GET" if body is None else "POST", path, body and json.dumps(body))
    response = client.getresponse()
    text = response.read().decode()
    client.close()
    return response.status, json.loads(text) if text[:1] in "[{" else text


def facts(server: ServerThread) -> Any:
    status, found = fetched(server, "/v2/models/watched/monitor")
    assert status == 200, found
    return found


class _Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that is away the first time, and hears the second."""

    heard: ClassVar[list[Any]] = []
    refused: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        first = not self.refused
        (self.refused.append(1) if first else self.heard.append(json.loads(body)))
        self.send_response(503 if first else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("hasten.serving.monitoring.webhook.PAUSES_S", (0.01,) * 5)
    monkeypatch.setattr("hasten.serving.monitoring.webhook.post.__defaults__", ((0.01,) * 5,))
    _Hook.heard.clear()
    _Hook.refused.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/alarms"
    server.shutdown()
    server.server_close()


def test_an_alarm_is_told_everywhere_and_the_fast_model_goes_on(
    tmp_path: Path, state: Path, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = certified(tmp_path)
    with serving(path, state, webhook=hook) as server:
        ask(server, SAME, 3)
        assert facts(server)["alarms"] == []
        assert not _Hook.heard
        ask(server, OTHER, ENOUGH)
        (alarm,) = facts(server)["alarms"]
        until(lambda: bool(_Hook.heard) and next(iter(record(path, state).alarms.values())).told)
        assert ask(server, OTHER) == [[2.0, 0.0, 0.0, 1.0]]  # the fast model's
        _, metrics = fetched(server, "/metrics")
        _, page = fetched(server, "/live.json")
    assert alarm.startswith("more than 10% of answers change: ")
    assert [line for line in caplog.messages if line.startswith(f"alarm: {alarm}; the certificate")]
    assert _Hook.heard[0]["text"].startswith(alarm)
    assert (_Hook.heard[0]["model"], _Hook.heard[0]["taken_over"]) == ("watched", False)
    assert len(_Hook.heard) == 1
    assert 'hasten_monitor_alarm{model="watched",version="1",what="changed"} 1.0' in metrics
    assert 'hasten_monitor_limit{model="watched",version="1",what="changed"} 0.1' in metrics
    assert page["models"][0]["served"]["monitor"]["alarms"] == [alarm]


def record(path: Path, state: Path) -> kept.Record:
    return kept.Kept(file_digest(path / MANIFEST), state).record


def test_answers_that_keep_the_limit_raise_nothing(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state) as server:
        for _ in range(4):
            ask(server, SAME, 19)
            ask(server, OTHER)
        (limit,) = facts(server)["limits"]
    assert (limit["n"], limit["losses"], limit["alarm"]) == (80, 4.0, False)
    assert limit["low"] < 0.05 < limit["high"]


def test_the_exact_model_takes_over_until_a_person_clears_it(tmp_path: Path, state: Path) -> None:
    path = certified(tmp_path)
    right, wrong = [OTHER], [OTHER[::-1]]
    with serving(path, state, on_alarm="exact") as server:
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            beside = [threads.submit(_asked_on, server) for _ in range(2)]
            until(lambda: served(server).answers == "exact")
            answers = [answer for each in beside for answer in each.result()]
        assert all(answer in (right, wrong) for answer in answers)  # none was lost
        assert ask(server, OTHER) == right
        assert facts(server)["taken_over"]
    with serving(path, state) as server:  # whatever it is started with
        assert ask(server, OTHER) == right
        assert any(
            "--clear` lets the fast model answer again" in note
            for note in served(server).opened.notes
        )
        told = CliRunner().invoke(main, ["monitor", str(path), "--monitor-state", str(state)])
        assert told.exit_code == 1
        assert " alarm: more than 10% of answers change: " in told.output
        assert " the exact model takes over\n" in told.output
        clear = ["monitor", str(path), "--monitor-state", str(state), "--clear"]
        assert CliRunner().invoke(main, clear).exit_code == 0
        server.call(server.server.state.repository.reload_changed)  # as SIGHUP does
        assert ask(server, OTHER) == wrong
        found = facts(server)
    assert (found["taken_over"], found["alarms"], found["begun_anew"]) == (False, [], 1)
    assert found["limits"][0]["n"] == 1
    told = CliRunner().invoke(main, ["monitor", str(path), "--monitor-state", str(state)])
    assert told.exit_code == 0
    assert "changed: 100% of 1 audited answers (95% interval " in told.output
    assert told.output.endswith("\nno alarm\n")


def _asked_on(server: ServerThread) -> list[Any]:
    """Ask on and on until the exact model answers, and a little longer."""
    client, answers = triton.InferenceServerClient(server.host), []
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([OTHER], np.float32))
    more = 20
    while more:
        answers.append(client.infer("watched", [tensor]).as_numpy("y").tolist())
        more -= served(server).answers == "exact"
        threading.Event().wait(0.002)
    client.close()
    return answers


def test_evidence_survives_a_restart_and_belongs_to_one_bundle(tmp_path: Path, state: Path) -> None:
    path = certified(tmp_path)
    with serving(path, state) as server:
        ask(server, SAME, 5)
    with serving(path, state) as server:
        ask(server, OTHER, 2)
        (limit,) = facts(server)["limits"]
        assert (limit["n"], limit["losses"]) == (7, 2.0)
        first = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
        forge(path, lambda manifest: manifest.update(why="another"))  # another bundle in its place
        server.call(server.server.state.repository.reload_changed)
        assert facts(server)["limits"][0]["n"] == 0
        ask(server, SAME)
        for name, data in first.items():
            (path / name).write_bytes(data)
        server.call(server.server.state.repository.reload_changed)
        ask(server, SAME)
        assert facts(server)["limits"][0]["n"] == 8


def test_a_bundle_that_is_replaced_while_it_is_opened_gets_no_evidence_of_another(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, why = certified(tmp_path), ["second"]

    def replace_first(*given: Any) -> bool:
        if why:
            forge(path, lambda manifest: manifest.update(why=why.pop()))
        return compare(*given)

    with serving(path, state) as server:
        ask(server, OTHER, 2)
        first = facts(server)["bundle"]
        forge(path, lambda manifest: manifest.update(why="first"))
        monkeypatch.setattr(repository, "compare", replace_first)
        server.call(server.server.state.repository.reload_changed)
        assert f"{path} was replaced while it was opened: load it again" in caplog.text
        assert facts(server)["bundle"] == first
        assert facts(server)["limits"][0]["n"] == 2
        server.call(server.server.state.repository.reload_changed)
        assert facts(server)["bundle"] == file_digest(path / MANIFEST)
        assert served(server).opened.manifest.why == "second"


def test_two_servers_of_one_bundle_add_up(tmp_path: Path, state: Path) -> None:
    path = certified(tmp_path)
    with serving(path, state) as one, serving(path, state) as other:
        ask(one, OTHER, 3)
        ask(other, OTHER, 4)
        ask(one, SAME)
        assert [facts(each)["limits"][0]["n"] for each in (one, other)] == [8, 7]
        assert facts(one)["limits"][0]["losses"] == 7.0


def test_damaged_evidence_lies_beside_and_begins_anew(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = certified(tmp_path)
    with serving(path, state) as server:
        ask(server, SAME, 2)
    (file,) = state.glob("*.json")
    for damage in (b"{", file.read_bytes().replace(b'"n": 2', b'"n": -2'), b"[" * 100_000):
        caplog.clear()
        file.write_bytes(damage)
        with serving(path, state) as server:
            ask(server, SAME)
            assert facts(server)["limits"][0]["n"] == 1
            assert facts(server)["begun_anew"] == 1
        (said,) = [text for text in caplog.messages if "is damaged" in text]
        assert said.endswith("the evidence starts again, with another 5% risk of a false alarm")
        assert "\n" not in said
    assert len(list(state.glob("*.damaged-*"))) == 3


def test_evidence_that_begins_or_was_lost_is_told(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = certified(tmp_path)
    caplog.set_level(logging.INFO, "hasten.serving")
    with serving(path, state) as server:
        file = facts(server)["kept"]
        assert begun(caplog) == [f"the monitor's evidence begins in {file}"]
        server.call(server.server.state.repository.reload_changed)
        ask(server, SAME, 2)
        Path(file).unlink()  # while the server runs, it still knows
        ask(server, SAME)
        assert (facts(server)["begun_anew"], facts(server)["limits"][0]["n"]) == (0, 3)
    Path(file).unlink()
    lost = (
        f"the monitor's evidence in {file} is lost: it starts again, with another 5% risk of a "
        "false alarm"
    )
    for _ in range(2):  # told once
        with serving(path, state) as server:
            assert facts(server)["begun_anew"] == 1
            assert begun(caplog) == [f"the monitor's evidence begins in {file}", lost]
    told = CliRunner().invoke(main, ["monitor", str(path), "--monitor-state", str(state)])
    assert told.exit_code == 0
    assert told.output.endswith(" the evidence was started again: its file was lost\n")


def noted(path: Path, state: Path) -> Path:
    """Keep a line in the record of a bundle; return the record's file."""
    kept.Kept(file_digest(path / MANIFEST), state).changed(
        lambda found: found.noted("then", "noted")
    )
    (file,) = state.glob("*.json")
    return file


def monitored(path: Path, state: Path, *words: str) -> Any:
    """Run `hasten monitor`."""
    return CliRunner().invoke(main, ["monitor", str(path), "--monitor-state", str(state), *words])


def test_the_command_tells_of_lost_evidence_and_only_clearing_changes_the_record(
    tmp_path: Path, state: Path
) -> None:
    path = certified(tmp_path)
    file = noted(path, state)
    file.unlink()
    lost = (
        f"the monitor's evidence in {file} is lost: it starts again, with another 5% risk of a "
        "false alarm\n"
    )
    for _ in range(2):
        shown = monitored(path, state)
        assert (shown.exit_code, shown.output) == (0, lost)
        shown = monitored(path, state, "--json")
        assert (shown.exit_code, shown.stderr) == (0, lost)
        assert json.loads(shown.stdout)["begun_anew"] == 0
        assert not file.exists()
    cleared = monitored(path, state, "--clear")
    assert cleared.exit_code == 0
    assert cleared.output.startswith(lost)
    assert cleared.output.endswith(" cleared by a person: the evidence starts again\n")
    assert "is lost" not in monitored(path, state).output


def test_the_command_leaves_damaged_evidence_to_whoever_clears_it(
    tmp_path: Path, state: Path
) -> None:
    path = certified(tmp_path)
    file = noted(path, state)
    file.write_text("[]")
    shown = monitored(path, state)
    assert shown.exit_code == 2
    assert f"the monitor's evidence in {state} is damaged (" in shown.output
    assert "): give --clear, or start the server, to set it aside and start again" in shown.output
    assert file.read_text() == "[]"
    cleared = monitored(path, state, "--clear")
    assert cleared.exit_code == 0
    assert f"the monitor's evidence in {file} is damaged (" in cleared.output
    assert len(list(state.glob("*.damaged-*"))) == 1


def test_the_command_fails_where_no_evidence_can_be_kept(tmp_path: Path, state: Path) -> None:
    path = certified(tmp_path)
    state.write_text("a file is in the way")
    shown, cleared = monitored(path, state), monitored(path, state, "--clear")
    assert (shown.exit_code, cleared.exit_code) == (2, 2)
    assert f"the monitor's evidence can't be read in {state}: Not a directory" in shown.output
    assert f"the monitor's evidence can't be kept in {state}: File exists" in cleared.output


@pytest.mark.parametrize("call", ["write", "close"])
def test_a_lock_that_takes_no_mark_counts_no_evidence_twice(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    evidence = kept.Kept("0" * 64, tmp_path / "state", said.append)
    real = getattr(os, call)

    def full(number: int, *content: bytes) -> Any:
        if call == "close":
            real(number)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, call, full)
        evidence.changed(lambda found: found.noted("then", "first"))
    found = evidence.changed(lambda found: found.noted("then", "second"))
    assert found.lines == ("then first", "then second")
    assert said == []


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Inode and time of each file whose content is on the disk, also after a power cut."""

    def sync(number: int) -> None:
        real(number)
        found = os.fstat(number)
        on_disk.add((found.st_ino, found.st_mtime_ns))

    real, on_disk = os.fsync, set[tuple[int, int]]()
    monkeypatch.setattr(os, "fsync", sync)
    return on_disk


def audited(evidence: kept.Kept, value: float) -> None:
    """Add one audited answer: 1 for a changed one, 0 for one that is the same."""
    watched = kept.Watched("changed", Null(0.01), 0.05)
    batch = watched.null.batch([value])
    evidence.changed(lambda found: found.added(watched, batch, "then", take_over=True))


def test_an_alarm_survives_a_power_cut_after_any_later_answer(
    tmp_path: Path, synced: set[tuple[int, int]]
) -> None:
    def on_disk(place: Path) -> bool:
        return (place.stat().st_ino, place.stat().st_mtime_ns) in synced

    evidence = kept.Kept("0" * 64, tmp_path / "state")
    while not evidence.record.alarms:
        audited(evidence, 1.0)
    assert evidence.path is not None
    assert on_disk(evidence.path)
    assert on_disk(evidence.path.parent)
    for _ in range(3):
        audited(evidence, 0.0)
        assert on_disk(evidence.path)


def test_evidence_that_begins_anew_counts_though_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int, mode: str) -> Any:
        if mode == "w":
            os.close(number)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, mode)

    real, evidence = os.fdopen, kept.Kept("0" * 64, tmp_path / "state")
    audited(evidence, 0.0)
    assert evidence.path is not None
    evidence.path.write_bytes(b"{")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "fdopen", full)
        audited(evidence, 0.0)
    assert evidence.record.begun_anew == 1
    audited(evidence, 0.0)
    found = kept.peek("0" * 64, tmp_path / "state")
    assert found.begun_anew == 1
    assert [each.n for each in found.evidence.values()] == [3]
    assert ["was damaged" in line for line in found.lines] == [True]


def begun(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("the monitor's evidence ")]


def test_a_folder_that_cannot_be_used_costs_the_memory_of_a_restart_alone(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = certified(tmp_path)
    state.write_text("a file is in the way")
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    for folder, why in ((state, "File exists"), (others, "it belongs to another user, or others ")):
        caplog.clear()
        with serving(path, folder) as server:
            ask(server, OTHER, ENOUGH)
            assert len(facts(server)["alarms"]) == 1
        (said,) = [text for text in caplog.messages if "can't be kept" in text]
        assert why in said
        assert "the next start begins again" in said


def test_an_alarm_in_a_folder_that_became_read_only_still_holds(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certified(tmp_path)
    with serving(path, state, on_alarm="exact") as server:
        ask(server, OTHER, ENOUGH)
        until(lambda: served(server).answers == "exact")
    (lock,) = state.glob("*.lock")
    lock.unlink()
    lock.mkdir()  # for every user, the superuser too: it can't be opened for writing
    with serving(path, state) as server:
        assert ask(server, OTHER) == [OTHER]


def test_evidence_that_could_not_be_kept_is_added_once_it_can(tmp_path: Path, state: Path) -> None:
    path = certified(tmp_path)
    with serving(path, state) as server:
        ask(server, SAME, 2)
        aside = state.rename(tmp_path / "aside")
        state.write_text("in the way")
        ask(server, OTHER, 3)
        state.unlink()
        aside.rename(state)
        ask(server, SAME)
        assert facts(server)["limits"][0]["n"] == 6
    assert next(iter(record(path, state).evidence.values())).losses == 3.0


def test_clocks_that_jump_change_no_evidence(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    years = iter([2026, 1970, 2100, 1999] * 50)
    for place in ("kept", "watch"):
        monkeypatch.setattr(
            f"hasten.serving.monitoring.{place}.now",
            lambda: f"{next(years)}-01-01T00:00:00+00:00",
        )
    with serving(certified(tmp_path), state) as server:
        ask(server, SAME, 4)
        ask(server, OTHER, ENOUGH)
        found = facts(server)
    assert (found["limits"][0]["n"], len(found["alarms"])) == (4 + ENOUGH, 1)


# -- labels


def labelled(server: ServerThread, *labels: tuple[str, Any]) -> Any:
    body = {"labels": [{"id": name, "label": label} for name, label in labels]}
    status, found = fetched(server, "/v2/models/watched/labels", body)
    assert status == 200, found
    return found


def test_labels_in_another_order_count_as_the_answers_came(tmp_path: Path, state: Path) -> None:
    """OTHER is of class 3 by the exact model, of 0 by the fast one; of SAME both say 1."""
    folder = tmp_path / "net"
    limits = {}
    for turned in (False, True):
        path = certified(folder, guard="lost", max_drop=0.2)
        with serving(path, state / str(turned)) as server:
            for number in range(6):
                ask(server, OTHER if number % 2 else SAME, name=f"r{number}")
            labels = [(f"r{number}", 3 if number % 2 else 1) for number in range(6)]
            for one in reversed(labels) if turned else labels:
                labelled(server, one)
            limits[turned] = facts(server)["limits"][1]
            assert facts(server)["labels"]["counted"] == 6
    assert limits[True] == limits[False]
    assert (limits[True]["what"], limits[True]["n"], limits[True]["losses"]) == ("lost", 6, 3.0)


def test_a_label_that_is_unknown_comes_twice_or_contradicts_counts_once(
    tmp_path: Path, state: Path
) -> None:
    with serving(certified(tmp_path, guard="net"), state) as server:
        ask(server, OTHER, name="a")
        ask(server, OTHER, name="b")
        assert labelled(server, ("b", 0), ("b", 0), ("b", 3), ("c", 1)) == {
            "waiting": 1,
            "twice": 1,
            "contradicting": 1,
            "unknown": 1,
        }
        assert facts(server)["limits"][1]["n"] == 0  # a's label is awaited
        assert labelled(server, ("a", "a cat")) == {"taken": 1}
        found = facts(server)
        assert found["labels"]["last"].startswith("request 'a': ")
        assert (found["limits"][1]["n"], found["limits"][1]["gains"]) == (1, 1.0)
        assert labelled(server, ("b", 3)) == {"contradicting": 1}


def test_labels_that_show_a_loss_raise_their_own_alarm(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path, guard="net"), state, shadow_limit=0.99) as server:
        for number in range(60):
            ask(server, OTHER, name=str(number))
        labelled(server, *((str(number), 3) for number in range(60)))
        (alarm,) = facts(server)["alarms"]
    assert alarm.startswith("more than 10% is the net loss: 100% of ")


def test_labels_are_refused_where_they_say_nothing(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state) as server:
        body = {"labels": [{"id": "a", "label": 1}]}
        assert fetched(server, "/v2/models/watched/labels", body) == (
            400,
            {"error": "labels have no use for 'watched': its certificate is about changed answers"},
        )


# -- what is audited


def test_of_a_request_with_several_rows_one_is_audited(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state) as server:
        client = triton.InferenceServerClient(server.host)
        tensor = triton.InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(np.array([OTHER] * 3, np.float32))
        for number in range(4):
            client.infer("watched", [tensor])
            until(partial(_audited, server, number + 1))
        client.close()
        assert facts(server)["limits"][0]["n"] == 4


def test_without_idle_time_answers_are_dropped_and_counted(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state) as server:
        shadow = served(server)._shadow
        shadow._idle = lambda: False
        ask(server, OTHER)
        found = facts(server)
    assert (found["dropped"], found["limits"][0]["n"]) == (1, 0)


def test_a_shadow_that_dies_is_said_and_answers_go_on(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(certified(tmp_path), state) as server:
        served(server).opened.standby.close()
        for _ in range(5):
            assert ask(server, OTHER) == [OTHER[::-1]]
        found = facts(server)
        _, metrics = fetched(server, "/metrics")
    assert (found["failed"], found["limits"][0]["n"]) == (5, 0)
    assert found["blind"].startswith("the exact model fails: CandidateError: the bundle is closed")
    assert 'hasten_monitor_sees{model="watched",version="1"} 0.0' in metrics
    assert len([text for text in caplog.messages if text.startswith("the monitor is blind")]) == 1


def test_a_bundle_without_a_limit_is_compared_and_says_so(tmp_path: Path, state: Path) -> None:
    path = bundle_of(tmp_path, models.mirrored(tmp_path), exact=models.solid(tmp_path))
    with serving(path, state) as server:
        ask(server, OTHER)
        assert facts(server)["limits"] == []
        note = (
            "answers are compared, but no alarm is raised: the bundle's certificate states no limit"
        )
        assert any(each.startswith(note) for each in served(server).opened.notes)
    with serving(path, state, shadow_limit=0.1) as server:
        ask(server, OTHER, ENOUGH)
        assert len(facts(server)["alarms"]) == 1


def test_a_drop_without_a_record_of_changes_is_watched_by_labels_alone(
    tmp_path: Path, state: Path
) -> None:
    """As in a bundle of an earlier version, whose traffic may change as many answers as it always did."""
    path = certified(tmp_path, guard="net", changed=None)
    note = (
        "answers are compared, but only labels can raise an alarm: the bundle's certificate is about "
        "a drop, and its record states no limit on changed answers: give --shadow-limit to have them "
        "watched"
    )
    with serving(path, state) as server:
        assert note in served(server).opened.notes
        for number in range(2 * ENOUGH):
            ask(server, OTHER, name=str(number))
        found = facts(server)
        assert (found["audited"], found["alarms"]) == (2 * ENOUGH, [])
        assert [limit["what"] for limit in found["limits"]] == ["net"]
        labelled(server, *((str(number), 3) for number in range(2 * ENOUGH)))
        (alarm,) = facts(server)["alarms"]
    assert alarm.startswith("more than 10% is the net loss: 100% of ")
    with serving(path, state, shadow_limit=0.3) as server:
        assert [limit["what"] for limit in facts(server)["limits"]] == ["changed", "net"]


@pytest.mark.parametrize(
    ("judged", "settings", "meaning"),
    [
        ({"guard": "changed"}, {}, "the certificate doesn't hold for this traffic"),
        ({"guard": "net"}, {}, "this traffic isn't the traffic that was certified"),
        ({"guard": "net"}, {"shadow_limit": 0.01}, "no certificate states this limit"),
    ],
)
def test_an_alarm_says_of_the_certificate_what_it_shows(
    tmp_path: Path,
    state: Path,
    caplog: pytest.LogCaptureFixture,
    judged: dict[str, Any],
    settings: dict[str, Any],
    meaning: str,
) -> None:
    with serving(certified(tmp_path, **judged), state, **settings) as server:
        ask(server, OTHER, ENOUGH)
        (alarm,) = facts(server)["alarms"]
    (said,) = [text for text in caplog.messages if text.startswith("alarm: ")]
    assert said == f"alarm: {alarm}; {meaning}; the fast model continues to answer"


def test_a_column_past_its_own_range_is_a_signal(tmp_path: Path, state: Path) -> None:
    path = bundle_of(tmp_path, models.mirrored(tmp_path), exact=models.solid(tmp_path))
    kept = {"input": "x", "low": [0.0, 0.0, 0.0, 0.0], "high": [2.0, 100.0, 100.0, 2.0]}
    forge(path, lambda record: record.update(ranges=[kept]))
    with serving(path, state) as server:
        ask(server, SAME)
        ask(server, [1.0, 90.0, 90.0, 1.0])
        ask(server, [50.0, 1.0, 1.0, 50.0])  # within the range of other columns alone
        drift = facts(server)["drift"]
    assert drift["outside"]["n"] == 3
    assert drift["outside"]["mean"] == pytest.approx(1 / 3)
    assert drift["margin"]["n"] == 3


def test_a_bundle_without_ranges_shows_no_such_signal(tmp_path: Path, state: Path) -> None:
    path = bundle_of(tmp_path, models.mirrored(tmp_path), exact=models.solid(tmp_path))
    with serving(path, state) as server:
        ask(server, [1.0, 100.0, 100.0, 1.0])
        assert facts(server)["drift"]["outside"]["n"] == 0


def test_the_margin_is_that_of_class_scores_beside_boxes(tmp_path: Path, state: Path) -> None:
    """The first output has as many rows as x has numbers above 1, which are no scores of classes."""
    text = """
        boxes (float[batch, 4] x) => (float[found, 2] boxes, float[batch, 4] y) <float one = {1}> {
            y = HOW(x)
            above = Greater(x, one)
            places = NonZero(above)
            columns = Transpose(places)
            boxes = Cast<to = 1>(columns)
        }"""
    winner, exact = (
        write(tmp_path / f"{how}.onnx", text.replace("HOW", how), {})
        for how in ("Identity", "Relu")
    )
    path = bundle_of(tmp_path, winner, exact=exact)
    forge(path, lambda record: record.update(varying=["boxes"]))
    with serving(path, state) as server:
        ask(server, [1.0, 9.0, 1.0, 0.0])
        ask(server, [1.0, 9.0, 3.0, 0.0])
        margin = facts(server)["drift"]["margin"]
    assert (margin["n"], margin["mean"]) == (2, 7)


class _Other(socketserver.BaseRequestHandler):
    """Something else than a server of HTTP: it answers with an alert of TLS, or dies amid its answer."""

    says: ClassVar[bytes] = b"\x15\x03\x01\x00\x02\x02F"

    def handle(self) -> None:
        self.request.sendall(self.says)
        self.request.shutdown(socket.SHUT_WR)
        while self.request.recv(65536):  # a reset would overtake the answer
            pass


class _Dying(_Other):
    says = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture
def other() -> Iterator[Callable[[type[_Other]], int]]:
    """Function that starts a server with a handler, and returns its port."""

    def started(handler: type[_Other]) -> int:
        server = socketserver.TCPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ended.callback(server.server_close)
        ended.callback(server.shutdown)
        return int(server.server_address[1])

    with contextlib.ExitStack() as ended:
        yield started


def test_an_endpoint_that_speaks_something_else_is_tried_again_and_logged(
    other: Callable[[type[_Other]], int], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{other(_Other)}/services/s3cret"
    webhook.check_address(url)
    webhook.post(url, {}, lambda: None, threading.Event(), (0.01,)).join()
    assert caplog.messages == [
        "the webhook at 127.0.0.1 didn't receive an alarm: no valid answer over HTTP (BadStatusLine); "
        "the next start tries again"
    ]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://alarm:s3cret@hooks.example/x", "can't have a user's name or a password"),
        ("https://s3cret@hooks.example/x", "can't have a user's name or a password"),
        ("https://hooks.example:s3cret/x", "is an http:// or https:// address"),
        ("https://[s3cret/x", "is an http:// or https:// address"),
        ("ftp://s3cret/x", "is an http:// or https:// address"),
        ("https://hooks.example/s3cret x", "has a space"),
        (" https://hooks.example/s3cret", "has a space"),
        ("https://hooks.example/s3cret\r\nX: y", "has a space"),
        ("https://hooks.example/s3cret\x7f", "has a space"),
        ("https://hooks.example/s3cret\xfc", "has a space"),
    ],
)
def test_an_address_that_nothing_can_be_posted_to_is_refused_and_not_shown(
    url: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        webhook.check_address(url)
    assert "s3cret" not in str(caught.value)


def test_no_part_of_an_address_but_its_host_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("https://alarm:s3cret@127.0.0.1/x", "http://127.0.0.1/s3cret x"):
        webhook.post(url, {}, lambda: None, threading.Event(), ()).join()
    assert [line.count("(InvalidURL)") for line in caplog.messages] == [1, 1]
    assert "s3cret" not in caplog.text


def test_who_does_not_watch_is_told_how(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state, shadow=0.0) as server:
        assert fetched(server, "/v2/models/watched/monitor") == (
            404,
            {
                "error": "the model 'watched' isn't watched: start the server with --shadow, such as 1%"
            },
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on-alarm", "exact"], "--on-alarm needs answers to watch: give --shadow, such as 0.01"),
        (["--shadow", "1%", "--webhook", "ftp://a"], "--webhook is an http:// or https:// address"),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    found = CliRunner().invoke(main, ["serve", str(certified(tmp_path)), *words])
    assert found.exit_code == 2
    assert said in found.output


# -- several servers behind one door


def test_the_door_adds_up_replicas_that_share_no_folder(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for door in ("pooling", "federation"):  # so that none is left out on a busy host
        monkeypatch.setattr(f"hasten.serving.cluster.{door}._PATIENCE_S", 60.0)
    path = certified(tmp_path)
    place = place_of(
        path, "watched", shadow=1.0, monitor_state=str(state), on_alarm="exact", most_rows=1
    )
    settings = ServerSettings((place,))
    ports: dict[str, tuple[str, int]] = {}
    with Pool(settings, lambda: dict(ports)) as pool:
        (own,) = pool.of_replicas(settings).models
        with ServerThread(own) as one, ServerThread(own) as other:
            ports |= {str(each.http_port): ("127.0.0.1", each.http_port) for each in (one, other)}
            assert ask(one, OTHER) == ask(other, OTHER) == [OTHER[::-1]]
            with concurrent.futures.ThreadPoolExecutor(4) as threads:  # none is counted twice
                list(threads.map(lambda _: pool.look(), range(8)))
            ((limit,),) = [watch.facts()["limits"] for watch in pool.watches.values()]
            assert (limit["n"], limit["losses"]) == (2, 2.0)
            assert facts(one)["limits"] == []
            for _ in range(ENOUGH // 2):
                ask(one, OTHER)
                ask(other, OTHER)
            pool.look()
            until(lambda: ask(one, OTHER) == ask(other, OTHER) == [OTHER])
            order = "/v2/models/watched/versions/1/monitor"
            assert fetched(one, order, {"secret": "guessed"})[0] == 403
            status, page = Federation(lambda: dict(ports), pool.page).page()
        with ServerThread(own) as third:  # a replica that comes later is told, too
            ports.clear()
            ports["third"] = ("127.0.0.1", third.http_port)
            pool.look()
            assert ask(third, OTHER) == [OTHER]
    assert status == 200
    line = 'hasten_monitor_alarm{replica="all",model="watched",version="1",what="changed"} 1.0'
    assert line in page.decode().splitlines()


def test_a_pool_is_blind_where_all_of_its_replicas_are(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.serving.cluster.pooling._PATIENCE_S", 60.0)
    place = place_of(certified(tmp_path), "watched", shadow=1.0, monitor_state=str(state))
    settings, ports = ServerSettings((place,)), dict[str, tuple[str, int]]()

    def sees() -> list[str]:
        pool.look()
        lines = pool.page().splitlines()
        return [one.split()[-1] for one in lines if one.startswith("hasten_monitor_sees{")]

    with Pool(settings, lambda: dict(ports)) as pool:
        (own,) = pool.of_replicas(settings).models
        alone = dataclasses.replace(own, settings=dataclasses.replace(own.settings, alone=True))
        with ServerThread(alone) as one, ServerThread(own) as other:
            ports["one"] = ("127.0.0.1", one.http_port)
            assert sees() == ["0.0"]
            ports["other"] = ("127.0.0.1", other.http_port)
            assert sees() == ["1.0"]
            del ports["other"]
            assert sees() == ["0.0"]


def test_a_cleared_alarm_lets_the_fast_model_of_every_replica_answer_again(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.serving.cluster.pooling._PATIENCE_S", 60.0)
    path = certified(tmp_path)
    place = place_of(path, "watched", shadow=1.0, monitor_state=str(state), on_alarm="exact")
    settings, ports = ServerSettings((place,)), dict[str, tuple[str, int]]()
    right, wrong = [OTHER], [OTHER[::-1]]
    with Pool(settings, lambda: dict(ports)) as pool:
        (own,) = pool.of_replicas(settings).models
        with ServerThread(own) as one, ServerThread(own) as other:
            ports |= {str(each.http_port): ("127.0.0.1", each.http_port) for each in (one, other)}
            ask(one, OTHER, ENOUGH)
            pool.look()
            until(lambda: ask(one, OTHER) == ask(other, OTHER) == right)
            clear = ["monitor", str(path), "--monitor-state", str(state), "--clear"]
            assert CliRunner().invoke(main, clear).exit_code == 0
            pool.look()
            until(lambda: served(one).answers == served(other).answers == "winner")
            assert ask(one, OTHER) == ask(other, OTHER) == wrong
            with ServerThread(own) as third:
                ports["third"] = ("127.0.0.1", third.http_port)
                pool.look()
                assert ask(third, OTHER) == wrong
            shown = CliRunner().invoke(main, clear[:-1])
            assert (shown.exit_code, shown.output[-9:]) == (0, "no alarm\n")
            del ports["third"]
            ask(one, OTHER, ENOUGH)  # what breaks the limit later raises another alarm
            pool.look()
            until(lambda: ask(one, OTHER) == ask(other, OTHER) == right)


def test_a_door_without_shadow_keeps_to_an_alarm_that_nobody_cleared(
    tmp_path: Path, state: Path
) -> None:
    path = certified(tmp_path)
    with serving(path, state, on_alarm="exact") as server:
        ask(server, OTHER, ENOUGH)
    settings = ServerSettings((place_of(path, "watched", monitor_state=str(state)),))
    clear = ["monitor", str(path), "--monitor-state", str(state), "--clear"]
    for answer in ([OTHER], [OTHER[::-1]]):
        with Pool(settings, dict) as pool:
            (own,) = pool.of_replicas(settings).models
        assert own.settings.monitor_state == "off"  # the replica may be on another machine
        with ServerThread(own) as replica:
            assert ask(replica, OTHER) == answer
        assert CliRunner().invoke(main, clear).exit_code == 0


def test_a_door_that_starts_again_counts_no_answer_twice(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.serving.cluster.pooling._PATIENCE_S", 60.0)
    place = place_of(certified(tmp_path), "watched", shadow=1.0, monitor_state=str(state))
    settings, ports = ServerSettings((place,)), dict[str, tuple[str, int]]()
    with Pool(settings, lambda: dict(ports)) as pool:
        (own,) = pool.of_replicas(settings).models
    with ServerThread(own) as older:
        ports["older"] = ("127.0.0.1", older.http_port)
        ask(older, OTHER, 3)
        pool.look()
        assert pooled(pool) == 3
        later = Pool(settings, lambda: dict(ports))
        (own,) = later.of_replicas(settings).models
        with ServerThread(own) as newer:  # the first one outlived its door
            ports["newer"] = ("127.0.0.1", newer.http_port)
            ask(older, OTHER)
            ask(newer, SAME, 2)
            later.look()
            later.look()
            assert pooled(later) == 3 + 2
    said = "a replica was started by an earlier process in front of the servers: "
    assert len([text for text in caplog.messages if text.startswith(said)]) == 1


def test_a_replica_that_dies_amid_its_answer_costs_the_others_nothing(
    tmp_path: Path, state: Path, other: Callable[[type[_Other]], int]
) -> None:
    place = place_of(certified(tmp_path), "watched", shadow=1.0, monitor_state=str(state))
    settings, ports = ServerSettings((place,)), dict[str, tuple[str, int]]()
    with Pool(settings, lambda: dict(ports)) as pool:
        (own,) = pool.of_replicas(settings).models
        with ServerThread(own) as alive:
            ports["dying"] = ("127.0.0.1", other(_Dying))
            ports["alive"] = ("127.0.0.1", alive.http_port)
            ask(alive, OTHER, 3)
            pool.look()
            assert pooled(pool) == 3
            with Federation(lambda: dict(ports)) as federation:
                status, page = federation.page()
    assert status == 200
    assert b'replica="alive"' in page
    assert b'replica="dying"' not in page


def pooled(pool: Pool) -> int:
    (watch,) = pool.watches.values()
    return int(watch.facts()["limits"][0]["n"])


def test_nobody_orders_a_server_that_stands_alone(tmp_path: Path, state: Path) -> None:
    with serving(certified(tmp_path), state) as server:
        order = "/v2/models/watched/versions/1/monitor"
        assert fetched(server, order, {"secret": ""}) == (
            403,
            {"error": "only the process in front of several servers may do that"},
        )
        assert ask(server, OTHER) == [OTHER[::-1]]


def test_an_alarm_after_a_clear_is_told_again(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = certified(tmp_path)
    with serving(path, state) as server:
        ask(server, OTHER, ENOUGH)
        clear = ["monitor", str(path), "--monitor-state", str(state), "--clear"]
        assert CliRunner().invoke(main, clear).exit_code == 0
        ask(server, OTHER, ENOUGH)
        assert facts(server)["begun_anew"] == 1
    assert len([text for text in caplog.messages if text.startswith("alarm: ")]) == 2
    shown = CliRunner().invoke(main, ["monitor", str(path), "--monitor-state", str(state)])
    assert f"changed: 100% of {ENOUGH} audited answers (95% interval " in shown.output
    assert "%); the limit is 10%\n" in shown.output
    assert "no alarm" not in shown.output

"""What a replica on Ray does without Ray: its files, its load, the roster, the joined metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.models import identity
from tests.support.servers import bundle_of
from tests.support.waiting import until

from hasten.bundle import MANIFEST, read
from hasten.core.records import from_record, to_record
from hasten.errors import InputError
from hasten.serving.cluster import federation
from hasten.serving.cluster import replica as replica_module
from hasten.serving.cluster.federation import Federation, joined
from hasten.serving.cluster.ingress import ReplicaEntry
from hasten.serving.cluster.ray_cluster import Known, deploy
from hasten.serving.cluster.replica import (
    Replica,
    ReplicaLoad,
    Roster,
    behind_door,
    known_by,
    packed,
    target,
    wanted_replicas,
    with_folders,
)
from hasten.serving.cluster.shelf import Shelf, door_folder, private_root
from hasten.serving.options import Access, ModelOptions
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.rights import Client, Rights, Scope, digest_of
from hasten.serving.protocol.tokens import read_clients
from hasten.serving.run import settings_of
from hasten.serving.settings import ServerSettings

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return bundle_of(folder, identity(folder), "m")


# -- files


def test_parcels_hold_the_bundles_the_libraries_and_the_token(bundle: Path, tmp_path: Path) -> None:
    library, token = tmp_path / "ops.so", tmp_path / "token"
    library.write_bytes(b"code")
    token.write_text("a token that is long enough\n".replace(" ", "-"))
    settings = settings_of(
        [bundle, f"other={bundle}"],
        models=ModelOptions(custom_ops=[library, library]),
        access=Access(token_file=token),
    )
    parcels = packed(settings, lambda data: data)
    root = tmp_path / "root"
    root.mkdir()
    with shelf(root) as one:
        folders = [one.place(each.name, each.files) for each in parcels]
    there = with_folders(settings, folders)
    assert len(parcels) == 4
    for before, after in zip(settings.models, there.models, strict=True):
        assert after.path.is_relative_to(root)
        assert (after.name, after.version) == (before.name, before.version)
        assert read(after.path) == read(before.path)
        assert [p.read_bytes() for p in after.settings.custom_ops] == [b"code", b"code"]
    assert there.token() == settings.token()
    assert from_record(ServerSettings, to_record(there)) == there


def test_replicas_of_a_pool_without_a_token_get_a_secret_of_their_own(
    bundle: Path, tmp_path: Path
) -> None:
    settings = settings_of([bundle])
    inner, other = behind_door(settings, tmp_path), behind_door(settings, bundle.parent)
    assert inner.behind_door
    assert settings.token() is None
    assert len(inner.token() or b"") > 40
    assert inner.token() != other.token()
    *_, parcel = packed(inner, lambda data: data)
    assert parcel.files == {"token": inner.token()}
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_replicas_know_the_clients_of_their_pool_and_not_their_tokens(
    bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        '["a \\"quoted\\" näme\\u007f"]\nscopes = ["read"]\ntoken = "a-word-for-readers"\n'
        '[b]\nscopes = ["control", "infer"]\ntoken = "a-word-for-callers"\n'
    )
    file.chmod(0o600)
    settings = settings_of([bundle], access=Access(tokens=file))
    text = Known(settings).text
    assert "a-word" not in text
    (tmp_path / "copy.toml").write_text(text)
    (tmp_path / "copy.toml").chmod(0o600)
    assert read_clients(tmp_path / "copy.toml") == read_clients(file)
    inner = behind_door(settings, tmp_path)
    assert not inner.behind_door
    rights = dataclasses.replace(inner, tokens=tmp_path / "copy.toml").rights()
    assert rights is not None
    assert rights.check(Scope.READ, b"Bearer a-word-for-readers") == 'a "quoted" näme\x7f'
    assert rights.check(Scope.CONTROL, b"Bearer " + (inner.token() or b""))
    for wrong in (b"Bearer a-word-for-callers", b"Bearer guessed", b""):
        with pytest.raises(ProtocolError):
            rights.check(Scope.READ, wrong)


def test_one_token_of_a_pool_is_a_client_with_all_rights(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse-battery")
    settings = settings_of([bundle], access=Access(token_file=tmp_path / "token"))
    known = Known(settings)
    assert "correct-horse" not in known.text
    assert not known.look()
    (tmp_path / "token").write_text("another-horse-and-battery")
    assert known.look()
    assert known.rights is not None
    assert known.rights.check(Scope.CONTROL, b"Bearer another-horse-and-battery") == ""
    with pytest.raises(ProtocolError):
        known.rights.check(Scope.READ, b"Bearer correct-horse-battery")


def test_metrics_of_a_pool_without_replicas_ask_for_the_token() -> None:
    reader = Client("reader", frozenset({Scope.READ}), digest_of(b"a-word-for-readers"))
    caller = Client("caller", frozenset({Scope.INFER}), digest_of(b"a-word-for-callers"))
    with Federation(dict, lambda: "all 1\n", rights=lambda: Rights([reader, caller])) as door:
        said = "this server requires a token: send Authorization: Bearer TOKEN\n"
        assert door.page() == door.page("Bearer wrong") == (401, said.encode())
        lacks = "this needs the scope read, but 'caller' has only infer\n"
        assert door.page("Bearer a-word-for-callers") == (403, lacks.encode())
        assert door.page("Bearer a-word-for-readers") == (200, b'all{replica="all"} 1\n')


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", 200, 'all{replica="all"} 1\n'),
        (b"HEAD / HTTP/1.1\r\nHost: here\r\n\r\n", 200, ""),
        (b"POST / HTTP/1.1\r\nHost: here\r\n\r\n", 501, "Unsupported method ('POST')"),
        (b"GET /" + b"a" * 65_532, 414, "Request-URI Too Long"),
    ],
)
def test_the_page_of_all_replicas_answers_once_and_in_text(
    sent: bytes, status: int, said: str
) -> None:
    with (
        Federation(dict, lambda: "all 1\n") as door,
        socket.create_connection(("127.0.0.1", door.port), 60) as client,
    ):
        client.sendall(sent)
        head, _, body = client.makefile("rb").read().decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert int(lines[0].split()[1]) == status
    assert {"Connection: close", "Content-Type: text/plain; version=0.0.4; charset=utf-8"} <= {
        *lines
    }
    asked = "the metrics are asked for with GET or HEAD: "
    assert body == (said if status == 200 else f"{asked}{said}\n")


def test_the_page_of_all_replicas_is_made_once_for_all_who_ask_meanwhile_or_soon_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go, made = list[str](), threading.Event(), list[int]()

    def together() -> str:
        made.append(1)
        go.wait(60)
        return f"all {len(made)}\n"

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{door.port}", timeout=60) as answer:
            asked.append(answer.read().decode())

    monkeypatch.setattr(federation, "_KEPT_NS", 3_600_000_000_000)
    with Federation(dict, together) as door:
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: bool(made))
        go.set()
        for thread in threads:
            thread.join(60)
        ask()
        monkeypatch.setattr(federation, "_KEPT_NS", 0)
        ask()
    assert asked == ['all{replica="all"} 1\n'] * 21 + ['all{replica="all"} 2\n']


@contextlib.contextmanager
def shelf(root: Path) -> Iterator[Shelf]:
    """A shelf, as long as a replica uses it."""
    one = Shelf(root)
    yield one
    for each in one.descriptors:
        os.close(each)


FILES = {"manifest.json": b"1", "fast/model.onnx": b"long" * 300_000, "fast/empty": b""}


def test_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    with shelf(tmp_path) as one, shelf(tmp_path) as other:
        folder = one.place("parcel", FILES)
        before = [(folder / each).stat() for each in FILES]
        assert other.place("parcel", FILES) == folder
    assert [(folder / each).stat().st_ino for each in FILES] == [each.st_ino for each in before]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "parcel"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [None, b"", b"l", b"long" * 299_999 + b"gone"])
def test_files_that_were_removed_or_damaged_on_a_node_are_written_again(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    with shelf(tmp_path) as one:
        folder = one.place("parcel", FILES)
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(damage)
        with shelf(tmp_path) as other:
            assert other.place("parcel", FILES) == folder
    assert {each: (folder / each).read_bytes() for each in FILES} == FILES


def test_folders_in_use_are_locked_and_others_are_removed(tmp_path: Path) -> None:
    with shelf(tmp_path) as one:
        own = one.place("own", FILES)
        with shelf(tmp_path) as other:
            left = other.place("left", FILES)
            other.place("own", FILES)
            one.tidy()
            assert left.is_dir()
            for each in (tmp_path, own, left):  # as systemd-tmpfiles asks
                number = os.open(each, os.O_RDONLY)
                with pytest.raises(BlockingIOError):
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(number)
        one.tidy()
        assert {each: (own / each).read_bytes() for each in FILES} == FILES
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "own"]


def test_a_replica_s_server_holds_its_files_after_the_replica_was_killed(tmp_path: Path) -> None:
    with shelf(tmp_path) as one:
        own = one.place("own", FILES)
        server = subprocess.Popen(["sleep", "600"], pass_fds=one.descriptors)
    with shelf(tmp_path) as other:
        other.tidy()
        assert own.is_dir()
        server.kill()
        server.wait()
        other.tidy()
        assert not own.exists()


def test_a_folder_that_can_t_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    with shelf(tmp_path) as one:
        (tmp_path / "parcel").write_bytes(b"")
        with pytest.raises(InputError) as caught:
            one.place("parcel", FILES)
    said = f"can't keep a replica's files in {tmp_path}/parcel: File exists"
    assert str(caught.value) == said


# -- the roster


def test_a_replica_that_says_nothing_is_forgotten() -> None:
    now_s = [0.0]
    roster = Roster(clock_s=lambda: now_s[0])
    entry = ReplicaEntry("127.0.0.1", 1)
    roster.enter("quiet", entry)
    now_s[0] = 10.0
    roster.enter("loud", entry)
    now_s[0] = 15.0
    assert roster.book().entries == {"loud": entry}


def test_a_failure_counts_until_a_replica_comes() -> None:
    roster = Roster(clock_s=lambda: 0.0)
    roster.fail("why")
    assert roster.book().failure == "why"
    roster.enter("one", ReplicaEntry("127.0.0.1", 1))
    assert roster.book().failure == ""


def test_a_replica_hears_of_other_clients_by_its_heartbeat() -> None:
    roster = Roster(clock_s=lambda: 0.0)
    entry = ReplicaEntry("127.0.0.1", 1)
    assert (roster.enter("one", entry), roster.clients()) == ("", "")
    roster.admit("[a]")
    assert roster.enter("one", entry) == known_by(roster.clients()) != ""
    before = roster.enter("one", entry)
    roster.admit("[b]")
    assert roster.enter("one", entry) != before


class Stub:
    """Parts of a replica whose roster answers from this process, and whose server is a program that waits."""

    _enter, _admit, end = Replica._enter, Replica._admit, Replica.__del__
    _say_once, _said = Replica._say_once, ""
    _shelf: Shelf

    def __init__(self, roster: Roster, file: Path) -> None:
        self._at, self._name, self._admitted = roster, "one", ""
        self._entry, self._roster = ReplicaEntry("127.0.0.1", 1), None
        self._settings = ServerSettings((), tokens=file)
        self.process = self._process = subprocess.Popen(["sleep", "600"])
        self._heart = asyncio.get_running_loop().create_task(asyncio.sleep(600))

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._at, method)(*arguments)

    async def settled(self, settings: ServerSettings) -> Any:
        return await Replica._settled(self, settings)  # type: ignore[arg-type]

    async def enter(self) -> None:
        await self._enter()  # type: ignore[misc]

    async def beat(self) -> None:
        await Replica._beat(self)  # type: ignore[arg-type]


def test_a_replica_writes_new_clients_and_outlives_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = SimpleNamespace(RayError=KeyError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors))
    monkeypatch.setattr(replica_module, "_LEAVE_S", 0.0)
    file = tmp_path / "private" / "clients.toml"

    async def work() -> None:
        roster = Roster(clock_s=lambda: 0.0)
        one = Stub(roster, file)
        roster.admit("[a]")
        await one.enter()
        assert "the previous tokens stay in use: can't write them" in caplog.text
        file.parent.mkdir()
        for text in ("[a]", "[b]"):
            roster.admit(text)
            await one.enter()
            assert file.read_text() == text
        assert file.stat().st_mode & 0o077 == 0
        roster.admit("[c]")
        shutil.rmtree(file.parent)
        await one.end()  # type: ignore[misc]
        assert one.process.poll() is not None
        assert roster.book().entries == {}

    asyncio.run(work())


def test_a_replica_beats_on_whatever_its_heartbeats_end_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = SimpleNamespace(RayError=KeyError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors))
    monkeypatch.setattr(replica_module, "_HEARTBEAT_S", 0.001)

    class Failing(Roster):
        """Roster that answers the first heartbeats with errors that nobody foresaw."""

        left = [RuntimeError("can't be sent"), RuntimeError("can't be sent"), TypeError("odd")]

        def enter(self, name: str, entry: ReplicaEntry) -> str:
            if self.left:
                raise self.left.pop(0)
            return super().enter(name, entry)

    async def work() -> None:
        roster = Failing(clock_s=lambda: 0.0)
        one = Stub(roster, tmp_path / "clients.toml")
        beating = asyncio.create_task(one.beat())
        try:
            while not roster.book().entries:
                await asyncio.wait({beating}, timeout=0.01)
                assert not beating.done()
        finally:
            one.process.kill()
        await beating

    asyncio.run(work())
    said = [each.getMessage() for each in caplog.records]
    assert said == [
        "a heartbeat failed: RuntimeError: can't be sent",
        "a heartbeat failed: TypeError: odd",
    ]


def test_a_replica_holds_its_parcels_and_its_clients_and_removes_what_others_left(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = SimpleNamespace(RayError=KeyError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=errors))
    monkeypatch.setattr(replica_module, "_LEAVE_S", 0.0)
    monkeypatch.setattr(replica_module, "_own_address", lambda: "127.0.0.1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "tokens.toml").write_text("[a]\nscopes = ['read']\ntoken = 'a-word-for-readers'\n")
    (tmp_path / "tokens.toml").chmod(0o600)
    settings = settings_of([bundle], access=Access(tokens=tmp_path / "tokens.toml"))
    inner = behind_door(settings, tmp_path)

    def parcel(data: bytes) -> asyncio.Future[bytes]:
        stored: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stored.set_result(data)
        return stored

    async def work() -> None:
        roster = Roster(clock_s=lambda: 0.0)
        roster.admit(Known(settings).text)
        one = Stub(roster, tmp_path / "none" / "clients.toml")
        root = private_root()
        with shelf(root) as left:
            left.place("bundle-of-another-pool", FILES)
        for _ in range(2):  # the second finds an incomplete bundle
            roster.put_in(packed(inner, parcel))
            found = await one.settled(inner)
            (place,) = found.models
            assert read(place.path) == read(bundle)
            assert place.path.parent == root
            assert found.token() == inner.token()
            rights = found.rights()
            assert rights is not None
            assert rights.check(Scope.READ, b"Bearer a-word-for-readers") == "a"
            kinds = {each.name.partition("-")[0] for each in root.iterdir()}
            assert kinds == {"lock", "bundle", "token", "clients"}
            assert not (root / "bundle-of-another-pool").exists()
            held = {os.fstat(each).st_ino for each in one._shelf.descriptors}
            assert found.token_file is not None
            assert found.tokens is not None
            for folder in (root, place.path, found.token_file.parent, found.tokens.parent):
                assert folder.stat().st_ino in held
            for file in place.path.rglob("*"):
                if file.is_file() and file.name != MANIFEST:
                    file.unlink()
            for each in one._shelf.descriptors:
                os.close(each)
        one._settings = found
        await one.end()  # type: ignore[misc]
        assert not found.tokens.exists()

    asyncio.run(work())


def test_a_door_holds_its_secrets_and_removes_those_of_doors_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, new, other = (tmp_path / name for name in ("hasten-ingress-a", "hasten-ingress-b", "c"))
    with door_folder() as running:
        for each in (killed, new, other):
            each.mkdir()
            (each / "tls.pem").touch()
        for each in (running, killed, other):
            os.utime(each, (0, 0))
        with door_folder() as own:
            assert {*tmp_path.iterdir()} == {running, own, new, other}
            assert own.stat().st_mode & 0o077 == 0
    assert {*tmp_path.iterdir()} == {new, other}


# -- signals


HANGUP = """
import signal
from hasten.serving.cluster.ray_cluster import _told_to_end

before = signal.getsignal(signal.SIGHUP)
with _told_to_end() as ended:
    signal.raise_signal(signal.SIGHUP)
    assert not ended.is_set()
    signal.raise_signal(signal.SIGTERM)
    assert ended.is_set()
assert signal.getsignal(signal.SIGHUP) == before
"""


def test_a_hangup_ends_no_door() -> None:
    """Ask a new process: after OpenVINO's own objects, as NNCF makes them, a signal may end this one."""
    done = subprocess.run([sys.executable, "-c", HANGUP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- the load


def statistics(requests: int, rows: int, spent_ns: int) -> dict[str, Any]:
    success = {"count": requests, "ns": spent_ns}
    model = {"name": "m", "version": "1", "inference_count": rows}
    return {"model_stats": [{**model, "inference_stats": {"success": success}}]}


def test_the_load_is_what_is_under_way_over_what_may_be() -> None:
    now_ns = [SECOND]
    load = ReplicaLoad({("m", "1"): 8}, lambda: now_ns[0])
    assert load.since_last(statistics(0, 0, 0)) == 0
    now_ns[0] += SECOND
    # 100 requests of 2 rows, 40 ms each: 4 requests under way in the mean.
    assert load.since_last(statistics(100, 200, 4 * SECOND)) == pytest.approx(1.0)
    now_ns[0] += SECOND
    assert load.since_last(statistics(100, 200, 4 * SECOND)) == 0


def test_a_server_that_was_started_anew_has_no_negative_load() -> None:
    now_ns = [SECOND]
    load = ReplicaLoad({("m", "1"): 1}, lambda: now_ns[0])
    load.since_last(statistics(100, 100, SECOND))
    now_ns[0] += SECOND
    assert load.since_last(statistics(1, 1, 1000)) == 0


def test_the_target_is_the_best_batch_of_each_session_and_one_that_waits() -> None:
    config: dict[str, Any] = {"instance_group": [{"count": 2}]}
    assert target(config) == 4
    config["dynamic_batching"] = {"preferred_batch_size": [4, 16]}
    assert target(config) == 34


def test_replicas_are_wanted_for_the_load_of_all() -> None:
    context = SimpleNamespace(aggregated_metrics={"load": {"a": 1.2, "b": 0.4}})
    assert wanted_replicas(context)[0] == pytest.approx(2.0)
    assert wanted_replicas(SimpleNamespace(aggregated_metrics=None)) == (0.0, {})


# -- the metrics of all


def test_families_are_together_and_every_sample_says_whose_it_is() -> None:
    page = '# HELP n What\n# TYPE n counter\nn{{model="a b"}} {0}\n# TYPE up gauge\nup {0}\n'
    assert joined({"r1": page.format(1), "r2": page.format(2)}) == (
        "# HELP n What\n# TYPE n counter\n"
        'n{replica="r1",model="a b"} 1\nn{replica="r2",model="a b"} 2\n'
        '# TYPE up gauge\nup{replica="r1"} 1\nup{replica="r2"} 2\n'
    )


# -- what is refused before Ray is asked


def test_without_ray_it_is_said_what_to_install(bundle: Path) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    with pytest.raises(InputError) as caught:
        deploy(settings_of([bundle]))
    assert str(caught.value) == "serving on Ray needs ray: pip install 'hasten[ray]'"


@pytest.mark.parametrize(
    ("change", "replicas", "message"),
    [
        (
            {},
            (2, 1),
            "min_replicas= must be at least 1 and at most max_replicas=; got 2 and 1",
        ),
        ({"http": None}, (1, 1), "nothing to listen on: give http= or grpc= a port"),
        (
            {"shared_memory": "/x*"},
            (1, 1),
            "replicas on Ray may be on other machines than their clients: leave out shared_memory=",
        ),
        (
            {"control": True},
            (1, 1),
            "a client that loads or unloads a model would reach only one of the replicas: leave out "
            "allow_control=",
        ),
    ],
)
def test_what_replicas_can_t_have_is_said(
    bundle: Path, change: dict[str, Any], replicas: tuple[int, int], message: str
) -> None:
    settings = dataclasses.replace(settings_of([bundle]), **change)
    with pytest.raises(InputError) as caught:
        deploy(settings, min_replicas=replicas[0], max_replicas=replicas[1])
    assert str(caught.value) == message

"""Trusted keys that change while a server runs: what only a removed key signed isn't loaded any more."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import tritonclient.http as triton
from tests.support.models import mirrored, solid
from tests.support.servers import ServerThread, bundle_of
from tests.support.signing import Signer
from tests.support.waiting import until

from hasten.bundle.signatures import keys_of
from hasten.errors import InputError
from hasten.serving import server as server_module
from hasten.serving.options import Access, ModelOptions
from hasten.serving.run import settings_of


def loaded(server: ServerThread) -> str:
    """Load the model again; return why that was refused, "" if it wasn't."""
    client = triton.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=120.0)
    try:
        client.load_model("model")
    except triton.InferenceServerException as error:
        return str(error.message())
    finally:
        client.close()
    return ""


def ready(server: ServerThread) -> bool:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=120.0)
    try:
        return bool(client.is_model_ready("model"))
    finally:
        client.close()


def test_a_key_that_is_removed_from_its_file_opens_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "_LOOK_S", 0.01)
    caplog.set_level(logging.INFO, "hasten")
    old, new = Signer.new(tmp_path, "old"), Signer.new(tmp_path, "new")
    keys, place = tmp_path / "keys.pub", tmp_path / "served" / "model.hasten"
    keys.write_text(old.public.read_text() + new.public.read_text())
    assert keys_of(keys) == (old.key, new.key)
    place.parent.mkdir()
    shutil.copytree(old.sign(bundle_of(tmp_path, solid(tmp_path), "a")), place)
    other = bundle_of(tmp_path, mirrored(tmp_path), "b")
    settings = settings_of(
        place, models=ModelOptions(trusted=keys), access=Access(allow_control=True)
    )
    with ServerThread.of(settings) as server:
        assert loaded(server) == ""
        (tmp_path / "next").write_text(new.public.read_text())
        (tmp_path / "next").rename(keys)
        until(lambda: "the trusted keys changed: read again" in caplog.text)
        assert f"is signed by the key {old.key.name}, and {new.only}" in loaded(server)
        assert ready(server)  # what was opened before goes on
        shutil.rmtree(place)
        shutil.copytree(new.sign(other), place)
        assert loaded(server) == ""

        keys.write_text("no key")
        until(lambda: "the previous trusted keys stay in use" in caplog.text)
        assert loaded(server) == ""


def test_the_process_after_a_crash_reads_the_keys_that_are_there_then(tmp_path: Path) -> None:
    """It gets the settings with which the server was started."""
    old, new = Signer.new(tmp_path, "old"), Signer.new(tmp_path, "new")
    bundle = old.sign(bundle_of(tmp_path, solid(tmp_path)))
    settings = settings_of([bundle], models=ModelOptions(trusted=old.public))
    with ServerThread(*settings.models, trusted=settings.trusted):
        pass
    shutil.copy(new.public, old.public)
    with (
        pytest.raises(InputError, match=f"is signed by the key .*, and {new.only}"),
        ServerThread(*settings.models, trusted=settings.trusted),
    ):
        pass

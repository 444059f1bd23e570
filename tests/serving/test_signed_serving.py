"""A server that trusts keys: whatever it opens, whenever, is signed by one of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import yaml
from click.testing import CliRunner
from tests.support import chains, models
from tests.support.servers import ServerThread, bundle_of, place_of, with_curve
from tests.support.signing import Signer

import hasten
from hasten.bundle import MANIFEST, SIGNATURE, read, unpacked
from hasten.bundle.evidence import batch_curve
from hasten.bundle.signatures import PublicKey
from hasten.cli import main
from hasten.cli.serve import serve
from hasten.core.records import from_record, to_record
from hasten.errors import HastenError, InputError, IntegrityError
from hasten.serving.cluster.kserve import arguments, write_kserve
from hasten.serving.cluster.replica import packed, with_folders
from hasten.serving.cluster.shelf import Shelf
from hasten.serving.models import opening
from hasten.serving.models.opening import ModelSettings, open_bundle
from hasten.serving.options import ModelOptions
from hasten.serving.run import settings_of
from hasten.serving.settings import ServerSettings

ROW = np.array([[1, 2, 3, 4]], np.float32)
STRAIGHT, MIRRORED = [[1, 2, 3, 4]], [[4, 3, 2, 1]]


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path, signer: Signer) -> Path:
    return signer.sign(bundle_of(tmp_path, models.solid(tmp_path), "model"))


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A bundle that answers otherwise, and that nobody has signed."""
    return bundle_of(tmp_path, models.mirrored(tmp_path), "newer")


def answer(server: ServerThread) -> Any:
    client = triton.InferenceServerClient(server.host, network_timeout=120.0)
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(ROW)
    found = client.infer("model", [tensor]).as_numpy("y").tolist()
    client.close()
    return found


def load(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, network_timeout=120.0)
    try:
        client.load_model("model")
    finally:
        client.close()


def hang_up(server: ServerThread) -> None:
    server.call(server.server.state.repository.reload_changed)  # as SIGHUP does


def put(bundle: Path, place: Path) -> None:
    """Replace what is served by another bundle."""
    if place.suffix == ".hastenz":
        hasten.pack(bundle, place)
    else:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(bundle, place)


def refusal(start: Callable[[], object]) -> str:
    with pytest.raises(HastenError) as error:
        start()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".hasten", ".hastenz"], ids=["a folder", "a packed file"])
def test_a_bundle_that_isnt_trusted_never_takes_the_place(
    bundle: Path, newer: Path, tmp_path: Path, signer: Signer, suffix: str
) -> None:
    stranger = Signer.new(tmp_path, "stranger")
    place = tmp_path / "served" / f"model{suffix}"
    place.parent.mkdir()
    put(bundle, place)
    with ServerThread(place_of(place, "model", trusted=(signer.key,)), control=True) as server:
        assert answer(server) == STRAIGHT
        put(newer, place)
        with pytest.raises(
            triton.InferenceServerException, match=rf"isn't signed, and {signer.only}"
        ):
            load(server)
        hang_up(server)
        assert answer(server) == STRAIGHT
        put(stranger.sign(newer), place)
        with pytest.raises(triton.InferenceServerException, match="is signed by the key "):
            load(server)
        hang_up(server)
        assert answer(server) == STRAIGHT
        put(signer.sign(newer), place)
        hang_up(server)
        assert answer(server) == MIRRORED


def test_a_signature_that_goes_is_noticed_and_the_model_goes_on(
    bundle: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    with ServerThread(place_of(bundle, "model", trusted=(signer.key,))) as server:
        (bundle / SIGNATURE).unlink()
        hang_up(server)
        assert answer(server) == STRAIGHT
    assert f"{bundle} isn't signed, and {signer.only}: get a signed one, or sign it" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_the_log_says_whether_a_bundle_is_signed_and_that_was_checked(
    tmp_path: Path, signer: Signer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO", "hasten")
    place = bundle_of(tmp_path, models.solid(tmp_path), "model")

    def said(**settings: Any) -> list[str]:
        caplog.clear()
        path = place if kind == "folder" else hasten.pack(place, tmp_path / "model.hastenz").path
        with ServerThread(place_of(path, "model", **settings)):
            return [each.getMessage() for each in caplog.records if "ready" in each.getMessage()]

    assert said() == ["ready (unsigned)"]
    signer.sign(place)
    assert said() == ["ready (signature not checked)"]
    assert said(trusted=(signer.key,)) == ["ready (signed by a trusted key)"]


def test_a_server_without_a_trusted_bundle_doesnt_start(newer: Path, signer: Signer) -> None:
    for path in (newer, hasten.pack(newer).path):
        place = place_of(path, "model", trusted=(signer.key,))
        with pytest.raises(InputError) as error, ServerThread(place):
            pass
        assert str(error.value) == (
            f"model: {path} isn't signed, and {signer.only}: get a signed one, or sign it"
        )


def test_no_packed_bundle_is_unpacked_before_it_is_trusted(
    newer: Path, signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    packed_newer = hasten.pack(newer).path
    settings = ModelSettings(trusted=(signer.key,))
    assert "isn't signed" in refusal(lambda: open_bundle(packed_newer, settings))
    assert list((tmp_path / "cache").rglob(MANIFEST)) == []
    open_bundle(signer.sign(packed_newer), settings).close()
    assert len(list((tmp_path / "cache").rglob(MANIFEST))) == 1


def test_a_bundle_that_is_replaced_just_after_it_was_checked_is_refused(
    bundle: Path, newer: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = unpacked

    def then_replaced(*given: Any) -> Path:
        folder = found(*given)
        put(newer, bundle)
        return folder

    monkeypatch.setattr(opening, "unpacked", then_replaced)
    settings = ModelSettings(trusted=(signer.key,))
    assert "isn't signed" in refusal(lambda: open_bundle(bundle, settings))


@pytest.mark.parametrize("which", ["winner", "exact"])
def test_every_model_of_a_bundle_is_opened_from_the_same_one(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """A signed bundle is replaced by another signed one between the winner and the standby."""
    solid, mirrored = models.solid(tmp_path), models.mirrored(tmp_path)
    first = signer.sign(
        bundle_of(tmp_path, solid, "first", exact=models.identity(tmp_path, "float", "4"))
    )
    second = signer.sign(bundle_of(tmp_path, mirrored, "second"))
    standby = opening._standby
    settings = ModelSettings(trusted=(signer.key,))
    if which == "exact":
        shutil.rmtree(second)
        second = bundle_of(tmp_path, mirrored, "second")

    def replaced_before(path: Path, *rest: Any) -> Any:
        put(second, first)
        return standby(path, *rest)

    monkeypatch.setattr(opening, "_standby", replaced_before)
    said = refusal(lambda: open_bundle(first, settings))
    wanted = (
        "was replaced while it was opened: load it again" if which == "winner" else "isn't signed"
    )
    assert wanted in said


def test_a_curve_that_changed_since_it_was_checked_is_refused(bundle: Path) -> None:
    """Opening reads it after the check of all files."""
    folder = bundle.parent / "curved"
    folder.mkdir()
    curved = bundle_of(folder, models.solid(folder), extra=with_curve({1: 1.0}))
    manifest = read(curved)
    assert len(batch_curve(curved, manifest)) == 1
    file = curved / "evidence" / "curve.json"
    file.write_bytes(file.read_bytes().replace(b"1000000", b"1000001"))
    with pytest.raises(IntegrityError, match=r"curve.json is damaged: it was changed after it was"):
        batch_curve(curved, manifest)


# -- the command line, replicas and images


def test_each_bundle_of_a_served_chain_must_be_signed(tmp_path: Path, signer: Signer) -> None:
    line = f"plates={chains.detector(tmp_path)}+crop+{chains.classifier(tmp_path)}"
    said = refusal(lambda: settings_of([line], models=ModelOptions(trusted=signer.public)))
    assert said.startswith(f"det: {tmp_path}/det.hasten isn't signed, and {signer.only}")
    signer.sign(tmp_path / "det.hasten")
    signer.sign(tmp_path / "colour.hasten")
    settings = settings_of([line], models=ModelOptions(trusted=[signer.public]))
    assert [one.settings.trusted for one in settings.models] == 3 * [(signer.key,)]


def test_a_chains_certificate_is_not_believed_where_bundles_must_be_signed(
    tmp_path: Path, signer: Signer
) -> None:
    """Anyone who can write beside the bundles could have written it."""
    record: dict[str, list[str]] = {"hashes": [], "seen": [], "groups": []}
    made = (chains.detector, chains.classifier)
    bundles = [signer.sign(make(tmp_path, evidence={"sealed.json": record})) for make in made]
    line, pictures = "+crop+".join(map(str, bundles)), tmp_path / "pictures"
    pictures.mkdir()
    for number in range(60):
        picture = chains.squares({(number % 8, number // 8): "red"})
        (pictures / f"{number}.png").write_bytes(chains.png(picture))
    hasten.certify(line, pictures, max_drop=0.05).keep()
    with hasten.chain(line) as chain:
        assert chain.certified
    with hasten.chain(line, trusted=signer.public) as chain:
        assert chain.certified == ""
    for keys, status in ((None, "certified"), (signer.public, "uncertified")):
        settings = settings_of([f"plates={line}"], models=ModelOptions(trusted=keys))
        with ServerThread(*settings.models) as server:
            stated = server.server.state.repository.find("plates").opened.manifest
            assert stated.status == status
    assert stated.why.endswith("; its certificate isn't signed, but bundles must be")


def test_the_command_takes_several_keys(bundle: Path, signer: Signer) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, ["serve", str(bundle), *map(str, arguments)])
        assert result.exit_code == 2
        return result.output

    said = run("--trusted", signer.public, "--trusted", "no.pub")
    assert said == "hasten: can't read the key no.pub: No such file or directory\n"
    said = run("--trusted", signer.secret)
    assert said == f"hasten: {signer.secret} holds a secret key: give the public key\n"


def test_a_replica_gets_the_signature_and_the_keys(
    bundle: Path, newer: Path, tmp_path: Path, signer: Signer
) -> None:
    settings = settings_of([bundle], models=ModelOptions(trusted=signer.public))
    root = tmp_path / "root"
    root.mkdir()
    (parcel,) = packed(settings, lambda data: data)
    there = with_folders(settings, [Shelf(root).place(parcel.name, parcel.files)])
    there = from_record(ServerSettings, to_record(there))
    (model,) = there.models
    assert model.settings.trusted == (signer.key,)
    open_bundle(model.path, model.settings).close()
    assert "isn't signed" in refusal(
        lambda: packed(settings_of([newer], models=ModelOptions(trusted=signer.public)), id)
    )


def test_a_node_that_has_the_bundle_unsigned_gets_it_signed(
    newer: Path, tmp_path: Path, signer: Signer
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (parcel,) = packed(settings_of([newer]), lambda data: data)
    folders = [Shelf(root).place(parcel.name, parcel.files)]
    (parcel,) = packed(
        settings_of([signer.sign(newer)], models=ModelOptions(trusted=signer.public)),
        lambda data: data,
    )
    folders.append(Shelf(root).place(parcel.name, parcel.files))
    assert [(folder / SIGNATURE).is_file() for folder in folders] == [False, True]


def test_an_image_for_kserve_has_the_signature_and_asks_for_it(
    bundle: Path, newer: Path, tmp_path: Path, signer: Signer
) -> None:
    settings = settings_of([bundle], models=ModelOptions(trusted=signer.public))
    out = tmp_path / "out"
    write_kserve(out, settings)
    (copied,) = (out / "models" / "model").iterdir()
    read(copied, (signer.key,))
    service = yaml.safe_load((out / "inferenceservice.yaml").read_text())
    (container,) = service["spec"]["predictor"]["containers"]
    given = serve.make_context("serve", [*container["args"], str(copied)]).params["trusted"]
    assert given == (signer.key.text,)
    assert "[serve,sign]" in (out / "Dockerfile").read_text()
    assert "--trusted" not in arguments(settings_of([bundle]))
    said = refusal(
        lambda: write_kserve(
            tmp_path / "no", settings_of([newer], models=ModelOptions(trusted=signer.public))
        )
    )
    assert said.startswith(f"{newer} isn't signed")
    assert PublicKey(given[0]) == signer.key

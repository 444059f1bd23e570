"""Bundles that must be signed: what a signature covers, and how it travels with the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support import chains, models, packed_files
from tests.support.bundles import built, forge, stated
from tests.support.signing import Signer, signature_of

import hasten
from hasten.bundle import MANIFEST, SIGNATURE, replaceable, signatures, write
from hasten.bundle.packing.layout import Head
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.source import FileSource
from hasten.cli import main
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError, IntegrityError

ROW = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Signer:
    return Signer.new(tmp_path, "stranger")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle that answers with its inputs in the other order."""
    part = built(tmp_path, models.mirrored(tmp_path), OnnxRuntime(threads=1))
    write(tmp_path / "other.hasten", stated(part, part), {"trials.json": [1, 2]})
    return tmp_path / "other.hasten"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that answers with its inputs, has evidence, and keeps a request."""
    winner, exact = (
        built(tmp_path / place, models.solid(tmp_path), OnnxRuntime(threads=1))
        for place in (made(tmp_path, "w"), made(tmp_path, "e"))
    )
    path = tmp_path / "model.hasten"
    write(path, stated(winner, exact), {"trials.json": [1]}, {"report.html": b"<p>"}, [{"x": ROW}])
    return path


def made(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def head(path: Path) -> Head:
    with FileSource(path) as source:
        return Packed.open(source).head


def refused(path: Path | str, *signers: Signer, which: str = "winner") -> str:
    """Return why a bundle isn't opened."""
    keys = [signer.public for signer in signers]
    with pytest.raises(IntegrityError) as error:
        hasten.load(path, which=which, trusted=keys, cache=False).close()  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def answer(path: Path, signer: Signer | None = None) -> list[list[float]]:
    trusted = None if signer is None else signer.public
    with hasten.load(path, trusted=trusted, cache=False) as opened:
        opened.requests  # noqa: B018  # it reads them
        found: list[list[float]] = opened(ROW)["y"].tolist()
        return found


# -- what opens


def test_a_signed_bundle_opens_as_a_folder_packed_repacked_and_unpacked(
    bundle: Path, tmp_path: Path, signer: Signer
) -> None:
    unsigned = answer(bundle)
    signature = signer.sign(bundle) / SIGNATURE
    packed = hasten.pack(bundle).path
    again = hasten.pack(packed, tmp_path / "again.hastenz").path
    back = hasten.unpack(again, tmp_path / "back.hasten", trusted=signer.public)
    assert (back / SIGNATURE).read_bytes() == signature.read_bytes()
    assert packed.read_bytes() == again.read_bytes()
    for path in (bundle, packed, again, back):
        assert answer(path, signer) == answer(path) == unsigned == ROW.tolist()
    assert replaceable(bundle) is not None  # by a newer one, as without a signature


def test_an_unsigned_bundle_is_refused_only_where_a_key_is_trusted(
    bundle: Path, signer: Signer
) -> None:
    for path in (bundle, hasten.pack(bundle).path):
        assert answer(path) == ROW.tolist()
        said = f"{path} isn't signed, and {signer.only}: get a signed one, or sign it"
        assert refused(path, signer) == refused(path, signer, which="exact") == said


def test_a_bundle_that_is_opened_says_whether_it_is_signed_and_whether_that_was_checked(
    bundle: Path, signer: Signer
) -> None:
    def told(path: Path, **more: Any) -> str:
        with hasten.load(path, cache=False, **more) as opened:
            return opened.signed

    assert {told(path) for path in (bundle, hasten.pack(bundle).path)} == {"unsigned"}
    assert run("load", bundle)[1].splitlines()[0].endswith(" s (unsigned)")
    signer.sign(bundle)
    for path in (bundle, hasten.pack(bundle).path):
        assert told(path) == "signature not checked"
        assert told(path, trusted=signer.public) == "signed by a trusted key"
    assert (
        run("load", bundle, "--trusted", signer.public)[1]
        .splitlines()[0]
        .endswith(" s (signed by a trusted key)")
    )


def test_any_of_several_keys_will_do(bundle: Path, signer: Signer, stranger: Signer) -> None:
    stranger.sign(bundle)
    for path in (bundle, hasten.pack(bundle).path):
        assert refused(path, signer) == (
            f"{path} is signed by the key {stranger.key.name}, and {signer.only}"
        )
        hasten.load(path, trusted=[signer.public, stranger.key], cache=False).close()
    signer.sign(bundle)  # in the stranger's place
    assert refused(bundle, stranger).startswith(f"{bundle} is signed by the key {signer.key.name},")
    assert answer(bundle, signer) == ROW.tolist()


def test_a_packed_bundle_is_signed_where_it_lies(bundle: Path, signer: Signer) -> None:
    packed = hasten.pack(bundle).path
    before = head(packed)
    signer.sign(packed)
    assert answer(packed, signer) == ROW.tolist()
    assert [name for name, _ in head(packed).files] == [
        MANIFEST,
        SIGNATURE,
        *(name for name, _ in before.files if name != MANIFEST),
    ]
    assert sorted(path.name for path in packed.parent.glob(".*")) == []


# -- what a signature covers


def test_no_file_can_be_changed(bundle: Path, signer: Signer) -> None:
    signer.sign(bundle)
    names = [path for path in bundle.rglob("*") if path.is_file()]
    assert len(names) == 7  # the manifest, its signature, two models, evidence, a report, a request
    for path in names:
        data = path.read_bytes()
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        for which in ("winner", "exact"):
            assert refused(bundle, signer, which=which)
        path.write_bytes(data)
    assert answer(bundle, signer) == ROW.tolist()


def test_a_manifest_that_was_changed_with_all_sums_made_to_fit_is_refused(
    bundle: Path, other: Path, signer: Signer
) -> None:
    signer.sign(bundle)
    model = (other / "model" / "mirrored.onnx").read_bytes()
    forge(bundle, files={"model/solid.onnx": model})
    assert answer(bundle) == ROW[:, ::-1].tolist()  # nothing else would show it
    for path in (bundle, hasten.pack(bundle).path):
        said = refused(path, signer)
        assert said.startswith(f"{path} can't be trusted: its signature is for another manifest: ")


def test_another_bundles_signature_is_refused(bundle: Path, other: Path, signer: Signer) -> None:
    signer.sign(other)
    signature_of(other, bundle)
    for path in (bundle, hasten.pack(bundle).path):
        assert "the signature belongs to another bundle" in refused(path, signer)


def test_another_signed_manifest_with_these_files_is_refused(
    bundle: Path, other: Path, signer: Signer
) -> None:
    signer.sign(bundle)
    signer.sign(other)
    shutil.copyfile(other / MANIFEST, bundle / MANIFEST)
    signature_of(other, bundle)
    assert refused(bundle, signer).startswith(f"{bundle}: ")


@pytest.mark.parametrize("name", ["model/model.bin", "evidence/curve.json", "a", SIGNATURE + "/a"])
def test_a_file_that_the_signature_doesnt_cover_is_refused(
    bundle: Path, signer: Signer, name: str
) -> None:
    signer.sign(bundle)
    strange = bundle / name
    if strange.parent.name == SIGNATURE:
        strange.parent.unlink()
        strange.parent.mkdir()
    strange.write_bytes(b"x")
    said = refused(bundle, signer)
    if name.startswith(SIGNATURE):
        assert (
            said == f"{bundle}: its signature {SIGNATURE} is damaged: it can't be read: it isn't a "
            "regular file"
        )
        return
    assert said == (
        f"{bundle} can't be trusted: it holds {name!r}, which its signature doesn't cover; "
        "remove that file"
    )
    strange.unlink()
    strange.symlink_to(bundle / MANIFEST)
    assert refused(bundle, signer) == said
    with pytest.raises(InputError, match="which its manifest doesn't list: a signature wouldn't"):
        signer.sign(bundle)


@pytest.mark.parametrize("size", [0, 10, 16 << 10, (16 << 10) + 1])
def test_a_signature_that_is_cut_off_or_huge_is_refused(
    bundle: Path, signer: Signer, size: int
) -> None:
    signer.sign(bundle)
    good = (bundle / SIGNATURE).read_bytes()
    (bundle / SIGNATURE).write_bytes(good[:size].ljust(size, b"\n"))
    packed = hasten.pack(bundle).path
    damaged = f": its signature {SIGNATURE} is damaged: "
    assert damaged in refused(bundle, signer)
    large = f"{packed}: its {SIGNATURE} is larger than 16 KiB"  # and isn't unpacked
    assert (damaged if size <= 16 << 10 else large) in refused(packed, signer)
    assert answer(bundle) == answer(packed) == ROW.tolist()


def test_a_huge_manifest_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    size, path = 5 << 20, tmp_path / "huge.hastenz"
    path.write_bytes(packed_files.of_head(Head(((MANIFEST, size),), (), ())))
    assert refused(path, Signer.new(tmp_path)) == f"{path}: its {MANIFEST} is larger than 4096 KiB"


def test_what_is_opened_is_the_manifest_that_was_checked(
    bundle: Path, tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody replaces the manifest at the very moment after its signature was checked."""
    signer.sign(bundle)
    forged = shutil.copytree(bundle, tmp_path / "forged")
    forge(forged, lambda record: record.update(why="whatever"))
    checked = signatures.check_signed

    def then_replaced(data: bytes, file: Path, *rest: Any) -> object:
        found = checked(data, file, *rest)
        shutil.copyfile(forged / MANIFEST, bundle / MANIFEST)
        return found

    monkeypatch.setattr(signatures, "check_signed", then_replaced)
    with hasten.load(bundle, trusted=signer.public, cache=False) as opened:
        assert opened.manifest.why == "sure enough"
    monkeypatch.setattr(signatures, "check_signed", checked)
    assert "another manifest" in refused(bundle, signer)


# -- what leads to other bundles


def test_a_difference_brings_the_newer_bundles_signature(
    bundle: Path, other: Path, tmp_path: Path, signer: Signer, stranger: Signer
) -> None:
    stranger.sign(bundle)
    signer.sign(other)
    difference = hasten.pack(other, tmp_path / "d.hastenz", since=bundle).path
    from_packed = hasten.pack(hasten.pack(other).path, tmp_path / "p.hastenz", since=bundle).path
    assert from_packed.read_bytes() == difference.read_bytes()
    signer.sign(bundle)  # the device's copy has another signature than the one that was packed from
    packed = hasten.pack(bundle).path
    for place, goal in ((bundle, bundle), (packed, packed)):
        hasten.unpack(difference, goal, base=place, trusted=signer.public)
        assert answer(goal, signer) == ROW[:, ::-1].tolist()
    assert hasten.unpack(difference, bundle, base=bundle, trusted=signer.public) == bundle


@pytest.mark.parametrize("suffix", [".hasten", ".hastenz"])
@pytest.mark.parametrize("by", ["nobody", "a stranger"])
def test_a_difference_to_what_isnt_trusted_leaves_the_older_bundle(
    bundle: Path,
    other: Path,
    tmp_path: Path,
    signer: Signer,
    stranger: Signer,
    suffix: str,
    by: str,
) -> None:
    signer.sign(bundle)
    if by == "a stranger":
        stranger.sign(other)
    difference = hasten.pack(other, tmp_path / "d.hastenz", since=bundle).path
    place = bundle if suffix == ".hasten" else hasten.pack(bundle).path
    with pytest.raises(IntegrityError) as error:
        hasten.unpack(difference, place, base=place, trusted=signer.public)
    assert str(error.value).startswith(f"{difference} is")
    assert answer(place, signer) == ROW.tolist()
    hasten.unpack(difference, place, base=place)
    assert answer(place) == ROW[:, ::-1].tolist()
    if place == bundle:  # it is that bundle already, and it still isn't trusted
        with pytest.raises(IntegrityError, match=rf"^{bundle} is"):
            hasten.unpack(difference, place, base=place, trusted=signer.public)


def test_what_is_unpacked_is_checked_before_it_takes_a_place(
    bundle: Path, other: Path, signer: Signer
) -> None:
    signer.sign(bundle)
    packed = hasten.pack(other).path
    with pytest.raises(IntegrityError) as error:
        hasten.unpack(packed, bundle, trusted=signer.public)
    assert (
        str(error.value)
        == f"{packed} isn't signed, and {signer.only}: get a signed one, or sign it"
    )
    assert answer(bundle, signer) == ROW.tolist()


def test_a_lean_bundle_is_another_one_and_says_that_it_isnt_signed(
    bundle: Path, signer: Signer
) -> None:
    before = hasten.pack(bundle, keep_evidence=False)
    assert not before.lost_signature
    signer.sign(bundle)
    made = hasten.pack(bundle, keep_evidence=False)
    assert made.in_words()[1] == (
        f"{made.path} isn't signed, because leaving out files made another bundle of it: sign it with "
        f"hasten sign {made.path}"
    )
    assert "isn't signed" in refused(made.path, signer)
    assert answer(signer.sign(made.path), signer) == ROW.tolist()


def test_each_bundle_of_a_chain_must_be_signed(tmp_path: Path, signer: Signer) -> None:
    detector, classifier = chains.detector(tmp_path), chains.classifier(tmp_path)
    line = f"{signer.sign(detector)}+crop+{classifier}"
    with pytest.raises(InputError) as error:
        hasten.chain(line, trusted=signer.public)
    assert str(error.value).startswith(f"colour: {classifier} isn't signed, and {signer.only}")
    packed = signer.sign(hasten.pack(classifier).path)
    with hasten.chain(line.replace(str(classifier), str(packed)), trusted=signer.public):
        pass


# -- signing


def test_only_a_whole_bundle_is_signed(bundle: Path, tmp_path: Path, signer: Signer) -> None:
    for path, why in (
        (tmp_path, f"no bundle at {tmp_path}: there is no {MANIFEST}"),
        ("https://example.com/m.hastenz", "https://example.com/m.hastenz is an address: "),
    ):
        with pytest.raises(InputError) as error:
            hasten.sign(path, signer.secret)
        assert str(error.value).startswith(why)
    (bundle / "report.html").write_bytes(b"<q>")
    with pytest.raises(IntegrityError, match=r"report.html was changed after it was written"):
        signer.sign(bundle)
    assert not (bundle / SIGNATURE).exists()
    assert list(tmp_path.glob(".*")) == []


# -- the command line


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def line_of(bundle: Path, *arguments: object) -> str:
    code, output = run("inspect", bundle, *arguments)
    assert code == 0
    return next(line for line in output.splitlines() if line.startswith("signature: "))[14:]


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_the_commands_make_keys_sign_and_say_who_signed(
    bundle: Path, tmp_path: Path, kind: str
) -> None:
    path = bundle if kind == "folder" else hasten.pack(bundle).path
    secret, public = tmp_path / "k.key", tmp_path / "k.pub"
    assert line_of(path) == "unsigned"
    assert run("keygen", secret)[0] == 0
    code, output = run("inspect", path, "--trusted", public)
    name = Signer(secret, public).key.name
    assert (code, output) == (
        2,
        f"hasten: {path} isn't signed, and only bundles signed by the key {name} are trusted: get a "
        "signed one, or sign it\n",
    )
    code, output = run("sign", path, "--key", secret)
    key = Signer(secret, public).key
    assert (code, output) == (
        0,
        f"{path}: signed by the key {name}\nto trust it, give: --trusted {key.text}\n",
    )
    assert (
        line_of(path) == f"said to be signed by the key {name}: give its public key to check that"
    )
    for given in (public, key.text):
        assert line_of(path, "--trusted", given).startswith(
            f"signed by the key {name}, which you trust: timestamp:"
        )
    assert run("inspect", path, "--trusted", "no.pub") == (
        2,
        "hasten: can't read the key no.pub: No such file or directory\n",
    )


@pytest.mark.parametrize("command", [("load",), ("watch", "--source", "no.mp4")])
def test_commands_that_open_a_bundle_take_trusted_keys(
    bundle: Path, signer: Signer, command: tuple[str, ...]
) -> None:
    code, output = run(command[0], bundle, *command[1:], "--trusted", signer.public)
    assert (code, output) == (
        2,
        f"hasten: {bundle} isn't signed, and {signer.only}: get a signed one, or sign it\n",
    )


def test_unpack_takes_trusted_keys(bundle: Path, tmp_path: Path, signer: Signer) -> None:
    packed, goal = hasten.pack(bundle).path, tmp_path / "there.hasten"
    unpack: Callable[[], tuple[int, str]] = lambda: run(  # noqa: E731
        "unpack", packed, "--out", goal, "--trusted", signer.public
    )
    assert unpack()[0] == 2
    assert not goal.exists()
    signer.sign(packed)
    assert unpack() == (0, f"{goal}: every file is whole\n")

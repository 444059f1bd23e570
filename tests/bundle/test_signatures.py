"""Signatures and keys in minisign's format: what is accepted, and what nobody may get accepted."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.bundle.signatures import (
    PublicKey,
    SecretKey,
    check_signed,
    keys_of,
    new_keys,
    secret_key,
    signature_in,
)
from hasten.errors import InputError, IntegrityError

TOOL = shutil.which("minisign")
with_the_tool = pytest.mark.skipif(TOOL is None, reason="minisign isn't installed")
DATA = b"hi\n"
# Made by minisign 0.12: -G -W, then -S of a file with the three bytes of DATA.
PUBLIC = "RWTATJS2uNRjXI+OoL03BTuzyQfb4ddKerqyxGBbi370PRY5D/m2q/vR"
SIGNATURE = b"""untrusted comment: signature from minisign secret key
RUTATJS2uNRjXNNJxB1cw5Uoqaxy0+n2ZAfDNFJnUqQ6sURd5XOcfT/+Nc2F0pdv0nEmJjbQMJrcPFzS8yQOlx3G3Oji0UAIWw8=
trusted comment: timestamp:1795882690\tfile:m\thashed
Op/RiY2UWzHeRZxO2OlkVr+9IZClVBMxMp49kiTt8kIhvMc6Z8836Qp8HPNARuDzJpZdz1gQEwILV5fYKk22AQ==
"""
OURS = SecretKey(b"12345678", bytes(range(32)))


def minisign(*arguments: str | Path) -> str:
    assert TOOL is not None
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def refused(tmp_path: Path, data: bytes, *, of: bytes = DATA, key: PublicKey = OURS.public) -> str:
    """Return why a signature's file is refused."""
    file = tmp_path / "s.minisig"
    file.write_bytes(data)
    with pytest.raises(IntegrityError) as error:
        check_signed(of, file, [key], "b")
    return str(error.value)


# -- the tool


def test_a_signature_of_the_tool_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(SIGNATURE)
    key = PublicKey(PUBLIC)
    found = check_signed(DATA, tmp_path / "s", [OURS.public, key], "b")
    assert (found.name, key.name) == ("5C63D4B8B6944CC0", "5C63D4B8B6944CC0")
    assert found.said == "timestamp:1795882690 file:m hashed"
    (tmp_path / "s").write_bytes(SIGNATURE.replace(b"\n", b"\r\n"))  # as an editor leaves it
    assert check_signed(DATA, tmp_path / "s", [key], "b") == found


@with_the_tool
def test_the_tool_and_hasten_take_each_others_keys_and_signatures(tmp_path: Path) -> None:
    theirs, public = tmp_path / "their.key", tmp_path / "their.pub"
    minisign("-G", "-W", "-s", theirs, "-p", public)
    own = tmp_path / "our.key"
    new_keys(own)
    message, file = tmp_path / "m", tmp_path / "m.minisig"
    message.write_bytes(DATA)
    for secret in (theirs, own):
        known = secret.with_suffix(".pub")
        assert keys_of(known) == (secret_key(secret).public,)
        minisign("-S", "-s", secret, "-m", message, "-t", "of the tool")
        assert check_signed(DATA, file, keys_of(known), "b").said == "of the tool"
        file.write_bytes(secret_key(secret).sign(DATA, "of hasten"))
        assert minisign("-V", "-Q", "-p", known, "-m", message) == "of hasten\n"
    minisign("-S", "-l", "-s", theirs, "-m", message)
    with pytest.raises(IntegrityError, match="minisign's legacy format: sign without -l"):
        check_signed(DATA, file, keys_of(public), "b")


# -- signatures of strangers


def test_a_signature_over_other_bytes_or_by_another_key_is_refused(tmp_path: Path) -> None:
    ours = OURS.sign(DATA, "a comment")
    assert refused(tmp_path, ours, of=b"other").startswith(
        "b can't be trusted: its signature is for another manifest: "
    )
    assert refused(tmp_path, SIGNATURE) == (
        "b is signed by the key 5C63D4B8B6944CC0, and only bundles signed by the key "
        "3837363534333231 are trusted"
    )
    namesake = SecretKey(OURS.key_id, bytes(32))  # whoever makes a key chooses its name
    assert refused(tmp_path, namesake.sign(DATA, "a comment")).startswith("b can't be trusted: ")
    file = tmp_path / "s"
    file.write_bytes(ours)
    assert check_signed(DATA, file, [namesake.public, OURS.public], "b").said == "a comment"


def test_a_changed_comment_is_refused(tmp_path: Path) -> None:
    ours = OURS.sign(DATA, "version 1")
    said = refused(tmp_path, ours.replace(b"version 1", b"version 2"))
    assert said == "b can't be trusted: the comment of its signature was changed"
    other = OURS.sign(b"other", "version 2").splitlines()
    lines = [*ours.splitlines()[:2], *other[2:]]  # a comment that was signed, with something else
    assert refused(tmp_path, b"\n".join(lines)) == said


def test_a_comment_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(OURS.sign(DATA, "a\x1b[2Jb\u202ec" + 300 * "d"))
    said = check_signed(DATA, tmp_path / "s", [OURS.public], "b").said
    assert said[:12] == "a [2Jb cdddd"
    assert len(said) == 200


_LINES = OURS.sign(DATA, "c").splitlines()


def _first(kind: bytes) -> bytes:
    """Return a signature that says that it is of another kind."""
    stated = kind + base64.b64decode(_LINES[1])[2:]
    return b"\n".join([_LINES[0], base64.b64encode(stated), *_LINES[2:]])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it doesn't have the four lines of minisign's signatures"),
        (b"\n" * 9, "it doesn't have the four lines of minisign's signatures"),
        (b"\n".join(_LINES[:3]), "it doesn't have the four lines of minisign's signatures"),
        (b"\n".join([*_LINES, b"x"]), "it doesn't have the four lines of minisign's signatures"),
        (b"\n".join(_LINES[::-1]), "it doesn't have the four lines of minisign's signatures"),
        (b"\n".join([*_LINES[:3], b"\xff!"]), "it isn't base64"),
        (b"\n".join([*_LINES[:3], b"AAAA"]), "its signatures are cut off or too long"),
        (b"\n".join([*_LINES[:3], _LINES[1]]), "its signatures are cut off or too long"),
        (
            _first(b"Ed"),
            "it has minisign's legacy format: sign without -l, or with -H before minisign 0.10",
        ),
        (_first(b"eD"), "its format is unknown"),
        (b"\0" * (1 << 20), "it is larger than 16 KiB"),
    ],
)
def test_what_is_no_signature_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    assert refused(tmp_path, data) == f"b: its signature s.minisig is damaged: {why}"


def test_a_pipe_or_a_folder_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(
            IntegrityError, match=" is damaged: it can't be read: it isn't a regular"
        ):
            check_signed(DATA, file, [OURS.public], "b")


@given(st.data())
def test_no_changed_byte_of_a_signature_changes_what_is_believed(data: st.DataObject) -> None:
    good = OURS.sign(DATA, "a comment")
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    file = Path(f"/dev/shm/hasten-signature-{os.getpid()}")
    try:
        file.write_bytes(good)
        known = check_signed(DATA, file, [OURS.public], "b")
        file.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
        assert check_signed(DATA, file, [OURS.public], "b") == known
    except IntegrityError:
        pass  # it is refused
    finally:
        file.unlink()


# -- keys


def test_keys_are_given_as_text_as_files_and_in_lists(tmp_path: Path) -> None:
    file, key = new_keys(tmp_path / "k.key")
    assert file == tmp_path / "k.pub"
    assert (tmp_path / "k.key").stat().st_mode & 0o077 == 0
    several: list[Any] = [key, key.text, file, str(file), [file, key.text], (key,)]
    for one in several:
        assert keys_of(one) == (key,)
    assert keys_of([file, PUBLIC]) == (key, PublicKey(PUBLIC))
    assert keys_of(None) == ()
    assert secret_key(tmp_path / "k.key").public == key
    assert "seed" not in repr(secret_key(tmp_path / "k.key"))


def test_no_key_is_not_taken_for_any(tmp_path: Path) -> None:
    several: list[Any] = [[], (), 3, [3], b"RW"]
    for one in several:
        with pytest.raises(InputError, match=r"^trusted= takes "):
            keys_of(one)
    for text in ("", "no.pub", PUBLIC[:-1], "RW" + PUBLIC):
        with pytest.raises(InputError, match=r"^can't read the key "):
            keys_of(text)


def test_a_folder_is_no_place_for_a_key(tmp_path: Path) -> None:
    for place in (tmp_path, Path(), Path("/")):
        with pytest.raises(InputError) as error:
            new_keys(place)
        said = f"can't write the secret key {place}: it is a folder; give a file's name"
        assert str(error.value) == said


def test_a_file_that_holds_no_public_key_is_refused(tmp_path: Path) -> None:
    new_keys(tmp_path / "k.key")
    with pytest.raises(InputError) as error:
        keys_of(tmp_path / "k.key")
    assert str(error.value) == f"{tmp_path}/k.key holds a secret key: give the public key"
    odd = tmp_path / "odd"
    for data in (
        b"",
        b"\xff",
        b"a" * (1 << 20),
    ):
        odd.write_bytes(data)
        with pytest.raises(InputError, match="isn't a key file such as"):
            keys_of(odd)
    for data in (
        PUBLIC[:-1].encode(),
        PUBLIC.encode() + b"A",
        PUBLIC.encode() + b"\n" + PUBLIC[:-1].encode(),
        b"a\nb",
        b"untrusted comment: x\n" + b"RX" * 28,
    ):
        odd.write_bytes(data)
        with pytest.raises(InputError, match=r"holds no public key|a secret key: give"):
            keys_of(odd)
    with pytest.raises(InputError, match="isn't a public key: minisign's keys have 56 characters"):
        PublicKey("RW")


def test_a_secret_key_that_is_damaged_or_has_a_password_is_refused(tmp_path: Path) -> None:
    new_keys(tmp_path / "k.key")
    comment, line = (tmp_path / "k.key").read_bytes().splitlines()
    data = base64.b64decode(line)
    for changed, why in (
        (data[:2] + b"Sc" + data[4:], "has a password, and hasten doesn't ask for passwords"),
        (data[:70] + bytes([data[70] ^ 1]) + data[71:], "its two halves don't match"),
        (data[:-1], "holds no secret key"),
        (base64.b64decode(PUBLIC), "holds no secret key"),
    ):
        (tmp_path / "odd").write_bytes(comment + b"\n" + base64.b64encode(changed))
        with pytest.raises(InputError, match=why):
            secret_key(tmp_path / "odd")


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    new_keys(tmp_path / "k.key")
    before = (tmp_path / "k.key").read_bytes()
    for path in (tmp_path / "k.key", tmp_path / "k.pub"):
        with pytest.raises(InputError):
            new_keys(path)
    assert (tmp_path / "k.key").read_bytes() == before


def test_what_isnt_there_is_no_signature(tmp_path: Path) -> None:
    assert signature_in(tmp_path / "s", "b") is None

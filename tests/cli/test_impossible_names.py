"""Paths that no file can have: too long, with a NUL byte, or no text. Each is one line, from the library and the commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hasten
from hasten.cli import main
from hasten.core.presence import is_file, is_folder, is_there
from hasten.testing import models

LONG = "a" * 300
NAMES = pytest.mark.parametrize("name", [LONG, "a\0b"], ids=["long", "NUL"])


@NAMES
def test_there_is_nothing_under_an_impossible_name(name: str, tmp_path: Path) -> None:
    assert not any(look(tmp_path / name) for look in (is_there, is_folder, is_file))
    assert is_there(tmp_path)
    assert is_folder(tmp_path)
    assert not is_file(tmp_path)
    (tmp_path / "file").touch()
    assert is_file(tmp_path / "file")
    assert not is_there(tmp_path / "file" / "inner")


def test_a_folder_that_is_denied_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(hasten.InputError) as caught:
        is_there(tmp_path)
    assert str(caught.value) == f"can't look at {tmp_path}: Permission denied"


LIBRARY: dict[str, Callable[[str, Path], Any]] = {
    "load": lambda name, folder: hasten.load(name),
    "load_suffix": lambda name, folder: hasten.load(f"{name}.hasten"),
    "load_packed": lambda name, folder: hasten.load(f"{name}.hastenz"),
    "chain": lambda name, folder: hasten.chain(f"{name}+crop+{name}"),
    "chain_file": lambda name, folder: hasten.chain(f"{name}.yaml"),
    "optimize": lambda name, folder: hasten.optimize(name, folder, out=folder / "o"),
    "optimize_onnx": lambda name, folder: hasten.optimize(f"{name}.onnx", out=folder / "o"),
    "data": lambda name, folder: hasten.optimize(
        models.linear_classifier(folder), name, out=folder / "o"
    ),
    "data_npz": lambda name, folder: hasten.optimize(
        models.linear_classifier(folder), f"{name}.npz", out=folder / "o"
    ),
    "out": lambda name, folder: hasten.optimize(
        models.linear_classifier(folder), out=folder / name
    ),
    "bench": lambda name, folder: hasten.bench(name),
    "certify": lambda name, folder: hasten.certify(name, "x.npz"),
    "profile": lambda name, folder: hasten.profile(name),
    "pack": lambda name, folder: hasten.pack(name),
    "unpack": lambda name, folder: hasten.unpack(name),
    "sign": lambda name, folder: hasten.sign(name, folder / "key"),
    "report": lambda name, folder: hasten.report(name),
    "serve": lambda name, folder: hasten.serve([f"m={name}"]),
    "load_test": lambda name, folder: hasten.load_test(name, "offline"),
}


@NAMES
@pytest.mark.parametrize("call", LIBRARY)
def test_the_library_says_in_one_line_that_there_is_none(
    call: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(hasten.InputError) as caught:
        LIBRARY[call](name, tmp_path)
    assert "\n" not in str(caught.value)


PATHS: dict[str, Callable[[Any], Any]] = {
    "load": hasten.load,
    "bench": hasten.bench,
    "certify": lambda given: hasten.certify(given, "x.npz"),
    "pack": hasten.pack,
    "unpack": hasten.unpack,
    "report": hasten.report,
    "serve": lambda given: hasten.serve([given]),
    "load_test": lambda given: hasten.load_test(given, "offline"),
}


@pytest.mark.parametrize("given", [None, 5, b"m.hasten"], ids=repr)
@pytest.mark.parametrize("call", PATHS)
def test_what_is_no_path_is_said_in_one_line(call: str, given: Any, tmp_path: Path) -> None:
    with pytest.raises(hasten.InputError) as caught:
        PATHS[call](given)
    assert str(caught.value) == f"a path must be a text or a Path: got {given!r}"


@pytest.mark.parametrize(
    "command",
    [
        ("optimize", LONG),
        ("optimize", f"{LONG}.onnx", "--data", LONG),
        ("lighten", LONG, "--data", LONG),
        ("inspect", LONG),
        ("inspect", f"{LONG}.onnx"),
        ("serve", LONG),
        ("serve", f"m={LONG}"),
        ("certify", LONG, "--data", LONG),
        ("pack", LONG),
        ("unpack", LONG),
        ("sign", LONG, "--key", LONG),
        ("bench", LONG),
        ("bench", LONG, "--cold"),
        ("bench", f"{LONG}+crop+{LONG}", "--end-to-end", "--data", LONG),
        ("profile", LONG),
        ("report", LONG),
        ("watch", LONG, LONG),
        ("label", LONG),
        ("plan", "--data", LONG),
        ("monitor", LONG),
    ],
    ids=lambda command: "-".join(one for one in command if LONG not in one),
)
def test_a_command_says_in_one_line_that_there_is_none(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.splitlines()[-1].startswith(("hasten: ", "Error: ")), result.stderr
    assert "Traceback" not in result.stderr

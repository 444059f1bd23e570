import enum
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.faults import Faulty

from hasten.core.objects import load_object
from hasten.core.records import (
    canonical,
    check_replaceable,
    digest,
    file_digest,
    from_record,
    read_json,
    to_record,
    type_name,
    write_json,
    write_whole,
)
from hasten.engines.base import Engine
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError, IntegrityError
from hasten.measure.candidate import Single

KNOWN = ", ".join(Engine.registry)
NO_ENGINE = "the engine {!r} isn't installed: it's no engine of hasten's own; there are: " + KNOWN
FAULTY = "tests.support.faults:Faulty"


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Plain:
    path: Path
    sizes: tuple[int, ...]
    named: dict[str, float]
    colour: Colour = Colour.RED


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(to_record(value)))


def test_a_dataclass_comes_back_as_it_was() -> None:
    value = Plain(Path("a/b"), (1, 2), {"x": 0.5})
    assert through_json(value) == {
        "path": "a/b",
        "sizes": [1, 2],
        "named": {"x": 0.5},
        "colour": "red",
    }
    assert from_record(Plain, through_json(value)) == value


@given(
    st.builds(
        OnnxRuntime,
        threads=st.none() | st.integers(1, 256),
        spinning=st.booleans(),
        graph_optimization=st.sampled_from(["all", "disabled"]),
    )
    | st.builds(OpenVino, precision=st.sampled_from(["f32", "f16", "bf16"]), pinning=st.booleans())
)
def test_an_engine_inside_a_record_comes_back_as_it_was(engine: Engine) -> None:
    candidate = Single((), engine)
    assert from_record(Single, through_json(candidate)) == candidate


def test_a_registered_value_is_written_by_its_name() -> None:
    assert type_name(Null()) == "null"
    assert to_record(OpenVino(threads=2)) == {
        "type": "openvino",
        "precision": "f32",
        "threads": 2,
        "pinning": False,
        "narrows": False,
    }


def test_an_import_path_is_followed_only_by_a_trusted_reader() -> None:
    record = through_json(Faulty(Null(), "nan", busy_ns=5))
    assert record["type"] == FAULTY
    assert from_record(Engine, record, trusted=True) == Faulty(Null(), "nan", busy_ns=5)
    with pytest.raises(IntegrityError) as caught:
        from_record(Engine, record)
    assert str(caught.value) == NO_ENGINE.format(FAULTY)


def test_an_import_path_deep_inside_is_not_followed_either() -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Single, through_json(Single((), Faulty(Null()))))
    assert str(caught.value) == NO_ENGINE.format(FAULTY)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"type": "abacus"}, NO_ENGINE.format("abacus")),
        ({}, "a Engine record has no type: {}"),
        ([1], "a Engine record has no type: [1]"),
        ({"type": 3}, "a Engine record has no type: {'type': 3}"),
        ({"type": "null", "b": 1, "a": 2}, "null has no setting a, b"),
        (
            {"type": "openvino", "threads": "two"},
            "a OpenVino record can't be read: Expected `int | null`, got `str` - at `$.threads`",
        ),
        (
            {"type": "openvino", "precision": "f8"},
            "a OpenVino record can't be read: Invalid enum value 'f8' - at `$.precision`",
        ),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused(record: Any, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Engine, record)
    assert str(caught.value) == message


def test_a_trusted_path_must_lead_to_one_of_the_family() -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Engine, {"type": "os:system"}, trusted=True)
    assert str(caught.value) == "os:system is not a Engine"


def test_a_setting_that_there_isnt_is_told_in_one_line() -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Engine, {"type": "null", "a\0": 1})
    assert str(caught.value) == r"null has no setting a\x00"


@dataclass(frozen=True)
class Chosen:
    word: Literal["one", "another"]


def test_a_text_that_is_half_a_character_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Chosen, {"word": "\ud800"})
    assert str(caught.value) == (
        "a Chosen record can't be read: 'utf-8' codec can't encode character '\\ud800' in position 0: "
        "surrogates not allowed"
    )


def test_a_record_with_a_missing_field_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        from_record(Plain, {"path": "a", "sizes": []})
    assert str(caught.value) == (
        "a Plain record can't be read: Object missing required field `named`"
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:X", "can't import 'no_such_module_here:X': No module named 'no_such_module_here'"),
        ("os:no_such_name", "can't import 'os:no_such_name': os has no 'no_such_name'"),
        ("", "can't import '': Empty module name"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_object(path)
    assert str(caught.value) == message


def test_a_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    assert canonical({"b": 1, "a": (2,)}) == b'{"a":[2],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_file_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": [1]})
    write_json(tmp_path / "r.json", {"a": [2]})
    assert read_json(tmp_path / "r.json") == {"a": [2]}
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_disk_that_fills_up_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[1]")
    program = """
import resource, signal, sys
from pathlib import Path
from hasten.errors import InputError
from hasten.core.records import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_whole(Path(sys.argv[1]), b"x" * 100_000)
except InputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"can't write {path}: File too large\n"
    assert path.read_text() == "[1]"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "r.json"
    with pytest.raises(InputError) as caught:
        write_whole(path, b"x")
    assert str(caught.value) == f"can't write {path}: No such file or directory"
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(InputError) as caught:
        write_whole(file / "r.json", b"x")
    assert str(caught.value) == f"can't write {file / 'r.json'}: Not a directory"


def test_a_folder_in_the_way_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.mkdir()
    with pytest.raises(InputError) as caught:
        write_whole(path, b"x")
    assert str(caught.value) == f"can't write {path}: Is a directory"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(IntegrityError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path} is missing"
    path.write_text("{")
    with pytest.raises(IntegrityError) as caught:
        read_json(path)
    assert str(caught.value) == (
        f"{path} can't be read as JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)"
    )


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError) as error:
        write_whole(pipe, b"x")
    said = "can't write {}: a file would replace the device, pipe or link there; give a file's name"
    assert str(error.value) == said.format(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
    for device in ("/dev/null", "/dev/stdout", "/dev/new"):
        with pytest.raises(InputError) as error:
            check_replaceable(Path(device))
        assert str(error.value) == said.format(device)
    check_replaceable(tmp_path / "new")

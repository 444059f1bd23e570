"""YAML of a stranger: each file is read or refused in one line, within a bound of memory."""

from pathlib import Path
from typing import Any

import pytest

from hasten.core.yaml_files import read_yaml
from hasten.errors import InputError
from hasten.inputs.chains.reading import chain_of
from hasten.inputs.pipeline.config import from_yaml

DOUBLED = ["- &a0 [1, 1]"] + [f"- &a{n + 1} [*a{n}, *a{n}]" for n in range(40)]
MERGED = ["- &a0 {a: 1}"] + [f"- &a{n + 1} {{<<: [*a{n}, *a{n}]}}" for n in range(40)]


def read(folder: Path, text: str, most_bytes: int = 1000) -> object:
    path = folder / "input.yaml"
    path.write_text(text)
    return read_yaml(path, most_bytes, "a test")


def test_values_and_aliases_are_read(tmp_path: Path) -> None:
    text = "a: &a [1, x, 0.5]\nb: *a\nc: {<<: {d: 1}}"
    assert read(tmp_path, text) == {"a": [1, "x", 0.5], "b": [1, "x", 0.5], "c": {"d": 1}}
    assert read(tmp_path, "") is None
    assert read(tmp_path, "-\n" * 500) == [None] * 500  # as many values as there can be


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n".join(DOUBLED), "aliases repeat too much of it: write it out"),
        ("\n".join(MERGED), "aliases repeat too much of it: write it out"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: 0x" + "f" * 101, "a number has more than 100 characters"),
        ("a: " + "1" * 101, "a number has more than 100 characters"),
        ("a: 1" + ":1" * 100, "a number has more than 100 characters"),
    ],
)
def test_what_would_take_too_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, text, 2000)
    assert str(error.value) == f"{tmp_path / 'input.yaml'} can't be read as YAML: {said}"


@pytest.mark.parametrize(
    ("text", "key"),
    [("a: 1\nb: 2\na: 3", "a"), ("- {x: {1: 1, 1: 2}}", "1"), ("a: 1\n'a': 2", "a")],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(error.value) == (
        f"{tmp_path / 'input.yaml'} can't be read as YAML: {key} is given twice: leave out one of them"
    )


def test_merges_and_keys_of_other_types_are_no_keys_given_twice(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {z: 2}\nc: {<<: *a, <<: *b, y: 3}\nd: {1: 4, '1': 5}"
    found: Any = read(tmp_path, text)
    assert found["c"] == {"x": 1, "y": 3, "z": 2}
    assert found["d"] == {1: 4, "1": 5}


def test_no_node_of_a_chain_is_lost_under_anothers_name(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text("cars: {model: det.hasten}\ncars: {model: other.hasten}\n")
    with pytest.raises(InputError, match=r"cars is given twice: leave out one of them$"):
        chain_of(path)


@pytest.mark.parametrize(
    "text", ["2001-13-45", "!!int a", "!!float a", "!!bool a", "!!timestamp a", '"\\x', "[" * 900]
)
def test_what_is_no_value_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="can't be read as YAML: ") as error:
        read(tmp_path, text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["[", "{a: ", "- ", "? "])
def test_what_is_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    """libyaml before 0.2.6 crashed."""
    with pytest.raises(InputError, match="can't be read as YAML: ") as error:
        read(tmp_path, text * 200_000, 1 << 20)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "data", [b"a: \xff", b"a: \0", b"\xff\xfea", b'a: "\\ud800"', b"a: \xed\xa0\x80"]
)
def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "input.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match="can't be read as YAML: ") as error:
        read_yaml(path, 1000, "a test")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('size: 8\n"\\e[2J": 1', "there is no setting \\x1b[2J; there are "),
        ('before: [{resize: {"\\n": 1}}]', "resize has no setting \\n; there are size, interpolation"),
        ('after: [{top_k: {labels: "\\e"}}]', "no such file: {folder}/\\x1b"),
        ('after: [{top_k: {labels: "a\\0"}}]', "{folder}/a\\x00 can't be read as text: embedded null byte"),
    ],
)  # fmt: skip
def test_what_a_pipeline_names_is_shown_without_control_characters(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        from_yaml(path)
    assert str(error.value).startswith(f"{path}: {said.format(folder=tmp_path)}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"\\e": 1', "\\x1b: say what it is with one of model, crop, when"),
        ("a: {model: b, 1: 2}", "a: model has no setting 1"),
    ],
)
def test_what_a_chain_names_is_shown_without_control_characters(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        chain_of(path)
    assert str(error.value) == f"{path}: {said}"

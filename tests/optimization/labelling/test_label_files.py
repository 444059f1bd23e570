"""Files of labels in any order and spelling; what can't be used is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import InputError
from hasten.optimization.labelling.answers import Form, read_labels, write_labels

IDS = ["s1", "s2", "s3"]
NAMED = Form(3, ("cat", "dog", "4"))
PLAIN = Form(3)


def read(tmp_path: Path, data: bytes, form: Form = PLAIN) -> dict[str, str]:
    file = tmp_path / "labels.csv"
    file.write_bytes(data)
    return read_labels(file, IDS, form)


@pytest.mark.parametrize(
    "data",
    [
        b"id,label\ns1,0\ns3,2\n",
        b"id,label\ns3,2\ns2,\ns1,0\n",
        b"\xef\xbb\xbfid,label\r\ns3,2\r\n\r\ns2,-1\r\ns1,0\r\n",
        b"id;label\ns1;0\ns3;2\n",
        b"ID\tfile\tLabel\ns1\ta,b.png\t0\ns3\tc.png\t 2 \ns2\td.png\tNaN\n",
        b'row,label,id,note\n1,"0",s1,"a ""b"",\nc"\n2,2,s3,\n',
        b"id,label\ns1,0\ns3,2\ns1,0\ns3,2.0\n",
    ],
)
def test_labels_are_read_in_any_order_and_dialect(tmp_path: Path, data: bytes) -> None:
    found = read(tmp_path, data)
    assert {key: PLAIN.read(label) for key, label in found.items()} == {"s1": 0, "s3": 2}


def test_a_file_that_is_not_there_yet_holds_no_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path / "labels.csv", IDS, PLAIN) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ": the first line must name the columns id and label"),
        (b"s1,0\n", ": the first line must name the columns id and label"),
        (b"id,label\ns9,0\n", ", line 2: there is no sample 's9' to label; leave the row out"),
        (b"id,label\ns1,7\n", ", line 2: sample s1: 7 isn't a class: give 0 to 2"),
        (b"id,label\ns1,0.5\n", ", line 2: sample s1: 0.5 isn't a class: give 0 to 2"),
        (b"id,label\ns1,cat\n", ", line 2: sample s1: 'cat' isn't a class: 0 to 2"),
        (b"id,label\ns1,0\n\ns2,1\ns1,1\n", ", line 5: sample s1 is '1' here and '0' in line 2; "
        "keep one of them"),
        (b"id,label\ns1,0\ns1,?\n", ", line 3: sample s1 is '?' here and '0' in line 2; keep one "
        "of them"),
        (b"id,label\ns1\n", ", line 2: it has 1 values, but the first line names 2 columns"),
        (b"id,label\ns1,\xff\n", " can't be read as CSV in UTF-8: 'utf-8' codec can't decode byte 0xff in position 12: invalid start byte"),
        (b"id,label\ns1," + b"9" * 200_000, ": line 2: a value has more than 131,072 characters, or a quotation mark has no end: write a mark inside a cell twice"),
        (b'id;label\ns1;0\ns2;"1\ns3;1\n', ": lines 3 to 4: a quotation mark has no end, or something other than a semicolon "
        "follows one: write a mark inside a cell twice"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_said_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, data)
    assert str(error.value) == f"{tmp_path / 'labels.csv'}{said}"


def test_a_class_is_given_by_its_name_and_by_its_number_where_no_name_is_one() -> None:
    assert Form(2, ("cat", "dog")).read("dog") == Form(2, ("cat", "dog")).read(" 1 ") == 1
    assert NAMED.read("4") == 2
    with pytest.raises(InputError, match="'1' isn't a class: cat, dog, 4"):
        NAMED.read("1")
    assert Form(2, ("none", "some")).read("none") == 0
    assert Form(2).read("none") is None
    assert Form().read("-1.5") == -1.5
    with pytest.raises(InputError, match="'inf' isn't a number"):
        Form().read("inf")


def test_a_class_whose_name_stands_for_nothing_elsewhere_is_a_label(tmp_path: Path) -> None:
    named = Form(2, ("NA", "EU"))
    assert read(tmp_path, b"id,label\ns1,NA\ns2,\ns3,na\n", named) == {"s1": "NA"}
    assert named.is_given(" NA ")
    assert not Form(2).is_given("NA")


def test_a_written_table_is_read_again_whatever_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [
        {"id": "s1", "label": "dog", "text": 'a "b",\nc;;;;;'},
        {"id": "s2", "label": "?", "text": "=1+1"},
        {"id": "s3", "label": "", "text": "\t\t\t"},
    ]
    write_labels(path, rows)
    assert read_labels(path, IDS, NAMED) == {"s1": "dog", "s2": "?"}


def test_a_large_table_is_read_line_by_line(tmp_path: Path) -> None:
    lines = b"".join(b"s%d,%d,%s\n" % (1 + i % 3, i % 3, b"x" * 60) for i in range(30_000))
    found = read(tmp_path, b"id,label,text\n" + lines)
    assert found == {"s1": "0", "s2": "1", "s3": "2"}

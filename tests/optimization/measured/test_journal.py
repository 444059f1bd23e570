import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.core.records import from_record
from hasten.engines.null import Null
from hasten.errors import InputError
from hasten.measure.candidate import Measurement, Single, Trial
from hasten.measure.journal import Journal


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for i in range(3):
        journal.append("even" if i % 2 == 0 else "odd", value=i)
    again = Journal(tmp_path / "j")
    assert [event["value"] for event in again.events("even")] == [0, 2]
    last = again.last("odd")
    assert last is not None
    assert last["value"] == 1
    assert again.last("none") is None


def test_a_trial_comes_back_as_it_was(tmp_path: Path) -> None:
    rounds = Measurement("measured", 2, {0: (10, 20), 11: (30,)})
    trial = Trial(Single((), Null()), measurement=rounds, scores=(1.0, 0.5))
    Journal(tmp_path / "j").append("trial", trial=trial)
    (event,) = Journal(tmp_path / "j").events("trial")
    assert from_record(Trial, event["trial"], trusted=True) == trial


@pytest.mark.parametrize("left", range(1, 20, 6))
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, left: int) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append("one", value=1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "two", "value": 2}'[:left])
    again = Journal(path)
    assert path.read_bytes() == whole
    again.append("three")
    assert [e["kind"] for k in ("one", "two", "three") for e in Journal(path).events(k)] == [
        "one",
        "three",
    ]


@pytest.mark.parametrize("line", ["{", "7", "[]", "{}", '{"value": 1}', "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    path.write_text(f'{{"kind": "one"}}\n{line}\n{{"kind": "three"}}\n')
    with pytest.raises(InputError) as error:
        Journal(path)
    assert str(error.value) == f"{path}: line 2 is damaged; remove {tmp_path} to start again"


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "j"
    with pytest.raises(InputError) as error:
        Journal(path).append("one")
    assert str(error.value) == f"can't write {path}: No such file or directory"


FULL = """
import resource, signal, sys
from pathlib import Path
from hasten.errors import InputError
from hasten.measure.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.append("one")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
try:
    journal.append("two", value="x" * 100)
except InputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append("three")
"""


def test_a_full_disk_leaves_no_half_line_behind(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    path = tmp_path / "j"
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"can't write {path}: File too large\n"
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["one", "three"]

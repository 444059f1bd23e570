"""The guard of the suite itself: a file that leaves a program running fails, and what it left is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import stranded
from tests.support.waiting import until

SLEEP = "import time; time.sleep(600)"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}'])"


def test_a_program_that_was_left_running_is_named_and_killed() -> None:
    before = stranded.running()
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        found = stranded.left(before, patience_s=0.1)
        assert found == {process.pid: f"{sys.executable} -c {SLEEP}"}
        assert process.wait() == -9
    assert stranded.left(before, patience_s=0.1) == {}


def test_so_is_one_whose_parent_is_gone_and_that_leads_a_session_of_its_own() -> None:
    before = stranded.running()
    subprocess.run([sys.executable, "-c", ORPHAN], check=True, start_new_session=True)
    (pid,) = stranded.left(before, patience_s=0.1)
    until(lambda: pid not in stranded.running())


def test_one_that_is_ending_is_waited_for() -> None:
    before = stranded.running()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"]):
        assert stranded.left(before) == {}


def test_a_file_that_leaves_one_fails(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "test_left.py").write_text(
        "import subprocess, sys\n"
        "from tests.conftest import nothing_is_left_running  # noqa: F401\n"
        "from tests.support import stranded\n"
        "stranded.left.__defaults__ = (0.1,)  # the patience\n"
        f"def test_it(): subprocess.Popen([sys.executable, '-c', {SLEEP!r}])\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # else plug-ins' settings, and so plug-ins
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout
    assert "left running, and killed now: {" in done.stdout
    assert SLEEP in done.stdout

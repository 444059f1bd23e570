"""An artifact whose process the system kills while it opens is opened once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.desk import Desk
from tests.support.killed import Killed

from hasten.errors import CandidateError


def test_a_killed_process_is_replaced_once(tmp_path: Path) -> None:
    with Desk(tmp_path) as desk:
        assert desk.open(Killed(count=str(tmp_path / "once"))).worker.alive
        with pytest.raises(CandidateError, match="killed by SIGKILL during 'open'"):
            desk.open(Killed(count=str(tmp_path / "twice"), times=2))
        assert (tmp_path / "twice").stat().st_size == 2

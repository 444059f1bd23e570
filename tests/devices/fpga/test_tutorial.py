"""The tutorial about FPGAs, run from its own code blocks."""

from pathlib import Path

import pytest
from tests.support.tutorials import TUTORIALS, follow

from hasten.engines.fpga import toolchain

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
pytest.importorskip("markdown_it", reason="needs markdown-it-py, which rich brings")
pytestmark = pytest.mark.skipif(
    any(toolchain.find(tool) is None for tool in ("verilator", "yosys", "nextpnr-ecp5")),
    reason="needs Debian's verilator, yosys and nextpnr-ecp5",
)


def test_the_tutorial_runs_from_its_own_blocks(tmp_path: Path) -> None:
    follow(TUTORIALS / "fpga.md", tmp_path)

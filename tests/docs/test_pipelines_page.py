"""The page of pipelines names every step and setting, and its files can be read."""

import dataclasses
import re
from pathlib import Path

import pytest

from hasten.inputs.pipeline.base import Step
from hasten.inputs.pipeline.config import from_yaml

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_pipeline_file_of_the_page_can_be_read(block: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "pipeline.yaml").write_text(block)
    assert from_yaml(tmp_path / "pipeline.yaml").steps


def test_the_page_names_every_step_and_each_of_its_settings() -> None:
    assert len(BLOCKS) > 5
    for name, path in Step.registry.items():
        if not path.startswith("hasten."):
            continue
        section = PAGE.partition(f"### `{name}`")[2].partition("\n## ")[0].partition("\n### ")[0]
        for field in dataclasses.fields(Step.member(name)):  # type: ignore[arg-type]
            assert f"`{field.name}`" in section, f"{name}.{field.name}"

"""Which batches a server makes of what a session takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import models
from tests.support.servers import bundle_of

from hasten.bundle import Loaded
from hasten.serving.models.opening import ModelSettings, open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    return bundle_of(folder, models.solid(folder))


@pytest.mark.parametrize(
    ("takes", "most_rows", "batched", "sizes"),
    [
        (None, 8, True, (1, 2, 3, 4, 6, 8)),
        (tuple(range(1, 7)), 32, True, (1, 2, 3, 4, 6)),
        (tuple(range(1, 33)), 4, True, (1, 2, 3, 4)),
        ((1,), 32, False, (1,)),
        ((4,), 32, False, (1,)),
        ((1, 8), 32, False, (1,)),
    ],
)
def test_batches_are_as_large_as_the_engine_takes_them(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    takes: tuple[int, ...] | None,
    most_rows: int,
    batched: bool,
    sizes: tuple[int, ...],
) -> None:
    asked: set[int] = set()
    run = Loaded.run

    def noted(self: Loaded, tensors: dict[str, object]) -> object:
        asked.update(len(array) for array in tensors.values())  # type: ignore[arg-type]
        return run(self, tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(Loaded, "batch_sizes", property(lambda self: takes))
    monkeypatch.setattr(Loaded, "run", noted)
    opened = open_bundle(bundle, ModelSettings(most_rows=most_rows))
    try:
        assert (opened.batched, opened.sizes) == (batched, sizes)
        assert asked == set(sizes)
    finally:
        opened.close()

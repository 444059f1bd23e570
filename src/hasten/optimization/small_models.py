"""Read the smaller models that a caller gives, to try in the original's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_model
from hasten.optimization.folding import Prepared
from hasten.passes.base import Skipped
from hasten.passes.folding import folded
from hasten.passes.small_model import SmallModel, Student


def named_students(small_model: Any) -> list[Student]:
    """Return the smaller models that a caller gave: one without a name, or several by name.

    Raises:
        InputError: two of them have the same name.
    """
    if small_model is None:
        return []
    if isinstance(small_model, Mapping):
        small_model = [Student(str(name), model) for name, model in small_model.items()]
    given = small_model if isinstance(small_model, (list, tuple)) else [Student("", small_model)]
    found = [
        one if isinstance(one, Student) else Student(f"{number}", one)
        for number, one in enumerate(given, 1)
    ]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise InputError(f"smaller models need different names: got {', '.join(names)}")
    return found


def small_models(
    students: Sequence[Student],
    given: Prepared,
    made: Prepared,
    custom_ops: Sequence[Path],
    folder: Path,
) -> Iterator[SmallModel]:
    """Read the smaller models; live ones are exported with a sample of the data.

    Args:
        students: Smaller models.
        given: The original and its data, as given: smaller models take the same.
        made: The original as it runs; where something was folded into it, it is into them too.
        custom_ops: Libraries of the user's own operators.
        folder: Folder of the run.
    """
    place = folder / "little"
    shutil.rmtree(place, ignore_errors=True)
    if not students:
        return
    first = {name: array[0] for name, array in given.dataset.inputs([0]).items()}
    original = made.model.settled_by(
        {name: array[0] for name, array in made.dataset.inputs([0]).items()}
    )

    def sample(names: Sequence[str]) -> dict[str, Array]:
        """Return the original's inputs, in order, under the names that a live model gives them."""
        return dict(zip(names or first, first.values(), strict=False))

    for number, student in enumerate(students):
        own = place / str(number)
        own.mkdir(parents=True)
        named = find_model(student.model)
        model = load_model(named, sample, own, custom_ops if isinstance(named, Path) else ())
        if made is not given and given.pipeline is not None:
            try:
                model, _ = folded(model, given.pipeline, own)
            except Skipped as why:
                raise InputError(
                    f"the original takes uint8 pixels with end_to_end=True, and the small model "
                    f"{student.name}".rstrip()
                    + f" can't: {why}"
                ) from why
        yield SmallModel.of(model, original, student.name, quantized=student.quantized)

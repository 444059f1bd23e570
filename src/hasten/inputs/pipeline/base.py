"""The contract of a pipeline: steps from what a sensor or a file gives to the model's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core.records import Value, type_name
from hasten.core.registry import Registry
from hasten.core.tensors import Array
from hasten.errors import InputError


class Step(Value, ABC):
    """One step of preprocessing: a frozen dataclass whose fields are its settings."""

    registry: ClassVar[Registry] = Registry(
        "step",
        "hasten.steps",
        {
            "decode": "hasten.inputs.pipeline.image:Decode",
            "resize": "hasten.inputs.pipeline.image:Resize",
            "center_crop": "hasten.inputs.pipeline.image:CenterCrop",
            "normalize": "hasten.inputs.pipeline.image:Normalize",
            "to_layout": "hasten.inputs.pipeline.image:ToLayout",
        },
    )

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Take what the step before gave, and give what the next takes."""


@dataclass(frozen=True)
class Pipeline:
    """Steps in order, from a file's bytes to one input tensor without a batch axis."""

    steps: tuple[Step, ...]

    def __call__(self, value: Any) -> Array:
        """Run every step on one sample.

        Raises:
            InputError: the sample can't be read or doesn't fit.
        """
        for step in self.steps:
            value = step(value)
        return value  # type: ignore[no-any-return]


def check_steps(pipeline: Pipeline | None) -> None:
    """Check that a bundle can keep a pipeline: it does so by its steps' names.

    Raises:
        InputError: which step has none.
    """
    for step in () if pipeline is None else pipeline.steps:
        name = type_name(step)
        if name not in Step.registry:
            raise InputError(
                f"a bundle can't keep the step {name}; it has: {', '.join(Step.registry)}: prepare the "
                "data by your own code before, and give arrays"
            )

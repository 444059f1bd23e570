"""Contract of a pipeline: steps from a sensor's or file's data to the model's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core.records import Value, type_name
from hasten.core.registry import Registry
from hasten.core.tensors import Array
from hasten.errors import InputError


class Step(Value, ABC):
    """Step of preprocessing: a frozen dataclass whose fields are its settings."""

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
        """Turn the previous step's output into the next step's input."""


@dataclass(frozen=True)
class Pipeline:
    """Steps in order, from a file's bytes to one input tensor without a batch axis.

    Attributes:
        steps: Steps of preprocessing, in order.
    """

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
    """Check that a bundle can store a pipeline, which it does by the steps' registered names.

    Raises:
        InputError: a step isn't registered; the message names it.
    """
    for step in () if pipeline is None else pipeline.steps:
        name = type_name(step)
        if name not in Step.registry:
            raise InputError(
                f"a bundle can't store the step {name}, only {', '.join(Step.registry)}: "
                "preprocess the data in your own code, and give arrays"
            )

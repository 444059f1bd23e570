"""Step that gives a sound the mean 0 and the deviation 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.pipeline.base import Step, unfit

_LEAST = 1e-7
"""Addend to the variance, as in transformers' extractor of Wav2Vec2, so that silence stays silent."""


@dataclass(frozen=True)
class Standardize(Step):
    """Subtract the mean of a sound, (samples,) float32, and divide by its deviation.

    Source: https://github.com/huggingface/transformers, Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """

    def __call__(self, value: Array) -> Array:
        """Shift and scale the samples.

        Raises:
            InputError: the value is no array of numbers, or an empty one.
        """
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or not value.size:
            raise unfit("standardize", value, "a sound, (samples,), after decode_audio")
        return np.asarray((value - value.mean()) / np.sqrt(value.var() + _LEAST), np.float32)

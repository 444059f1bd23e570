"""Masks and lengths in the data that contradict what they belong to: refused, or noted where they only seem to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount, listed
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset

_LOOKED_AT = 2_000
"""Largest number of samples that are looked at."""
_SURE = ("attention_mask", "input_mask")
"""Masks of which 1 is known to mean that a token counts."""
_LENGTH = re.compile(r"lengths?|lens?|(?:seq|sequence|input|feature|x)s?_len(?:gth)?s?")
"""Names of inputs that say how much of another input counts."""
_RUN = 2
"""Least number of equal tokens at an end that look like padding; a single one may end a sentence."""


def check_sizes(specs: Sequence[TensorSpec], samples: Dataset) -> None:
    """Check samples that differ in shape: a mask has a number for each token, and no length is beyond the arrays.

    A decoder's mask also covers what it has in its cache, so it isn't checked.

    Args:
        specs: Inputs of the model.
        samples: Data, whose inputs have the names of `specs`.

    Raises:
        InputError: a sample contradicts itself.
    """
    tokens = [s.name for s in specs if _holds_tokens(s)]
    cached = any("past" in s.name.lower() or "cache" in s.name.lower() for s in specs)
    masks = [s.name for s in specs if s.name.lower() in _SURE and tokens and not cached]
    lengths = [
        s.name
        for s in specs
        if np.dtype(s.dtype).kind in "iu" and _LENGTH.fullmatch(s.name.lower())
    ]
    if not samples.ragged or not (masks or lengths):
        return
    for place in range(min(len(samples), _LOOKED_AT)):
        given = {name: array[0] for name, array in samples.inputs([place]).items()}
        sizes = {name: len(given[name]) for name in tokens if given[name].ndim == 1}
        for mask in masks:
            if given[mask].ndim == 1 and sizes and len(given[mask]) not in sizes.values():
                raise InputError(
                    f"{mask} has {amount(len(given[mask]), 'number')} in a sample with "
                    f"{' and '.join(f'{size:,} of {name}' for name, size in sizes.items())}: give one for "
                    "each token"
                )
        for name in lengths:
            _check_length(name, given)


def _check_length(name: str, given: Mapping[str, Array]) -> None:
    sizes = [size for other, array in given.items() if other != name for size in array.shape]
    if given[name].size != 1 or max(sizes, default=1) == 1:
        return
    length, most = int(given[name].ravel()[0]), max(sizes)
    if not 0 <= length <= most:
        raise InputError(
            f"{name} is {length:,} in a sample whose other inputs have at most {most:,} along any axis: "
            "give the length of what counts"
        )


def mask_notes(specs: Sequence[TensorSpec], samples: Dataset) -> list[str]:
    """Return a note for each mask that is inverted, hides whole samples, has gaps, or doesn't hide padding.

    A mask has one number, 0 or 1, for each token; inputs of whole numbers of its size are tokens.

    Args:
        specs: Inputs of the model.
        samples: Data, whose inputs have the names of `specs`.
    """
    tokens = next((s.name for s in specs if _holds_tokens(s)), None)
    masks = [
        s.name for s in specs if s.name.lower().endswith("mask") and "pad" not in s.name.lower()
    ]
    if tokens is None:
        return []
    notes = []
    for mask in masks:
        pairs = list(_pairs(samples, tokens, mask))
        if mask.lower() in _SURE and (token := _inverted(pairs)) is not None:
            notes.append(
                f"{mask} looks inverted: of the {amount(len(pairs), 'sample')} that were looked at, it is 1 only "
                f"over token {token}, which looks like padding, and 0 over all others of {tokens}; give 1 for each "
                "token that counts"
            )
        elif said := _said(pairs, sure=mask.lower() in _SURE):
            notes.append(
                f"{mask} doesn't seem to fit {tokens}: of the {amount(len(pairs), 'sample')} that were "
                f"looked at, it {said}; if that isn't meant, repair the data"
            )
    return notes


def _holds_tokens(spec: TensorSpec) -> bool:
    name = spec.name.lower()
    return (
        np.dtype(spec.dtype).kind == "i"
        and ("ids" in name or "tokens" in name)
        and "type" not in name
    )


def _pairs(samples: Dataset, tokens: str, mask: str) -> Iterator[tuple[Array, Array]]:
    """Yield the tokens and the mask of samples where both are rows of one size, and the mask is 0 or 1."""
    for place in range(min(len(samples), _LOOKED_AT)):
        given = samples.inputs([place])
        ids, shown = given[tokens][0], given[mask][0]
        if ids.ndim == 1 and ids.size and ids.shape == shown.shape and np.isin(shown, (0, 1)).all():
            yield ids, shown.astype(bool)


def _said(pairs: Sequence[tuple[Array, Array]], *, sure: bool) -> str:
    """Return what is odd; empty where nothing is."""
    hidden = sum(not shown.any() for _, shown in pairs)
    if not sure and 2 * hidden > len(pairs):  # 1 may mean that a token is left out
        return ""
    gaps = sum(bool(np.diff(np.flatnonzero(shown)).max(initial=1) > 1) for _, shown in pairs)
    padding = _padding(pairs)
    over = 0 if padding is None else sum(_over(ids[shown], padding) for ids, shown in pairs)
    return listed(
        f"hides {amount(hidden, 'sample')} wholly" if hidden else "",
        f"has zeros between ones in {amount(gaps, 'sample')}" if gaps else "",
        f"is 1 over padding (token {padding}) in {amount(over, 'sample')}" if over else "",
    )


def _inverted(pairs: Sequence[tuple[Array, Array]]) -> int | None:
    """Return the token that alone is shown while several others are hidden; None where there is none."""
    over = {int(token) for ids, shown in pairs for token in np.unique(ids[shown])}
    if len(over) != 1:
        return None
    (token,) = over
    hidden = {int(one) for ids, shown in pairs for one in np.unique(ids[~shown])} - over
    return token if len(hidden) > 1 else None


def _padding(pairs: Sequence[tuple[Array, Array]]) -> int | None:
    """Return the token that pads: the only one under zeros, or else at the end of most samples; None if none does."""
    under = {int(token) for ids, shown in pairs for token in np.unique(ids[~shown])}
    if under:
        return under.pop() if len(under) == 1 else None
    ends = Counter(
        int(ids[-1]) for ids, _ in pairs if len(ids) >= _RUN and (ids[-_RUN:] == ids[-1]).all()
    )
    token, count = next(iter(ends.most_common(1)), (0, 0))
    return token if 2 * count > len(pairs) else None


def _over(ids: Array, padding: int) -> bool:
    """Whether tokens that count begin or end with padding."""
    return len(ids) >= _RUN and any((end == padding).all() for end in (ids[:_RUN], ids[-_RUN:]))

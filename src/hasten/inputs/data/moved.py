"""Pictures that are mirrored, shifted or cut copies of others: looked up by spectra, then laid over each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hasten.inputs.data.neighbours import COUNT, Floats, Indices, nearest

Pictures = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_WAVES = 5
"""Highest frequency of the spectra by which pictures are looked up, in waves over a side."""
_NEARER = 0.75
"""Largest distance of the nearest spectrum, as a share of the tenth's, at which pictures are compared."""
_PROMISING = 0.75
"""Largest distance of pictures laid over each other, as a share of the tenth neighbor's, that is refined."""
_CANDIDATES = 3
"""Others with the nearest spectra that are laid over a picture."""
_PER_PIXEL = 2
"""Places per pixel at which pictures are laid over each other."""
_SHIFT, _STRETCH = 0.3, 0.25
"""Largest shift, as a share of a side, and largest change of a side."""
_STEPS = 12
_SEEN = 0.5
"""Least share of a picture's contrast where two that are laid over each other overlap."""
_APART = 2.0
"""Largest distance of pictures of length 1."""
_AT_ONCE = 256
_SPECTRA_AT_ONCE = 4096
"""Pictures whose waves are turned into amplitudes at a time."""


def nearest_moved(
    small: Pictures,
    small_others: Pictures,
    fine: npt.NDArray[np.floating],
    fine_others: npt.NDArray[np.floating],
    tenth: Floats,
) -> tuple[Floats, Indices]:
    """Return how far each picture is from another, after that is mirrored, shifted and stretched to fit.

    A shift or a mirror changes no amplitude of a spectrum, and a slight cut changes them slightly. So only the
    others with the nearest spectra are laid over a picture, and only where one of these is clearly nearest.

    Args:
        small: Small pictures with the mean 0 and the length 1, `(n, rows, columns)`.
        small_others: Small pictures of which they may be copies, `(m, rows, columns)`.
        fine: The first pictures in more detail, `(n, height, width)`.
        fine_others: The others in more detail, `(m, height, width)`.
        tenth: Distance of each picture's tenth neighbor as pictures are, `(n,)`.

    Returns:
        Distance of the other that fits best, `(n,)`, infinite where none was compared, and its position, `(n,)`.
    """
    least, partner = np.full(len(small), np.inf), np.zeros(len(small), np.int64)
    if not len(small) or len(small_others) < COUNT:
        return least, partner
    apart, places = nearest(_spectra(small), _spectra(small_others))
    looked_at = np.flatnonzero(apart[:, 0] < _NEARER * apart[:, -1])
    for low in range(0, len(looked_at), _AT_ONCE):
        rows = looked_at[low : low + _AT_ONCE]
        rough, other, mirrored, shift = _laid_over(
            small[rows], small_others, places[rows, :_CANDIDATES]
        )
        kept = rough < _PROMISING * tenth[rows]
        if not kept.any():
            continue
        rows, other, mirrored, shift = rows[kept], other[kept], mirrored[kept], shift[kept]
        own, onto = (np.asarray(p, np.float32) for p in (fine[rows], fine_others[other]))
        own[mirrored] = own[mirrored, :, ::-1]
        least[rows], partner[rows] = _fitted(own, onto, shift), other
    return least, partner


def _spectra(pictures: Pictures) -> Pictures:
    """Return the amplitudes of the lowest frequencies, the same for a picture and its mirror image, `(n, k)`."""
    count, rows, columns = pictures.shape
    down, across = (min(_WAVES, side // 2) for side in (rows, columns))
    y, x = np.arange(rows)[:, np.newaxis] / rows, np.arange(columns) / columns
    angles = [
        2 * np.pi * (i * y + j * x).reshape(-1)
        for i in range(down + 1)
        for j in range(-across, across + 1)
    ]
    waves = np.stack([turn(angle) for angle in angles for turn in (np.cos, np.sin)], axis=1)
    # One product for all: BLAS rounds the last bits by how many rows it is given, and by their places.
    parts = pictures.reshape(count, -1) @ waves.astype(np.float32)
    spectra = np.empty((count, down + 1, across + 1), np.float32)
    for start in range(0, count, _SPECTRA_AT_ONCE):
        some = parts[start : start + _SPECTRA_AT_ONCE].reshape(-1, down + 1, 2 * across + 1, 2)
        power = np.sqrt(np.square(some).sum(axis=3))
        spectra[start : start + len(some)] = (power + power[:, :, ::-1])[:, :, across:]
    return spectra.reshape(count, -1)


def _laid_over(
    pictures: Pictures, others: Pictures, places: Indices
) -> tuple[Floats, Indices, Flags, Floats]:
    """Lay pictures over their candidates at any shift of half a pixel, mirrored or not.

    Args:
        pictures: Pictures, `(n, rows, columns)`.
        others: Pictures among which the candidates are, `(m, rows, columns)`.
        places: Positions of the candidates of each picture, `(n, k)`.

    Returns:
        Least distance of each picture, `(n,)`; its candidate's position; whether the picture has to be
        mirrored for it; and the shift down and across, as shares of the sides, `(n, 2)`.
    """
    count, rows, columns = pictures.shape
    own = np.fft.fft2(np.stack([pictures, pictures[:, :, ::-1]], axis=1))
    product = np.conj(own)[:, :, np.newaxis] * np.fft.fft2(others[places])[:, np.newaxis]
    size = (_PER_PIXEL * rows, _PER_PIXEL * columns)
    wide = np.zeros((*product.shape[:3], *size), np.complex64)
    down, across = (np.fft.fftfreq(side, 1 / side).astype(np.int64) for side in (rows, columns))
    wide[..., down[:, np.newaxis], across] = product
    shifts = [np.fft.fftfreq(side) for side in size]
    near = [np.flatnonzero(np.abs(shift) <= _SHIFT) for shift in shifts]
    fits = np.fft.ifft2(wide).real[..., near[0], :][..., near[1]] * _PER_PIXEL**2
    best = fits.reshape(count, -1).argmax(axis=1)
    mirrored, candidate, y, x = np.unravel_index(best, fits.shape[1:])
    fit = fits.reshape(count, -1)[np.arange(count), best].astype(np.float64)
    shift = np.stack([shifts[0][near[0]][y], shifts[1][near[1]][x]], axis=1)
    chosen = places[np.arange(count), candidate]
    return np.sqrt(np.maximum(2 - 2 * fit, 0)), chosen, mirrored == 1, shift


def _fitted(own: Pictures, onto: Pictures, shift: Floats) -> Floats:
    """Return the least distance of pictures, the first shifted and stretched to fit, `(n,)`.

    Each step solves for the shift, the stretch, the contrast and the brightness together, by the slopes of the
    picture (Lucas and Kanade, IJCAI 1981).

    Args:
        own: Pictures to move, `(n, height, width)`.
        onto: Pictures that they are moved onto, of the same shape.
        shift: Shifts down and across to begin with, as shares of the sides, `(n, 2)`.
    """
    count, *sides = own.shape
    size = np.array(sides, np.float32)
    middles = [np.arange(side, dtype=np.float32) - (side - 1) / 2 for side in sides]
    offset = (-shift * size).astype(np.float32)
    stretch = np.ones((count, 2), np.float32)
    least = np.full(count, _APART)
    for _ in range(_STEPS):
        at = [
            stretch[:, axis, np.newaxis] * middle + offset[:, axis, np.newaxis] - middle[0]
            for axis, middle in enumerate(middles)
        ]
        inside = [(place >= 0) & (place <= side - 1) for place, side in zip(at, sides, strict=True)]
        seen = (inside[0][:, :, np.newaxis] & inside[1][:, np.newaxis]).astype(np.float32)
        moved = _sampled(_sampled(own, at[0], 1), at[1], 2)
        least = np.minimum(least, _apart(moved, onto, seen))
        by = _step(moved, onto, seen, middles)
        offset = np.clip(
            offset + np.clip(by[:, :2], -1, 1) * stretch, -_SHIFT * size, _SHIFT * size
        )
        stretch = stretch * (1 + np.clip(by[:, 2:], -0.05, 0.05))
        stretch = np.clip(stretch, 1 - _STRETCH, 1 + _STRETCH)
    return least


def _step(
    moved: Pictures, onto: Pictures, seen: Pictures, middles: list[npt.NDArray[np.float32]]
) -> Pictures:
    """Return by how many pixels to shift pictures further, and by what shares to stretch them, `(n, 4)`."""
    count = len(moved)
    slopes = np.gradient(moved, axis=(1, 2))
    stretched = slopes[0] * middles[0][:, np.newaxis], slopes[1] * middles[1]
    columns = np.stack([*slopes, *stretched, moved, np.ones_like(moved)], axis=1)
    columns = (columns * seen[:, np.newaxis]).reshape(count, 6, -1)
    products = (columns @ columns.transpose(0, 2, 1)).astype(np.float64)
    diagonal = np.arange(6)
    products[:, diagonal, diagonal] = 1.001 * products[:, diagonal, diagonal] + 1e-6
    solved = np.linalg.solve(products, columns @ onto.reshape(count, -1, 1))[:, :, 0]
    contrast = np.maximum(solved[:, 4:5], 0.1)
    return np.asarray(solved[:, :4] / contrast, np.float32)


def _sampled(pictures: Pictures, at: Pictures, axis: int) -> Pictures:
    """Return pictures at other places along an axis, `(n, k)`, each between two pixels in proportion."""
    shape = (len(at), -1, 1) if axis == 1 else (len(at), 1, -1)
    low = np.clip(np.floor(at).astype(np.int64), 0, pictures.shape[axis] - 2)
    share = np.clip(at - low, 0, 1).astype(np.float32).reshape(shape)
    low = low.reshape(shape)
    first, second = (np.take_along_axis(pictures, place, axis) for place in (low, low + 1))
    return np.asarray(first + share * (second - first), np.float32)


def _apart(one: Pictures, other: Pictures, seen: Pictures) -> Floats:
    """Return the distance of pictures, each with the mean 0 and the length 1 where both are seen, `(n,)`."""
    pixels = np.maximum(seen.sum(axis=(1, 2), keepdims=True), 1)
    parts = [(p - (p * seen).sum(axis=(1, 2), keepdims=True) / pixels) * seen for p in (one, other)]
    lengths = [np.sqrt(np.square(part).sum(axis=(1, 2), dtype=np.float64)) for part in parts]
    fit = (parts[0] * parts[1]).sum(axis=(1, 2), dtype=np.float64)
    fit /= np.maximum(lengths[0] * lengths[1], 1e-9)
    enough = np.minimum(*lengths) >= np.sqrt(_SEEN)
    return np.where(enough, np.sqrt(np.maximum(2 - 2 * fit, 0)), _APART)

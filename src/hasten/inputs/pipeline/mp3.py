"""Samples that the frames of an MP3 file hold, by their headers: the decoder reads as many as a length says, or a guess.

Source of the headers: ISO/IEC 11172-3, 2.4.2.3, and ISO/IEC 13818-3, 2.4.2.3; MPEG 2.5 has half the rates of MPEG 2.
"""

from __future__ import annotations

_KBITS = {
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
"""Bits per millisecond of layer 3, by whether it is MPEG 1."""
_HERTZ, _PARTS = (44_100, 48_000, 32_000), {3: 1, 2: 2, 0: 4}
"""Samples per second of MPEG 1, and what they are divided by in each version."""
_MOST_GAPS = 1000
"""Largest number of places at which no frame begins, after which the rest isn't looked at: strangers send files too."""


def samples_of_frames(data: bytes) -> int:
    """Return how many samples of a channel the whole frames of an MP3 file hold, at least.

    Args:
        data: The file's bytes, or those after its tags.
    """
    place = total = gaps = 0
    kind = None
    if data[:3] == b"ID3":
        place = 10 + sum(
            byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False)
        )
    while 0 <= place <= len(data) - 4 and gaps < _MOST_GAPS:
        found = _frame(data[place : place + 4])
        if found is None or place + found[0] > len(data) or found[2] != (kind or found[2]):
            gaps, place = gaps + 1, data.find(b"\xff", place + 1)
            continue
        length, samples, kind = found
        total, place = total + samples, place + length
    return total


def _frame(header: bytes) -> tuple[int, int, tuple[int, int]] | None:
    """Return a frame's length in bytes, its samples, and its version and rate; None where it is no frame of layer 3."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate = header[2] >> 4, header[2] >> 2 & 3
    synced = header[0] == 0xFF and header[1] >> 5 == 7
    if not synced or version not in _PARTS or layer != 1 or not 0 < bits < 15 or rate == 3:
        return None
    first = version == 3
    samples, hertz = 1152 if first else 576, _HERTZ[rate] // _PARTS[version]
    length = samples // 8 * 1000 * _KBITS[first][bits - 1] // hertz + (header[2] >> 1 & 1)
    return length, samples, (version, rate)

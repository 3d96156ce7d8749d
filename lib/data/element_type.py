"""Infer from raw bytes whether little-endian numbers are float16, float32 or float64.

The last byte of a number holds its sign and exponent. In an array of one type, all last bytes have
similar value distributions. A byte of the mantissa has a different distribution. Integers, of one
byte or of several, are recognised as none of these types.
"""

import numpy as np

DTYPES = ("float16", "float32", "float64")
FEWEST_GROUPS = 100  # fewer groups are not enough to decide
ALIKE, DIFFERENT = 0.4, 0.6  # distances; between them, the type is undecided


def find_dtype(content: np.ndarray, row_bytes: int) -> str | None:
    """Infer the type of numbers, one of DTYPES, or None if it is undecided.

    content: uint8 array of whole rows of `row_bytes` bytes.
    """
    if row_bytes % 4:
        return _float16(content)
    if row_bytes % 8 == 0:
        distance = _distance(content.reshape(-1, 8), 3, 7)
        if distance > DIFFERENT:
            return "float64"
        if not distance < ALIKE:
            return None
    distance = _distance(content.reshape(-1, 4), 1, 3)
    return "float32" if distance > DIFFERENT else _float16(content) if distance < ALIKE else None


def _float16(content: np.ndarray) -> str | None:
    """Return "float16", or None if the bytes may be integers of one byte, or small longer ones."""
    if not _distance(content.reshape(-1, 2), 0, 1) > DIFFERENT:
        return None
    values = np.abs(content.view("<f2"))
    return "float16" if values.max() >= np.finfo(np.float16).tiny else None


def _distance(groups: np.ndarray, first: int, second: int) -> float:
    """Distance of the distributions of two bytes of groups: 0 (equal) to 1.

    groups: (n, bytes). Returns NaN if fewer than FEWEST_GROUPS groups are nonzero.
    """
    groups = groups[groups.any(axis=1)]
    if len(groups) < FEWEST_GROUPS:
        return np.nan
    counts = [np.bincount(groups[:, byte], minlength=256) for byte in (first, second)]
    return np.abs(counts[0] - counts[1]).sum() / (2 * len(groups))

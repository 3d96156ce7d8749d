"""Of which type numbers are whose bytes alone are known: float16,
float32 or float64, little-endian.

The last byte of a number holds its sign and exponent. In an array of one type all last bytes are
spread alike. A byte from inside the numbers, which holds a part of the mantissa, is spread
differently. Whole numbers of one byte, or of several, are none of these types.
"""

import numpy as np

DTYPES = ("float16", "float32", "float64")
FEWEST_GROUPS = 100  # too few bytes show nothing
ALIKE, DIFFERENT = 0.4, 0.6  # distances; what lies between is doubtful


def find_dtype(content, row_bytes):
    """The type of the numbers in rows of `row_bytes` bytes, as the bytes show;
    None where they do not tell.

    content: uint8 array of whole rows.
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


def _float16(content):
    """ "float16", or None where the bytes may as well be whole numbers: of one byte,
    or small ones of several."""
    if not _distance(content.reshape(-1, 2), 0, 1) > DIFFERENT:
        return None
    values = np.abs(content.view("<f2"))
    return "float16" if values.max() >= np.finfo(np.float16).tiny else None


def _distance(groups, first, second):
    """How differently two bytes of groups are spread: 0 (alike) to 1;
    NaN where too few groups are not zero."""
    groups = groups[groups.any(axis=1)]
    if len(groups) < FEWEST_GROUPS:
        return np.nan
    counts = [np.bincount(groups[:, byte], minlength=256) for byte in (first, second)]
    return np.abs(counts[0] - counts[1]).sum() / (2 * len(groups))

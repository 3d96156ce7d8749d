"""Arrays kept in a file to save time: believed only if the key and a checksum of the contents fit.

A file that is missing, damaged or of something else reads as None; its user computes the arrays
again and replaces it.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from .files import why_unreadable

DAMAGED = (  # what numpy was seen to raise for files of other or altered bytes
    OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError,
    NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def digest(*values: Any) -> str:
    """A hash of arrays, strings and plain values, given in a fixed order: 64 hexadecimal digits."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str} {value.shape}\n".encode())
            found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        else:
            text = ascii(value).encode()  # unlike repr the same in every version of Unicode
            found.update(f"{len(text)}\n".encode() + text)
    return found.hexdigest()


def write(file: BinaryIO, key: str, **arrays: ArrayLike) -> None:
    """Write arrays into an open binary file, with a key that identifies their source, and a
    checksum."""
    found: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(file, key=key, checksum=_checksum(key, found), **found)


def read(path: Path, key: str, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays of these names, or None unless `write` wrote exactly these names with this key."""
    if why_unreadable(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"key", "checksum", *names} or str(file["key"]) != key:
                return None
            arrays = {name: file[name] for name in names}
            is_whole = str(file["checksum"]) == _checksum(key, arrays)
    except DAMAGED:
        return None
    return arrays if is_whole else None


def _checksum(key, arrays):
    return digest(key, *(part for name in sorted(arrays) for part in (name, arrays[name])))

"""Arrays kept in a file to save time: believed only if the key and a checksum of the contents fit.

A file that is missing, damaged or of something else reads as None; its user computes the arrays
again and replaces it.
"""

import hashlib
import zipfile
import zlib

import numpy as np

from .files import why_unreadable

DAMAGED = (  # what numpy was seen to raise for files of other or altered bytes
    OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError,
    NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def digest(*values):
    """A hash of arrays, strings and plain values that are given in a fixed order: 64 hexadecimal
    digits."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str} {value.shape}\n".encode())
            found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        else:
            text = ascii(value).encode()  # unlike repr the same in every version of Unicode
            found.update(f"{len(text)}\n".encode() + text)
    return found.hexdigest()


def write(file, key, **arrays):
    """Write arrays into an open binary file, with the key of what they were made of and their
    checksum."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(file, key=key, checksum=_checksum(key, arrays), **arrays)


def read(path, key, names):
    """The arrays of these names, a dict, or None unless `write` wrote them, and no others,
    with this key."""
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

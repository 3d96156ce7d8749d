"""A file of region features, read row by row (docs/method.md, section 1).

The file is read with `os.preadv` and not mapped: a process that touches a mapped page beyond the
end of a file that another program has cut meanwhile is killed by SIGBUS; a read that comes back
short raises InputError.
"""

# R regions, D region feature size

import os
import weakref
from typing import NamedTuple

import numpy as np

from ..system.errors import InputError
from ..system.files import why_unreadable
from .layout import load_array, refuse_unfinished_switch, unfinished_conversion

CHANGED_FILE_REMEDY = (
    "expected the features to stay as they are while a program reads them: copy the file again, "
    "then repeat the command (train.py: with --resume auto)"
)


class FileState(NamedTuple):
    """What tells that a file is still the one that was opened."""

    inode: int
    size: int
    mtime_ns: int


def file_state(path):
    """The `FileState` of a file. Raises InputError where it is gone."""
    try:
        return _state(os.stat(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}; {CHANGED_FILE_REMEDY}") from error


def _state(found):
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


class RegionFile:
    """Region features, (rows, R, D) float32 or float16, on disk; nothing is read before `read`.

    Raises InputError where the file is missing, damaged, or no such array. Can be pickled and read
    by several threads.
    """

    def __init__(self, path):
        self.path = path
        refuse_unfinished_switch(path.parent)
        why = why_unreadable(path)
        if why:
            raise InputError(_missing(path, why))
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.opened = _state(os.fstat(self._descriptor))
        array = load_array(
            path, "a whole float32 array of rows x regions x features", mmap_mode="r"
        )
        _check_array(path, array)
        self.shape, self.dtype, self._offset = array.shape, array.dtype, array.offset
        self.nbytes = array.nbytes
        # Fortran order: rows are not in a piece
        self._mapped = None if array.flags.c_contiguous else np.asarray(array)

    def __len__(self):
        return self.shape[0]

    def __getstate__(self):
        return self.path, self.opened

    def __setstate__(self, state):
        path, opened = state
        self.__init__(path)
        # so that `check_unchanged` compares with what the first process opened
        self.opened = opened

    def read(self, row, start=0, stop=None):
        """(n, D), the regions start..stop - 1 of a row, in the file's type; all of them by default.

        Raises InputError where the file ends before them.
        """
        stop = self.shape[1] if stop is None else stop
        if self._mapped is not None:
            return np.ascontiguousarray(self._mapped[row, start:stop])
        found = np.empty((stop - start, self.shape[2]), self.dtype)
        place = (
            self._offset
            + (int(row) * self.shape[1] + int(start)) * self.shape[2] * self.dtype.itemsize
        )
        if os.preadv(self._descriptor, [found], place) != found.nbytes:
            self.check_unchanged()
            raise InputError(
                f"{self.path}: row {row} (from 0) cannot be read to its end; {CHANGED_FILE_REMEDY}"
            )
        return found

    def check_unchanged(self):
        """Refuse a file that was written to, cut or replaced since it was opened.
        Raises InputError."""
        opened, found = self.opened, file_state(self.path)
        if found != opened:
            sizes = f"{found.size} bytes, {opened.size} when it was opened"
            what = sizes if found.size != opened.size else "a newer file"
            raise InputError(
                f"{self.path}: changed while it was in use (found {what}); {CHANGED_FILE_REMEDY}"
            )


def _missing(path, why):
    splits = sorted(file.name.removesuffix("_ims.npy") for file in path.parent.glob("*_ims.npy"))
    remedy = unfinished_conversion(path.parent) or (
        "copy the file there, or name another split: --split in evaluation, in training "
        "--val_split or --test_split"
    )
    return (
        f"{path}: {why}; splits in {path.parent}: {', '.join(splits) or 'none'}; expected the "
        f"region features of this split: {remedy}"
    )


def _check_array(path, array):
    if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("=") not in (
        np.float32,
        np.float16,
    ):
        raise InputError(
            f"{path}: found values of type {getattr(array, 'dtype', 'unknown')}, expected "
            "float32; convert it with numpy: np.save(path, array.astype(np.float32))"
        )
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            f"{path}: found an array of shape {array.shape}, expected rows x regions x features, "
            "such as (1000, 36, 2048); save it again in this shape"
        )

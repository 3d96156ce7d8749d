"""Read a file of region features row by row (docs/method.md, section 1).

The file is read with `os.preadv` and is not memory-mapped. If another program truncates a mapped
file, access beyond its end kills the process with SIGBUS. A short read raises InputError instead.
"""

# R regions, D region feature size

import os
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..system.errors import InputError
from ..system.files import why_unreadable
from .layout import load_array, refuse_unfinished_switch, unfinished_conversion

CHANGED_FILE_REMEDY = (
    "expected features that do not change while a program reads them: copy the file again, "
    "then repeat the command (train.py: with --resume auto)"
)


class FileState(NamedTuple):
    """Properties that identify a file and change when it is written to or replaced."""

    inode: int
    size: int
    mtime_ns: int


def file_state(path: Path) -> FileState:
    """The current state of a file. Raises InputError if it is missing."""
    try:
        return _state(os.stat(path))
    except OSError as error:
        raise InputError(f"{path}: {str(error.strerror).lower()}; {CHANGED_FILE_REMEDY}") from error


def _state(stat: os.stat_result) -> FileState:
    return FileState(stat.st_ino, stat.st_size, stat.st_mtime_ns)


class RegionFile:
    """Region features on disk, (rows, R, D) float32 or float16. Only `read` reads features.

    Raises InputError if the file is missing, damaged, or holds another kind of array. A RegionFile
    can be pickled, and several threads can read it.
    """

    def __init__(self, path: Path) -> None:
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
        assert isinstance(array, np.memmap)
        self.shape, self.dtype, self._offset = array.shape, array.dtype, array.offset
        self.nbytes = array.nbytes
        # in Fortran order, a row is not contiguous
        self._mapped = None if array.flags.c_contiguous else np.asarray(array)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> tuple[Path, FileState]:
        return self.path, self.opened

    def __setstate__(self, state: tuple[Path, FileState]) -> None:
        path, opened = state
        RegionFile.__init__(self, path)
        # `check_unchanged` compares with the file that the first process opened
        self.opened = opened

    def read(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read regions start..stop - 1 of a row, by default all: (n, D), in the type of the file.

        Raises InputError if the file ends before them.
        """
        stop = self.shape[1] if stop is None else stop
        if self._mapped is not None:
            return np.ascontiguousarray(self._mapped[row, start:stop])
        features = np.empty((stop - start, self.shape[2]), self.dtype)
        place = (
            self._offset
            + (int(row) * self.shape[1] + int(start)) * self.shape[2] * self.dtype.itemsize
        )
        if os.preadv(self._descriptor, [features], place) != features.nbytes:
            self.check_unchanged()
            raise InputError(
                f"{self.path}: row {row} (from 0) cannot be read to its end; {CHANGED_FILE_REMEDY}"
            )
        return features

    def check_unchanged(self) -> None:
        """Raise InputError if the file was changed or replaced after it was opened."""
        opened, found = self.opened, file_state(self.path)
        if found != opened:
            sizes = f"{found.size} bytes, {opened.size} when it was opened"
            what = sizes if found.size != opened.size else "a newer file"
            raise InputError(
                f"{self.path}: changed while it was in use (found {what}); {CHANGED_FILE_REMEDY}"
            )


def _missing(path: Path, why: str) -> str:
    splits = sorted(file.name.removesuffix("_ims.npy") for file in path.parent.glob("*_ims.npy"))
    remedy = unfinished_conversion(path.parent) or (
        "copy the file there, or name another split: --split in evaluation, in training "
        "--val_split or --test_split"
    )
    return (
        f"{path}: {why}; splits in {path.parent}: {', '.join(splits) or 'none'}; expected the "
        f"region features of this split: {remedy}"
    )


def _check_array(path: Path, array: np.ndarray) -> None:
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

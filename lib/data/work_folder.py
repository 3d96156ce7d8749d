"""The work folder of a conversion, from which a killed conversion resumes.

Its arrays are zeros at first. The num_regions entry of an image is set once its features are on
disk, and 0 means that they are missing.
"""

# N images of a split, R regions, D region feature size, n true regions of an image

import errno
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..system.errors import InputError, first_sentence
from ..system.files import atomic_write, find_temporaries, report_write_errors, why_unreadable
from .conversion_record import read_record, write_record
from .layout import (
    BOXES,
    COUNTS,
    DAMAGED,
    EXTRACTION,
    PICTURE_SIZES,
    REGIONS,
    SPLITS,
    split_file_names,
)
from .tsv_image import ImageData

FLOAT: np.dtype = np.dtype(np.float32)
INTEGER: np.dtype = np.dtype(np.int32)
STATE = "inputs.json"  # in the work folder: what the conversion depends on; written last
# all files that a conversion writes
NAMES = {*split_file_names(SPLITS), EXTRACTION}
# errors of file systems on which disk space cannot be reserved
RESERVE_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Shape(NamedTuple):
    """Shapes of the arrays: R regions of D features per image, with boxes and picture sizes or
    without."""

    num_regions: int
    dim: int
    with_boxes: bool = False


class ArraySpec(NamedTuple):
    """The name, type and shape of an array in the work folder."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def why_not_resumable(
    work: Path,
    asked: dict[str, Any],
    sizes: dict[str, int],
    shape: Shape,
    texts: dict[str, bytes],
) -> str | None:
    """Explain why the work folder cannot be resumed: None if it can, "" if it does not exist.

    asked: what the conversion depends on, as JSON values; texts: contents of the text files, by
    name.
    """
    if not work.exists():
        return ""
    try:
        state = read_record(work / STATE)
    except ValueError as error:
        return (
            f"its {STATE} is damaged ({error})"
            if os.path.lexists(work / STATE)
            else "it had only just begun"
        )
    if state.get("asked") != asked:
        return "it has other inputs or options"
    for name, content in texts.items():
        if (
            why_unreadable(work / name)
            or (work / name).is_symlink()
            or (work / name).read_bytes() != content
        ):
            return f"its {name} was changed"
    for split, size in sizes.items():
        for array in _arrays(split, size, shape):
            flaw = why_unreadable(work / array.name) or _flaw_of_array(
                work, array, shape.num_regions
            )
            if flaw:
                return f"its {array.name} is damaged ({flaw})"
    return None


def _arrays(split: str, size: int, shape: Shape) -> list[ArraySpec]:
    regions = shape.num_regions
    arrays = [
        ArraySpec(f"{split}_{REGIONS}", FLOAT, (size, regions, shape.dim)),
        ArraySpec(f"{split}_{COUNTS}", INTEGER, (size,)),
    ]
    if shape.with_boxes:
        arrays += [
            ArraySpec(f"{split}_{BOXES}", FLOAT, (size, regions, 4)),
            ArraySpec(f"{split}_{PICTURE_SIZES}", INTEGER, (size, 2)),
        ]
    return arrays


def _flaw_of_array(work: Path, expected: ArraySpec, num_regions: int) -> str | None:
    """Describe what is wrong with an array of the work folder; None if it is valid."""
    path = work / expected.name
    if path.is_symlink():
        return "a link"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        return first_sentence(error)
    if not isinstance(array, np.ndarray):
        return "not an array"
    if array.dtype != expected.dtype or array.shape != expected.shape:
        return "an array of another type or shape"
    if array.ndim == 1 and not ((0 <= array) & (array <= num_regions)).all():
        return "counts out of range"
    return None


def prepare(
    work: Path,
    asked: dict[str, Any],
    sizes: dict[str, int],
    shape: Shape,
    texts: dict[str, bytes],
) -> None:
    """Make a new work folder with the text files and arrays of zeros, and reserve disk space."""
    clear(work)
    with report_write_errors(work):
        work.mkdir()
    try:
        for split, size in sizes.items():
            for array in _arrays(split, size, shape):
                _new_array(work / array.name, array.dtype, array.shape)
        for name, content in texts.items():
            with atomic_write(work / name) as file:
                file.write(content)
        write_record(work / STATE, asked=asked)
    except InputError:
        clear(work)  # to free the reserved disk space
        raise


def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Create a .npy file of zeros, and reserve its disk space."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with report_write_errors(path), open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        size = file.tell() + dtype.itemsize * math.prod(shape)
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            _reserve(file.fileno(), size)


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in RESERVE_UNSUPPORTED:
            raise


def clear(work: Path) -> None:
    """Remove a work folder. Its state goes first, so a partly removed folder is never resumed.

    Raises InputError, and removes nothing, if it holds files that convert does not write.
    """
    if not os.path.lexists(work):
        return
    temporaries = {path.name for path in find_temporaries(work)}
    found = sorted(os.listdir(work), key=lambda name: (name != STATE, name))
    strange = next((name for name in found if name not in NAMES | {STATE} | temporaries), None)
    if strange is not None or any(
        (work / name).is_dir() and not (work / name).is_symlink() for name in found
    ):
        raise InputError(
            f"{work}: found {strange or 'a folder'}, expected only files of convert; move this "
            "folder away"
        )
    with report_write_errors(work):
        for name in found:
            (work / name).unlink()
        work.rmdir()


def read_done(work: Path, splits: Iterable[str]) -> dict[str, np.ndarray]:
    """Number of stored regions of each image, by split: (N,) int32. 0: not stored yet."""
    return {split: np.load(work / f"{split}_{COUNTS}", allow_pickle=False) for split in splits}


def store(work: Path, block: list[tuple[str, int, ImageData]], with_boxes: bool = False) -> None:
    """Write features and, if the conversion keeps them, boxes and sizes; then, once they are on
    disk, the number of regions.

    block: split, index in the split, and data of each image.
    """
    for split in sorted({split for split, _, _ in block}):
        own = [(index, image) for name, index, image in block if name == split]
        _write_rows(work / f"{split}_{REGIONS}", [(index, one.features) for index, one in own])
        if with_boxes:
            _write_rows(
                work / f"{split}_{BOXES}",
                [(index, one.boxes) for index, one in own if one.boxes is not None],
            )
            _write_rows(
                work / f"{split}_{PICTURE_SIZES}",
                [(index, np.array(one.size, np.int32)) for index, one in own],
            )
        _write_rows(
            work / f"{split}_{COUNTS}",
            [(index, np.array(len(one.features), np.int32)) for index, one in own],
        )


def _write_rows(path: Path, rows: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write (index, values) into an array, from the beginning of each row.

    The file is not memory-mapped, so a full disk raises an error and not a signal.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    start, row_bytes = array.offset, array.strides[0]
    with report_write_errors(path), open(path, "r+b") as file:
        for index, values in rows:
            file.seek(start + index * row_bytes)
            file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())

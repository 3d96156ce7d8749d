"""Files of a conversion: a work folder, and a switch that moves its files into place together.

The arrays in OUT/.conversion are zeros at first. The num_regions entry of an image is set once its
features are on disk, and 0 means that they are missing. A killed conversion therefore resumes where
it stopped. When all files are complete, OUT/.converted lists the files to move. Until they have
moved, no reader opens OUT (lib/data/layout.py), so files of two conversions are never used
together. After a kill at any time, the same command can be run again.
"""

# N images of a split, R regions, D region feature size, n true regions of an image

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..system.errors import InputError, first_sentence
from ..system.files import (
    atomic_write,
    find_temporaries,
    flush_folder,
    report_write_errors,
    why_unreadable,
)
from .layout import DAMAGED, SPLITS, SWITCH, WORK

FORMAT = "hrem-conversion-1"
REGIONS, COUNTS, CAPTIONS, IDS, MAP = (
    "ims.npy",
    "num_regions.npy",
    "caps.txt",
    "ids.txt",
    "caps_images.txt",
)
ENDS = (REGIONS, COUNTS, CAPTIONS, IDS, MAP)
NAMES = {f"{split}_{end}" for split in SPLITS for end in ENDS}  # all that a conversion writes
STATE = "inputs.json"  # in WORK, of what the folder is; it is written last
RESERVE_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of file systems that cannot


def split_file_names(splits: Iterable[str]) -> list[str]:
    """Sorted names of all files of these splits, including optional files."""
    return sorted(f"{split}_{end}" for split in splits for end in ENDS)


def find_files(out: Path, splits: Iterable[str]) -> list[str]:
    """Names of the files of these splits that exist in `out`, including links."""
    return [name for name in split_file_names(splits) if os.path.lexists(out / name)]


def check_places(out: Path, splits: Iterable[str], num_bytes: int) -> None:
    """Raise InputError if the new files cannot be written to `out`. Writes nothing."""
    there = next(
        folder for folder in [out.absolute(), *out.absolute().parents] if os.path.lexists(folder)
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {out}: found {there}, expected a folder to write in; name another")
    for name in split_file_names(splits):
        if (out / name).is_dir():
            raise InputError(
                f"{out / name}: found a folder, expected a file or nothing; move it away"
            )
    work = out / WORK
    if os.path.lexists(work) and (work.is_symlink() or not work.is_dir()):
        raise InputError(
            f"{work}: found a link or a file, expected a folder that convert made; move it away"
        )
    free = shutil.disk_usage(there).free
    if free < num_bytes and not work.exists():
        raise InputError(
            f"--out {out}: {free / 1e9:.1f} GB free, expected {num_bytes / 1e9:.1f} GB: make room"
        )


def array_bytes(sizes: dict[str, int], shape: tuple[int, int]) -> int:
    """Bytes of the region features. sizes: {split: N}; shape: (R, D)."""
    return 4 * math.prod(shape) * sum(sizes.values())


def why_not_resumable(
    work: Path,
    asked: dict[str, Any],
    sizes: dict[str, int],
    shape: tuple[int, int],
    texts: dict[str, bytes],
) -> str | None:
    """Explain why the work folder cannot be resumed: None if it can, "" if it does not exist.

    asked: what the conversion depends on, as JSON values; texts: contents of the text files, by
    name.
    """
    if not work.exists():
        return ""
    try:
        state = _read_record(work / STATE)
    except ValueError as error:
        return (
            f"{STATE} in it is not whole ({error})"
            if os.path.lexists(work / STATE)
            else "it had just been begun"
        )
    if state.get("asked") != asked:
        return "it is of other inputs or options"
    for name, content in texts.items():
        if (
            why_unreadable(work / name)
            or (work / name).is_symlink()
            or (work / name).read_bytes() != content
        ):
            return f"{name} in it is not what was written"
    for split, size in sizes.items():
        for name, dtype, expected in _arrays(split, size, shape):
            flaw = why_unreadable(work / name) or _flaw_of_array(
                work / name, dtype, expected, shape[0]
            )
            if flaw:
                return f"{name} in it is damaged ({flaw})"
    return None


def _arrays(split, size, shape):
    return [
        (f"{split}_{REGIONS}", np.float32, (size, *shape)),
        (f"{split}_{COUNTS}", np.int32, (size,)),
    ]


def _flaw_of_array(path, dtype, shape, num_regions):
    if path.is_symlink():
        return "a link"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        return first_sentence(error)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        return "another array"
    if dtype == np.int32 and not ((0 <= array) & (array <= num_regions)).all():
        return "counts out of range"
    return None


def _read_record(path: Path) -> dict[str, Any]:
    """Read the dict that `_write_record` wrote. Raises ValueError if the file is damaged."""
    why = "a link" if path.is_symlink() else why_unreadable(path)
    if why:
        raise ValueError(why)
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, dict) or found.get("sha256") != _digest(content):
        raise ValueError("other contents than convert wrote")
    if content.get("format") != FORMAT:
        raise ValueError("the record of another version")
    return content


def _write_record(path, **content):
    content = {"format": FORMAT} | content
    with atomic_write(path) as file:
        file.write(json.dumps({"content": content, "sha256": _digest(content)}).encode())


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prepare(
    work: Path,
    asked: dict[str, Any],
    sizes: dict[str, int],
    shape: tuple[int, int],
    texts: dict[str, bytes],
) -> None:
    """Make a new work folder with the text files and arrays of zeros, and reserve disk space."""
    clear(work)
    with report_write_errors(work):
        work.mkdir()
    try:
        for split, size in sizes.items():
            for name, dtype, expected in _arrays(split, size, shape):
                _new_array(work / name, dtype, expected)
        for name, content in texts.items():
            with atomic_write(work / name) as file:
                file.write(content)
        _write_record(work / STATE, asked=asked)
    except InputError:
        clear(work)  # frees the reserved disk space
        raise


def _new_array(path, dtype, shape):
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with report_write_errors(path), open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        size = file.tell() + np.dtype(dtype).itemsize * math.prod(shape)
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            _reserve(file.fileno(), size)


def _reserve(descriptor, size):
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
            f"{work}: found {strange or 'a folder'}, expected only what convert writes there; "
            "move this folder away"
        )
    with report_write_errors(work):
        for name in found:
            (work / name).unlink()
        work.rmdir()


def read_done(work: Path, splits: Iterable[str]) -> dict[str, np.ndarray]:
    """Number of stored regions of each image, by split: (N,) int32. 0: not stored yet."""
    return {split: np.load(work / f"{split}_{COUNTS}", allow_pickle=False) for split in splits}


def store(work: Path, block: list[tuple[str, int, np.ndarray]]) -> None:
    """Write features, and then, once they are on disk, their counts.

    block: split, index in the split, and features (n, D) of each image.
    """
    for split in sorted({split for split, _, _ in block}):
        own = [(index, features) for name, index, features in block if name == split]
        _write_rows(work / f"{split}_{REGIONS}", own)
        _write_rows(
            work / f"{split}_{COUNTS}",
            [(index, np.int32(len(features))) for index, features in own],
        )


def _write_rows(path, rows):
    """Write into rows of an array, from each row's beginning.
    Not mapped: a full disk is an error, not a signal."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    start, row_bytes = array.offset, array.strides[0]
    with report_write_errors(path), open(path, "r+b") as file:
        for index, values in rows:
            file.seek(start + index * row_bytes)
            file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def commit(out: Path, asked: dict[str, Any], splits: Iterable[str]) -> None:
    """Record that the files of the work folder replace those of `splits` in `out`.

    `finish_switch` moves them.
    """
    flush_folder(out / WORK)
    moving = {name: _stamp(out / WORK / name) for name in split_file_names(splits)}
    _write_record(out / SWITCH, asked=asked, files=moving)


def _stamp(path):
    """[size, time of the last change] of a regular file, which a renaming keeps;
    None where there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None


def finish_switch(out: Path) -> dict[str, Any]:
    """Move the files of a complete conversion into place, and remove old files of its splits.

    Returns what the conversion depends on. Raises InputError if one of its files is missing, or the
    switch is damaged.
    """
    content = _read_switch(out)
    with report_write_errors(out):
        for name, stamp in content["files"].items():
            if stamp is None:
                (out / name).unlink(missing_ok=True)
            elif _stamp(out / WORK / name) == stamp:
                os.replace(out / WORK / name, out / name)
            elif _stamp(out / name) != stamp:
                raise InputError(
                    f"{out / name}: is not the file that convert was moving (found another, or "
                    f"none), expected it here or in {out / WORK}; name another --out, or remove "
                    f"{out} and convert again"
                )
        clear(out / WORK)
        for path, name in find_temporaries(out).items():
            if name == SWITCH:  # of a process that was killed in `commit`
                path.unlink()
        flush_folder(out)
        (out / SWITCH).unlink()
    return content["asked"]


def _read_switch(out):
    path = out / SWITCH
    try:
        content = _read_record(path)
        files = content.get("files")
        if not isinstance(files, dict) or not NAMES.issuperset(files) or "asked" not in content:
            raise ValueError("names that convert never writes")
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be used (found {first_sentence(error)}), expected the record of "
            "convert's last step; the files here may be of two conversions: name another --out, "
            f"or remove {out} and convert again"
        ) from error
    return content

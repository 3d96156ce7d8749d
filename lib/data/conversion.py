"""The files of a conversion: a folder that is filled,
and a switch that puts all of its files in place.

OUT/.conversion holds arrays of zeros at first. An image's entry in num_regions is set once its
features are on disk; 0 means: still to do. So a conversion that was killed goes on where it was.
When all is there, the file OUT/.converted names what has to move. From then until it has moved, no
reader opens OUT (lib/data/layout.py), so the files of two conversions are never used together. A
process that is killed at any moment can be repeated with the same command.
"""

# N images of a split, R regions, D region feature size, n true regions of an image

import errno
import hashlib
import json
import math
import os
import shutil
import stat

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


def split_file_names(splits):
    """The files that belong to these splits, optional ones too, sorted."""
    return sorted(f"{split}_{end}" for split in splits for end in ENDS)


def find_files(out, splits):
    """Names of the files of these splits that are in `out`, links too."""
    return [name for name in split_file_names(splits) if os.path.lexists(out / name)]


def check_places(out, splits, num_bytes):
    """Raise InputError where `out` cannot hold the new files, before anything is written."""
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


def array_bytes(sizes, shape):
    """Bytes of the region features. sizes: {split: N}; shape: (R, D)."""
    return 4 * math.prod(shape) * sum(sizes.values())


def why_not_resumable(work, asked, sizes, shape, texts):
    """Why the work folder cannot be filled further, in words: "" where there is none,
    None where it can.

    asked: what the conversion depends on, as JSON knows it; texts: {name: bytes}, the files beside
    the arrays.
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


def _read_record(path):
    """The dict that `_write_record` wrote. Raises ValueError that says what is wrong with the
    file."""
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


def prepare(work, asked, sizes, shape, texts):
    """A new work folder: texts, and arrays of zeros whose space on the disk is reserved.
    Raises InputError."""
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
        clear(work)  # half a disk of zeros helps nobody
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


def clear(work):
    """Remove a work folder, its state first: half a folder is of no conversion. Raises InputError
    where it holds files that convert does not write: nothing is removed then.
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


def read_done(work, splits):
    """{split: (N,) int32}, how many regions of each image are on disk; 0: still to do."""
    return {split: np.load(work / f"{split}_{COUNTS}", allow_pickle=False) for split in splits}


def store(work, found):
    """Write features to their places, and the counts once the features are on disk.
    found: [(split, index, (n, D))]."""
    for split in sorted({split for split, _, _ in found}):
        own = [(index, features) for name, index, features in found if name == split]
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


def commit(out, asked, splits):
    """Decide that the files of the work folder replace those of `splits` in `out`.
    They move in `finish_switch`."""
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


def finish_switch(out):
    """Move what a complete conversion made to its names,
    and remove what it replaces without a successor.

    Returns what the conversion depends on. Raises InputError where a file of it is lost, or the
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

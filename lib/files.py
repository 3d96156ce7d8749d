"""Files that are either whole or not there."""

import contextlib
import os
from pathlib import Path

from lib.errors import InputError


@contextlib.contextmanager
def writing(path):
    """Around whatever writes to `path`: a full disk or a file that may not be written becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}), expected room and permission for it; what was "
            "written before is whole: make room, then repeat the command (train.py: with --resume auto)"
        ) from error


@contextlib.contextmanager
def written_whole(path):
    """Open a binary file beside `path` and rename it to `path` once it is written and flushed to disk."""
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        with writing(path):
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush_folder(folder):
    """Make a rename last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

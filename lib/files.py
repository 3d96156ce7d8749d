"""Files that are either whole or not there, and what stands in the way of reading one."""

import contextlib
import os
import stat
from pathlib import Path

from lib.errors import InputError


@contextlib.contextmanager
def writing(path):
    """Around whatever writes to `path`: a full disk or a file that may not be written becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: found {(error.strerror or str(error)).lower()}, expected to write there; what "
            "was written before is whole: make room, change the permissions or name another place, then repeat the "
            "command (train.py: with --resume auto)"
        ) from error


def obstacle(path):
    """Why the file at `path` cannot be read, in a few words, or None. A pipe is not opened: it would wait."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            open(path, "rb").close()
            return None
    except FileNotFoundError:
        return "a link to a file that is not there" if os.path.islink(path) else "no such file"
    except OSError as error:
        return f"not to be opened ({error.strerror.lower()})"
    return "a folder, not a file" if stat.S_ISDIR(mode) else "a pipe, socket or device, not a file"


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

"""Files that are either whole or not there, and what stands in the way of reading one."""

import contextlib
import os
import stat
from pathlib import Path


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
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)

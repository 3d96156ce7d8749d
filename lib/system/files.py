"""Files that are either whole or not there, locks that end with their process,
and why a file cannot be read."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from .console import one_line
from .errors import InputError

# what `atomic_write` names its files
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.part", re.DOTALL)
LOCK_CONTENT = re.compile(rb"(process \d+ on [^\n]*\n)?")
# locks of this process: {real path: [descriptor, how often it is held]}
_held: dict[str, list] = {}


@contextlib.contextmanager
def report_write_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk, or a file that may not be written, into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: found {(error.strerror or str(error)).lower()}, expected "
            "to write there; what was written before is whole: make room, change the permissions "
            "or name another place, then repeat the command (train.py: with --resume auto)"
        ) from error


def why_unreadable(path: Path | str) -> str | None:
    """Why the file at `path` cannot be read, in a few words, or None. A pipe is not opened, because
    that would block."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            open(path, "rb").close()
            return None
    except FileNotFoundError:
        return "a link to a file that is not there" if os.path.islink(path) else "no such file"
    except OSError as error:
        return f"not to be opened ({(error.strerror or str(error)).lower()})"
    except ValueError as error:  # a NUL in the name
        return f"not to be opened ({error})"
    return "a folder, not a file" if stat.S_ISDIR(mode) else "a pipe, socket or device, not a file"


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """Open a new binary file beside `path`, and rename it to `path` once it is written and flushed
    to disk.

    The new file has a random name and is created exclusively, so no link is followed; a link at
    `path` is replaced. Temporary files that killed processes have left are removed. Raises
    InputError if the disk is full or `path` may not be written.
    """
    path, temporary = Path(path), None
    try:
        with report_write_errors(path):
            remove_temporaries(path.parent, {path.name})
            temporary, descriptor = _create_temporary(path)
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # still locked, so nobody takes it for a killed process's
                os.replace(temporary, path)
            temporary = None
            flush_folder(path.parent)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _create_temporary(path):
    """A new file beside `path`, locked for as long as it is open.
    Returns its path and a descriptor."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks is no reason not to write
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # 0: `remove_temporaries` met it before it was locked
            return temporary, descriptor
        os.close(descriptor)


def find_temporaries(folder: Path) -> dict[Path, str]:
    """Temporary files of `atomic_write` in a folder: {path: name of the file to be written}."""
    found = {path: TEMPORARY.fullmatch(path.name) for path in Path(folder).glob(".*.part")}
    return {path: match["name"] for path, match in found.items() if match and not path.is_symlink()}


def remove_temporaries(folder: Path, names: Collection[str]) -> None:
    """Remove temporary files of these names that killed processes have left. Those of running
    processes stay."""
    for path, name in find_temporaries(folder).items():
        if name in names:
            with contextlib.suppress(OSError):  # in use, gone meanwhile, or not to be removed by us
                _remove_unused(path)


def _remove_unused(path):
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is created if it is missing, and stays. The lock ends with
    this process, even if it is killed.

    A process may hold a lock several times. A forked child does not hold the locks of its parent.
    wait: wait until the lock is free; otherwise an InputError names the process that holds it.
    """
    path = Path(path)
    name = os.path.realpath(path)
    if name not in _held:
        _held[name] = [_acquire(path, wait), 0]
    _held[name][1] += 1
    try:
        yield
    finally:
        _held[name][1] -= 1
        if not _held[name][1]:
            # closing any descriptor of the file ends this process's lock on it
            os.close(_held.pop(name)[0])


def _acquire(path, wait):
    if path.is_symlink():
        raise InputError(
            f"{path}: found a link, expected its lock or nothing; "
            "move it away, or name another folder"
        )
    with report_write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        _check_lock_file(path, descriptor)
    except OSError as error:
        is_held = error.errno in (errno.EACCES, errno.EAGAIN)
        holder = (
            one_line(os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip())
            if is_held
            else ""
        )
        os.close(descriptor)
        if not is_held:
            raise InputError(
                f"{path}: cannot be locked (found {(error.strerror or str(error)).lower()}), "
                "expected a file on a file system with locks; remove what is there, or name a "
                "folder on another disk"
            ) from error
        raise InputError(
            f"{path.parent}: in use by {holder or 'another process'}, expected no other process "
            "to write there; wait for it, end it, or name another folder"
        ) from error
    # a full disk: the lock holds, its file does not say for whom
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return descriptor


def _check_lock_file(path, descriptor):
    """Refuse a file that `_acquire` has not written: it would be overwritten. Raises InputError."""
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if not is_file or not LOCK_CONTENT.fullmatch(os.pread(descriptor, 1000, 0)):
        os.close(descriptor)
        raise InputError(
            f"{path}: found {'a file' if is_file else 'a pipe or device'} that this program did "
            "not write, expected its lock or nothing; move it away, or name another folder"
        )


def flush_folder(folder: Path) -> None:
    """Flush a rename to disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

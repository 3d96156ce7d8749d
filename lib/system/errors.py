"""The one exception that means "the user can mend this",
and how a command line reports it and all others."""

import contextlib
import errno
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from .console import one_line, write_line

SYSTEM_ERRNOS = (
    # of the system: permissions, full disks, things in the way of a name, failing devices, limits
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.EISDIR,
    errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.EFBIG, errno.EIO,
    errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EAGAIN,
)  # fmt: skip


LONGEST_LINE = 2000  # characters of a message; names in files of strangers may have any length
MORE_MEMORY = "end other programs, give a smaller --batch_size, or use a machine with more memory"


class InputError(ValueError):
    """Bad input: its message names the file, what was found, what was expected and the remedy,
    on one line."""


def command_line(main: Callable[[], object]) -> None:
    """Run `main()` as a program. The exit status is 0, or 2 after one line on standard error for
    bad input, else 1.

    A file that cannot be read or written, a full disk and too little memory count as bad input,
    wherever they occur. The traceback of any other exception goes into a file that the line names.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as lib/system/start.py left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except InputError as error:
        sys.exit(_report(str(error)))
    except MemoryError as error:
        sys.exit(
            _report(f"out of memory ({first_sentence(error)}), expected it to fit: {MORE_MEMORY}")
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # any: a traceback on the screen helps nobody who only runs the program
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRNOS:
            where = error.filename or "a file of this run"
            remedy = (
                "expected to read and write there: change the "
                "permissions, make room, or name another place"
            )
            sys.exit(_report(f"{where}: found {(error.strerror or str(error)).lower()}, {remedy}"))
        sys.exit(_report_unexpected(error))


def first_sentence(error: BaseException | str) -> str:
    """The first sentence of an exception's message. The rest is usually advice to programmers."""
    return (
        (str(error).strip() or type(error).__name__)
        .splitlines()[0]
        .split(". ")[0][:160]
        .rstrip(".:")
    )


def _report_unexpected(error):
    """Say what no user can mend, and where its traceback lies. Returns the exit status.

    `error.save_traceback`, where somebody has set it, takes the text and returns its file, or None.
    """
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    save = getattr(error, "save_traceback", lambda text: None)
    where = save(text) or _save_temporary(text)
    place = (
        f"its traceback is in {where}: report both"
        if where
        else "its traceback could not be saved: report this"
    )
    _report(
        f"{type(error).__name__} ({first_sentence(error)}): a mistake "
        f"of this program, not of its input; {place}"
    )
    return 1


def _save_temporary(text):
    """A new file of this text in the temporary directory,
    or None where nothing can be written there."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="hrem-traceback-", suffix=".txt")
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError:
        return None
    return path


def _report(message):
    text = one_line(" ".join(message.split()))
    if len(text) > LONGEST_LINE:  # the file is named at its beginning, the remedy at its end
        text = f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 :]}"
    # a full disk behind standard error: the exit status has to do
    with contextlib.suppress(OSError):
        write_line("error: " + text, sys.stderr)
    return 2

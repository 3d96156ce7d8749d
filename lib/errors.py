"""The one exception that means "the user can mend this", and how a command line reports it."""

import errno
import sys

from lib.console import one_line, write_line

NOT_OURS = (  # of the file system: permissions, full disks, and things in the way of a name
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR,
    errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


class InputError(ValueError):
    """Bad input: its message names the file, what was found, what was expected and the remedy, on one line."""


def command_line(main):
    """Run `main()` as a program: exit status 0, or 2 with one line on standard error for bad input.

    A file that may not be read or written and a full disk count as bad input, wherever they are met.
    """
    try:
        main()
    except InputError as error:
        sys.exit(_report(str(error)))
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        where = error.filename or "a file of this run"
        remedy = "expected to read and write there: change the permissions, make room, or name another place"
        sys.exit(_report(f"{where}: found {error.strerror.lower()}, {remedy}"))
    except KeyboardInterrupt:
        sys.exit(130)


def first_sentence(error):
    """The beginning of what an exception says: libraries go on to advise what a user of a program cannot do."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:160].rstrip(".:")


def _report(message):
    write_line("error: " + one_line(" ".join(message.split())), sys.stderr)
    return 2

"""Programs that are killed before each of their file operations: what they leave must be usable.

    with Programs("from lib.data import __main__ as data_command") as programs:
        for killed in programs.killed_at_each("data_command.main(['convert', ...])", folder,
            prepare): ... # killed.operation, such as "os.rename a b", was not carried out; look at
            what is in `folder`
            assert programs.run("data_command.main(['convert', ...])").status == 0 # the same
            command again

A fresh interpreter runs the imports once. Every trial is a fork of it, so a trial takes
milliseconds and neither the threads nor the state of the tests reach it. An audit hook sees each
file operation that Python makes under the watched folder before it is carried out: opening for
writing, renaming, deleting, making folders and links, truncating, flushing to disk, reserving
space. What C++ code writes by itself, and stores to mapped memory, it does not see.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ONE_PATH = (
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.fsync",
    "os.posix_fallocate",
)
TWO_PATHS = ("os.rename", "os.link")  # os.replace is audited as os.rename


class Ended(NamedTuple):
    """How a trial ended: exit status (minus the number of a signal),
    operations under the watched folder, output.

    The last operation of a killed trial was not carried out.
    """

    status: int
    operations: list
    output: str

    @property
    def operation(self):
        return self.operations[-1]


class Programs:
    """A fresh interpreter that has executed `setup`; `run` forks it. Use it in a `with` block."""

    def __init__(self, setup):
        command = [sys.executable, str(Path(__file__).resolve()), setup]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self._server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._server.stdin.close()
        self._server.wait(60)

    def run(self, statement, watch=None, kill_at=None, timeout=300):
        """Execute `statement`, Python code that finds the names of `setup`,
        as a command line does. Returns `Ended`.

        watch: the folder whose operations count; kill_at: the number of the operation, from 0,
        before which the process kills itself; timeout: seconds, after which it dies of SIGALRM.
        """
        request = dict(
            statement=statement, watch=watch and str(watch), kill_at=kill_at, timeout=timeout
        )
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(*json.loads(self._server.stdout.readline()))

    def killed_at_each(self, statement, watch, prepare=lambda: None, timeout=300):
        """Yield the `Ended` of one trial for each operation, killed before it;
        prepare() is called before each trial.

        Ends when a trial was not killed: that one must have ended with exit status 0.
        """
        number = 0
        while True:
            prepare()
            ended = self.run(statement, watch, number, timeout)
            if ended.status != -signal.SIGKILL:
                assert ended.status == 0 and number, ended
                return
            yield ended
            number += 1


def _serve(setup):
    """Execute `setup`, then each request, a line of standard input, in a fork."""
    replies = os.fdopen(os.dup(1), "w")
    names = {}
    exec(setup, names)  # the tests' own code
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as operations:
            child = os.fork()
            if not child:
                _trial(names, request, output.fileno(), operations.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            found = [_content(file).decode("utf-8", "replace") for file in (operations, output)]
        replies.write(json.dumps([status, found[0].split("\n")[:-1], found[1]]) + "\n")
        replies.flush()


def _content(file):
    file.seek(0)
    return file.read()


def _trial(names, request, output, operations):
    """Execute a statement in this process and end it; never returns."""
    from lib.system.errors import command_line

    status = 1
    try:
        signal.alarm(request["timeout"])
        for standard in (1, 2):
            os.dup2(output, standard)
        _replace_flushes()
        if request["watch"]:
            sys.addaudithook(_hook(request["watch"], request["kill_at"], operations))
        command_line(lambda: exec(request["statement"], names))
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _replace_flushes():
    """Let two functions that Python does not audit raise events of their own. Flushing does nothing
    else: a process is killed here and not the machine, so the file is there without it."""
    os.fsync = lambda descriptor: sys.audit("os.fsync", descriptor)
    reserve = getattr(os, "posix_fallocate", None)
    if reserve:
        os.posix_fallocate = lambda descriptor, *more: (
            sys.audit("os.posix_fallocate", descriptor), reserve(descriptor, *more))[1]  # fmt: skip


def _hook(watch, kill_at, operations):
    watch, count = os.path.realpath(watch), 0

    def hook(event, arguments):
        nonlocal count
        paths = [
            path
            for path in _written(event, arguments)
            if path == watch or path.startswith(watch + os.sep)
        ]
        if not paths:
            return
        text = " ".join([event, *(os.path.relpath(path, watch) for path in paths)])
        os.write(operations, text.replace("\n", "\\n").encode("utf-8", "backslashreplace") + b"\n")
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    return hook


def _written(event, arguments):
    """Absolute paths that an audited operation changes."""
    if event == "open":
        path, _, flags = arguments
        return [_absolute(path)] if flags & WRITING and not isinstance(path, int) else []
    if event in ONE_PATH:
        return [
            _absolute(
                arguments[0],
                arguments[-1] if event in ("os.remove", "os.mkdir", "os.rmdir") else -1,
            )
        ]
    if event in TWO_PATHS:
        return [_absolute(path, folder) for path, folder in zip(arguments[:2], arguments[2:])]
    if event == "os.symlink":
        # the first says only what the link will hold
        return [_absolute(arguments[1], arguments[2])]
    return []


def _absolute(path, folder=-1):
    """The real path of a name, a path relative to the open folder `folder` (-1: none),
    or a descriptor."""
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    base = (
        os.path.realpath(f"/proc/self/fd/{folder}")
        if isinstance(folder, int) and folder >= 0
        else os.getcwd()
    )
    parent, name = os.path.split(os.path.join(base, os.fsdecode(path)))
    return os.path.join(os.path.realpath(parent), name)


if __name__ == "__main__":
    _serve(sys.argv[1])

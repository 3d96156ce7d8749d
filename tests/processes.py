"""Functions in several processes, as torchrun starts them, and programs in one of their own."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import PROCESS_TIMEOUT

from lib.system import distributed
from lib.system.errors import InputError


def in_process(rank, size, function, folder):
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent
    os.environ |= dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size)
    )
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=(Path(folder) / "port").read_text())
    try:
        with distributed.process_group():
            found = function()
    except (SystemExit, InputError) as error:
        found = error
    torch.save(found, Path(folder) / f"{rank}.pt")


def in_processes(size, function):
    """What `function()` returned, or what ended it, in each of `size` processes;
    fails where one of them hangs."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (Path(folder) / "port").write_text(str(store.port))
        del store
        fork = multiprocessing.get_context("fork")
        started = [
            fork.Process(target=in_process, args=(rank, size, function, folder))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(PROCESS_TIMEOUT)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in started] == [0] * size
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


ROOT = Path(__file__).parent.parent


class Program:
    """A program of this repository in a fork of this process, which has already imported what takes
    seconds. Otherwise it runs as from a shell: its file, as `__main__`, with one thread.

    It does not show what an interpreter does when it starts and ends, such as reading
    PYTHONIOENCODING: that takes a new one. target: the name of the file, or a function to call
    with the arguments; stdout, stderr: a descriptor, or None for a file that `wait` returns;
    closed: standard streams, by number, that are not open; encoding: of its output; cwd: where it
    runs.
    """

    def __init__(
        self, target, *argv, stdout=None, stderr=None, closed=(), encoding="utf-8", cwd="."
    ):
        self._files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        outputs = [
            file.fileno() if own is None else own
            for own, file in zip((stdout, stderr), self._files)
        ]
        self.pid, self.returncode = os.fork(), None
        if not self.pid:
            status = 1
            try:
                _connect(outputs, closed, encoding)
                os.chdir(cwd)
                status = _run(target, list(map(str, argv)))
            finally:
                os._exit(status)

    def poll(self):
        """Its exit status, or minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self):
        """End it by SIGKILL. Returns its exit status."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()[0]

    def wait(self):
        """(exit status, standard output, standard error). Fails if the program hangs."""
        deadline = time.monotonic() + PROCESS_TIMEOUT
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"the program hangs: {self.printed()[-1000:]}")
            time.sleep(0.005)
        return self.returncode, *map(_content, self._files)

    def wait_for(self, text):
        """Wait until it has printed `text`. Fails if it ends before."""
        has_ended = False
        while text not in self.printed():
            assert not has_ended, f"it ended without {text!r}: {self.printed()[-1000:]}"
            time.sleep(0.005)
            has_ended = self.poll() is not None  # what it printed before is read once more

    def printed(self):
        """Its standard output so far."""
        return _content(self._files[0])


def run_program(target, *argv, **settings):
    """(exit status, standard output, standard error) of a `Program`."""
    return Program(target, *argv, **settings).wait()


def _content(file):
    return os.pread(file.fileno(), 10**7, 0).decode("utf-8", "replace")


def _connect(outputs, closed, encoding):
    """Give a forked process its standard streams."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number in closed:
            os.close(number)
            setattr(sys, name, None)
        else:
            os.dup2([nothing, *outputs][number], number)
            how = dict(errors="backslashreplace", buffering=1) if number == 2 else {}
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding=encoding, closefd=False, **how))
    os.close(nothing)


def _run(target, argv):
    """Exit status of a program, run in this process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    try:
        if callable(target):
            target(*argv)
        else:
            sys.argv = [str(ROOT / target), *argv]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            status = 120  # as the end of an interpreter has it
    return status

"""Handle SIGINT and SIGTERM: they are remembered until the program can stop at a step."""

import contextlib
import os
import signal
import threading


class Interrupt:
    """Inside `with`, the first signal only sets `status`, the exit status of the program. A second
    SIGINT stops immediately.

    status: 0, or 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self) -> None:
        self.status = 0

    def __enter__(self) -> "Interrupt":
        self._before = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        if self.status and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.status = 128 + number
        with contextlib.suppress(OSError):  # standard error may be closed
            # print() may have been interrupted
            os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")


def ignore_group_signals(worker: int) -> None:
    """In worker process number `worker`, leave signals to the process group to the main process.

    A scheduler's SIGTERM must not end a worker that the main process still needs for its last step.
    The main process's own SIGTERM, sent when it exits, must.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_end(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

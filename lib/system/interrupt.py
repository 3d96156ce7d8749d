"""SIGINT and SIGTERM, as users and schedulers send them: remembered until the program has a good
moment to stop."""

import contextlib
import os
import signal
import threading


class Interrupt:
    """Inside `with`, the first signal only sets `status`, the exit status to leave with;
    a second SIGINT stops at once.

    status: 0, or 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self):
        self.status = 0

    def __enter__(self):
        self._before = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        if self.status and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.status = 128 + number
        with contextlib.suppress(OSError):  # nobody may be reading
            # print() may have been interrupted
            os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")


def ignore_group_signals(worker):
    """In a worker process, whose number is `worker`:
    signals to the whole group are the main process's to answer.

    A scheduler's SIGTERM must not end a worker that the main process still needs for its last step;
    the main process's own SIGTERM, sent when it exits, must.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_end(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

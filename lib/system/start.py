"""What a program does before its imports, which take seconds. Imported first,
by what runs as `__main__` alone.

Ctrl-C ends the process without a traceback; `lib.system.errors.command_line` answers it from then
on. A standard stream that was closed (`>&-`) becomes /dev/null: otherwise the next file opened
would take its place, and get what is printed.
"""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        setattr(
            sys,
            name,
            open(number, "r" if number == 0 else "w", encoding="utf-8", errors="backslashreplace"),
        )

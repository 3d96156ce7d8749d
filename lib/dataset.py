"""The former name of the command for data folders, `python -m lib.data`, kept as an alias."""

if __name__ == "__main__":
    from .system import start  # noqa: F401  before the imports that take seconds

from .data.__main__ import main
from .system.errors import command_line

if __name__ == "__main__":
    command_line(main)

"""Another name for `python -m lib.data`: the command for data folders was here before."""

if __name__ == "__main__":
    from .system import start  # noqa: F401  before the imports that take seconds

from .data.__main__ import main
from .system.errors import command_line

if __name__ == "__main__":
    command_line(main)

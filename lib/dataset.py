"""Another name for `python -m lib.data`: the command for data folders was here before."""

if __name__ == "__main__":
    import lib.system.start  # noqa: F401  before the imports that take seconds

from lib.data.__main__ import main
from lib.system.errors import command_line

if __name__ == "__main__":
    command_line(main)

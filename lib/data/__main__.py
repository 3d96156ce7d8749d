"""The command for data folders.

python -m lib.data check data/f30k_precomp
    check a data folder, and say how to fix it (lib/data/check.py)
python -m lib.data convert --help
    make a data folder of your own features (lib/data/convert.py)
python -m lib.data extract --help
    make a data folder of your own pictures (lib/data/extract.py)
"""

if __name__ == "__main__":
    from ..system import start  # noqa: F401  before the imports that take seconds

import sys
from collections.abc import Sequence

from ..system.errors import command_line
from ..system.options import Parser
from . import check, convert, extract


def main(argv: Sequence[str] | None = None) -> None:
    """Run `check FOLDER`, in which `check` may be omitted, `convert` or `extract`.

    argv: arguments, by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    text = "Check a data folder, or make one of your own features or pictures."
    parser = Parser(prog=f"python -m {__package__}", description=text)
    commands = parser.add_subparsers(
        prog=parser.prog, dest="command", required=True, metavar="check | convert | extract"
    )
    check.add_command(commands)
    convert.add_command(commands)
    extract.add_command(commands)
    if not argv or argv[0] in ("-h", "--help"):
        parser.parse_args(argv)  # help, or an error that names the commands
    command, *rest = argv if argv[0] in commands.choices else ["check", *argv]
    # parsed by the parser of the command, so that errors list its options
    options = commands.choices[command].parse_args(rest)
    options.run(options)


if __name__ == "__main__":
    command_line(main)

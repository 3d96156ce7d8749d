"""Command-line options: a parser whose errors are one line, and numbers that know their range."""

import argparse
import difflib
import sys
from pathlib import Path

from .console import write_line
from .errors import InputError

COMMANDS = ("hrem-train", "hrem-eval")  # of an installation, see lib/programs.py


def program_name(script):
    """How messages call a program: the command that started it, or its script."""
    command = Path(sys.argv[0]).stem  # without .exe
    return command if command in COMMANDS else script


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples at the end."""

    def _get_help_string(self, action):
        return (
            action.help
            if action.default is None or action.nargs == 0
            else super()._get_help_string(action)
        )


class Parser(argparse.ArgumentParser):
    """argparse's parser, with every default in --help and errors raised as InputError."""

    def __init__(self, prog, **settings):
        command = prog if prog in COMMANDS else f"python {prog.removeprefix('python ')}"
        usage = f"{command} [--option value ...]"
        super().__init__(prog, usage=usage, formatter_class=Help, allow_abbrev=False, **settings)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        names = args[: args.index("--")] if "--" in args else args
        self._refuse_names(
            name for name in names if name.split("=")[0] not in self._option_string_actions
        )
        return self._without_unknown(*self.parse_known_args(args, namespace))

    def parse_known_args(self, args=None, namespace=None):
        self._refuse_empty(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_intermixed_args(self, args=None, namespace=None):
        return self._without_unknown(*self.parse_known_intermixed_args(args, namespace))

    def _without_unknown(self, options, unknown):
        self._refuse_names(unknown)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, value in vars(options).items():
            for text in value if isinstance(value, list) else [value]:
                if "\0" in str(text):  # no file has such a name
                    self.error(
                        f"--{name}: found {str(text)!r:.60} with a NUL "
                        "character, expected text without one"
                    )
        return options

    def _refuse_empty(self, args):
        """Refuse an empty text, such as a variable of the shell that is not set;
        numbers refuse it themselves."""
        option = ""  # whose values come
        for text in args:
            name, equals, value = text.partition("=")
            option = (
                name if name in self._option_string_actions or name.startswith("--") else option
            )
            is_empty = not value if equals and option == name else not text
            action = self._option_string_actions.get(option)
            if is_empty and (action.type in (None, Path) if action else not option):
                name = option or "argument"
                self.error(
                    f"{name}: found an empty text, expected a value; give one, or leave it out"
                )

    def _refuse_names(self, unknown):
        """Tell the first of these arguments that looks like an option:
        before one that is missing, it may be meant."""
        names = [text.split("=")[0] for text in unknown if text.startswith("--")]
        if names:
            known = {name.strip("-"): name for name in self._option_string_actions}
            near = difflib.get_close_matches(names[0].strip("-"), known, n=1)
            self.error(
                f"{names[0]}: unknown option"
                + (f"; did you mean {known[near[0]]}?" if near else "")
            )

    def _print_message(self, message, file=None):
        """What argparse prints, such as --help: a reader that has gone away is no error."""
        if message:
            write_line(message.removesuffix("\n"), file)

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; {self.prog} --help lists every option")


def number(kind, low, high=float("inf"), low_allowed=True):
    """An argparse type: an int or float from `low` to `high`;
    `low` itself only where `low_allowed`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:  # of an int of thousands of digits too
            value = None
        if (
            value is None
            or not low <= value <= high
            or value == low
            and not low_allowed
            or value == float("inf")
        ):
            noun = "a whole number" if kind is int else "a number"
            least = f"of at least {low}" if low_allowed else f"above {low}"
            most = "" if high == float("inf") else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"found {text!r:.60}, expected {noun} {least}{most}")
        return value

    return parse


COUNT = number(int, 1, 10**9)
COUNT_OR_NONE = number(int, 0, 10**9)
SIZE = number(int, 1, 2**16)  # of what layers are as wide as
POSITIVE = number(float, 0, low_allowed=False)
NOT_NEGATIVE = number(float, 0)
FRACTION = number(float, 0, 1)
PROBABILITY_BELOW_ONE = number(float, 0, 0.999)
SWITCH = number(int, 0, 1)
SEED = number(int, 0, 2**63 - 1)

"""Command-line options: a parser whose errors are one line, numbers with a range, and dataclasses
whose fields are options."""

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .console import write_line
from .errors import InputError

Options = TypeVar("Options")
Group = argparse._ArgumentGroup | argparse.ArgumentParser
RESULTS_FORMS = (
    "1: save npts and sims as results_DATASET.npy; published: "
    "as a pickled dict, for existing scripts"
)
COMMANDS = ("hrem-train", "hrem-eval")  # of an installation, see lib/programs.py


def program_name(script: str) -> str:
    """The name of the program in messages: the command that started it, or its script."""
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

    def __init__(self, prog: str, **settings: Any) -> None:
        command = prog if prog in COMMANDS else f"python {prog.removeprefix('python ')}"
        usage = f"{command} [--option value ...]"
        super().__init__(prog, usage=usage, formatter_class=Help, allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        names = args[: args.index("--")] if "--" in args else args
        self._refuse_names(
            name for name in names if name.split("=")[0] not in self._option_string_actions
        )
        return self._without_unknown(*self.parse_known_args(args, namespace))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._refuse_empty(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._without_unknown(*self.parse_known_intermixed_args(args, namespace))

    def _without_unknown(self, options, unknown):
        self._refuse_names(unknown)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, value in vars(options).items():
            for text in value if isinstance(value, list) else [value]:
                if "\0" in str(text):  # no file has such a name
                    self.error(
                        f"--{name}: the text contains a NUL character (found {str(text)!r:.60}, "
                        "expected text without one)"
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
                    f"{name}: the value is missing (found an empty text, expected a value). "
                    "Give one, or leave it out"
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
                + (f". Did you mean {known[near[0]]}?" if near else "")
            )

    def _print_message(self, message, file=None):
        """What argparse prints, such as --help: a reader that has gone away is no error."""
        if message:
            write_line(message.removesuffix("\n"), file)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").rstrip(".")
        end = "" if message.endswith("?") else "."
        raise InputError(f"{self.prog}: {message}{end} {self.prog} --help lists every option")


class Number:
    """An argparse type: an int or float from `low` to `high`; `low` itself only where
    `low_allowed`."""

    def __init__(
        self,
        kind: type[int] | type[float],
        low: float,
        high: float = float("inf"),
        low_allowed: bool = True,
    ) -> None:
        self.kind, self.low, self.high, self.low_allowed = kind, low, high, low_allowed
        self.noun = "a whole number" if kind is int else "a number"

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:  # of an int of thousands of digits too
            value = float("nan")
        if not self.contains(value):
            why = f"not {self.noun}" if value != value else "out of range"
            raise argparse.ArgumentTypeError(f"{why} (found {text!r:.60}, expected {self})")
        return value

    def contains(self, value: object) -> bool:
        """Whether a value of Python is such a number. A whole number is a float too."""
        kinds = (int,) if self.kind is int else (int, float)
        return (
            isinstance(value, kinds)
            and self.low <= value <= self.high
            and (value != self.low or self.low_allowed)
            and value != float("inf")
        )

    def __str__(self) -> str:
        if (self.kind, self.low, self.high) == (int, 0, 1):
            return "the number 0 or 1"
        least = f"of at least {self.low}" if self.low_allowed else f"above {self.low}"
        return f"{self.noun} {least}" + (
            "" if self.high == float("inf") else f" and at most {self.high}"
        )


COUNT = Number(int, 1, 10**9)
COUNT_OR_NONE = Number(int, 0, 10**9)
SIZE = Number(int, 1, 2**16)  # of what layers are as wide as
POSITIVE = Number(float, 0, low_allowed=False)
NOT_NEGATIVE = Number(float, 0)
FRACTION = Number(float, 0, 1)
PROBABILITY_BELOW_ONE = Number(float, 0, 0.999)
SWITCH = Number(int, 0, 1)
SEED = Number(int, 0, 2**63 - 1)


LONGEST_CHOICES = 80  # characters that --help shows beside the name of an option
Values = Number | tuple[str, ...] | None


def option(default: Any, values: Values, help: str) -> Any:
    """A field of a frozen dataclass that is an option of the command line too.

    values: its type or its choices, or None for a switch without a value. The default is also that
    of checkpoints written before the option existed.
    """
    return dataclasses.field(default=default, metadata=dict(values=values, help=help))


def add_fields(group: argparse._ActionsContainer, options: type, *names: str) -> None:
    """Add these fields of a class of `option` fields to a parser or to a group of one."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name in names:
        values, default = fields[name].metadata["values"], fields[name].default
        settings: dict[str, Any] = dict(help=fields[name].metadata["help"])
        if values is None:
            settings |= dict(action="store_true")
        elif isinstance(values, tuple):
            settings |= dict(choices=values, default=default)
            if len(",".join(values)) > LONGEST_CHOICES:
                text = f"{settings['help']}. One of {', '.join(values)}"
                settings |= dict(metavar=name.upper(), help=text)
        else:
            settings |= dict(type=values, default=default)
        group.add_argument(f"--{name}", **settings)


def from_saved(
    options: type[Options], saved: Mapping[str, Any], always: Iterable[str] = ()
) -> Options:
    """Options of a class of `option` fields from those that a checkpoint holds.

    A field that is missing has its default, but those of `always`, which every version has saved.
    Raises ValueError that names an option, what was found and what was expected.
    """
    missing = [name for name in always if name not in saved]
    if missing:
        raise ValueError(f"the option {missing[0]} is missing, expected the options of a model")
    found = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = saved.get(field.name, field.default)
        if value != field.default and not _permits(field.metadata["values"], value):
            values = field.metadata["values"] or (0, 1)
            expected = (
                f"one of {', '.join(map(str, values))}" if isinstance(values, tuple) else values
            )
            raise ValueError(f"{field.name} {value!r:.60}, expected {expected}")
        found[field.name] = value
    return options(**found)


def _permits(values: Values, value: object) -> bool:
    if isinstance(values, Number):
        return values.contains(value)
    return value in (values or (0, 1))


def is_given(options: argparse.Namespace, option: str) -> bool:
    """Whether an option asks for something: it is neither absent, nor 0."""
    return getattr(options, option) not in (None, False, 0)


def results_form(text: str) -> float | str:
    """An argparse type: 0, 1, or "published", the form in which similarities are saved."""
    return text if text == "published" else SWITCH(text)


def add_device_options(group: Group) -> None:
    """Add --gpu-id and --device, which train.py and eval.py share."""
    group.add_argument(
        "--gpu-id",
        "--gpu_id",
        dest="gpu_id",
        type=COUNT_OR_NONE,
        default=0,
        help="index of the CUDA GPU",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )


def check_writable(option: str, folder: Path) -> None:
    """Refuse a folder of an option that can be neither written nor created. Raises InputError."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "a folder without write permission" if there.is_dir() else "a file"
        raise InputError(
            f"--{option} {folder}: cannot write there (found {there}, {found}, "
            "expected a folder to write in). Name another folder"
        )

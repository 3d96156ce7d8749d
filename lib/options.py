"""Command-line options: a parser whose errors are one line, and numbers that know their range."""

import argparse

from lib.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse's parser, with every default in --help and errors raised as InputError."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; {self.prog} --help lists every option")


def number(kind, low, high=float("inf"), low_allowed=True):
    """An argparse type: an int or float from `low` to `high`; `low` itself only where `low_allowed`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == low and not low_allowed or value == float("inf"):
            noun = "a whole number" if kind is int else "a number"
            least = f"of at least {low}" if low_allowed else f"above {low}"
            most = "" if high == float("inf") else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun} {least}{most}")
        return value

    return parse


COUNT = number(int, 1)
COUNT_OR_NONE = number(int, 0)
POSITIVE = number(float, 0, low_allowed=False)
NOT_NEGATIVE = number(float, 0)
FRACTION = number(float, 0, 1)
PROBABILITY_BELOW_ONE = number(float, 0, 0.999)
SWITCH = number(int, 0, 1)
SEED = number(int, 0, 2**63 - 1)

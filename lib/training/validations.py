"""The validations of a run, read back from its eval.txt."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..system.console import one_line
from ..system.errors import InputError
from ..system.files import why_unreadable
from .logs import EVAL

VALIDATION = re.compile(
    r"epoch (\d{1,15}) step (\d{1,15}) (\S+): (.*); rsum (\S+)( \(best so far\))?"
)
AVERAGED = "averaged weights, "  # before the scores of an average
LARGEST_LOG, LONGEST_LINE = 5e8, 10_000  # bytes, characters: no run writes more
LARGEST_VALUE = 1e15  # that a curve shows
VALIDATION_HEADER = ("epoch", "step", "I2T R@1", "R@5", "R@10", "T2I R@1", "R@5", "R@10", "rsum")


class Validation(NamedTuple):
    """A validation as eval.txt tells of it; recalls: R@1, R@5, R@10 of I2T, then of T2I;
    is_best: so far; is_average: of averaged weights (`--average_from`)."""

    epoch: int
    step: int
    split: str
    recalls: list
    rsum: float
    is_best: bool
    is_average: bool = False


def read_validations(folder: Path) -> list[Validation]:
    """The validations in eval.txt of a run folder, in order; empty if there is no such file.

    Lines with other values than finite numbers are ignored. Raises InputError if eval.txt is not a
    file.
    """
    validations = []
    for line in log_lines(folder, EVAL):
        if found := VALIDATION.match(line):
            texts = *re.findall(r"R@\d+ ([^\s;]+)", found[4]), found[5]
            numbers = [value for text in texts if (value := number(text)) is not None]
            if len(numbers) == len(texts) == 7:
                *recalls, rsum = numbers
                validations.append(
                    Validation(
                        int(found[1]),
                        int(found[2]),
                        one_line(found[3]),
                        recalls,
                        rsum,
                        bool(found[6]),
                        found[4].startswith(AVERAGED),
                    )
                )
    return validations


def number(text: str) -> float | None:
    """The finite number that `text` represents, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST_VALUE else None  # NaN is no number either


def log_lines(folder: Path, name: str) -> list[str]:
    """The lines of a text log in a run folder; empty if there is no such file.

    Raises InputError if it is not a text file.
    """
    path = Path(folder) / name
    if not os.path.lexists(path):
        return []
    why = why_unreadable(path)
    if not why and path.stat().st_size > LARGEST_LOG:
        why = f"a file of {path.stat().st_size / 1e9:.1f} GB"
    if why:
        raise InputError(
            f"{path}: {why}; expected the log of a run: move it "
            "away, and the report is made without it"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [line for line in lines if len(line) <= LONGEST_LINE]


def markdown_of_validations(validations: Sequence[Validation]) -> str:
    """A table with one row per validation, the best one marked with a *. It is aligned for
    terminals."""
    best = max((number for number, one in enumerate(validations) if one.is_best), default=None)
    rows = [
        [
            "* " * (number == best) + str(one.epoch) + " averaged" * one.is_average,
            str(one.step),
            *(f"{value:.1f}" for value in (*one.recalls, one.rsum)),
        ]
        for number, one in enumerate(validations)
    ]
    lines = [VALIDATION_HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [
        f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths))} |"
        for line in lines
    ]
    rule = f"|{'|'.join('-' * (width + 1) + ':' for width in widths)}|"
    return "\n".join([aligned[0], rule, *aligned[1:]])

"""The result of a check of a data folder: lines that describe it, and fixes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..system.errors import InputError


class Report:
    """Lines that describe a data folder, and fixes.

    A fix names a file, what is wrong with it, and the remedy.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fixes: list[str] = []

    def attempt(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """Return read(*arguments). If it raises InputError, add a fix and return None."""
        try:
            return read(*arguments)
        except InputError as error:
            # two readers may report the same error
            self.fixes += [str(error)] * (str(error) not in self.fixes)
            return None

    def __str__(self) -> str:
        fixes = [f"{number}. {fix}" for number, fix in enumerate(self.fixes, 1)]
        return "\n".join(
            [*self.lines, *(["", f"to fix: {len(fixes)}", *fixes] if fixes else ["OK"])]
        )


def some(
    found: Sequence[Any] | np.ndarray,
    noun: str,
    places: str = "rows",
    counted_from: int = 0,
    named: int = 5,
) -> str:
    """Format a number of items and the first of them: "3 rows (rows 5, 17, 30, from 0)"."""
    first = ", ".join(str(item) for item in found[:named])
    more = ", ..." if len(found) > named else ""
    origin = f", from {counted_from}" if places in ("rows", "images", "lines") else ""
    return f"{len(found)} {noun} ({places} {first}{more}{origin})"

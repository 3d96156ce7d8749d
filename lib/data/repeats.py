"""Detect images that are stored several times in a file of region features.

Published features often have one row per caption, so that each image is stored five times. Rows are
compared bit by bit, in a few of their regions and at sampled places of the file. Files in which the
number of repetitions is not clear are refused.
"""

# N images, M rows of region features, R regions

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..evaluation.caption_order import CAPTIONS_PER_IMAGE
from ..system.errors import InputError
from .region_file import RegionFile

COMPARED = 40  # places of a file at which neighbouring rows are compared
COMPARED_REGIONS = 4  # regions of a row that are compared; rows that agree in them are one image
LONGEST_RUN = 256  # number of consecutive equal rows after which the comparison stops
# maximum fraction of places with equal neighbours in a data set that holds some images twice
MAX_DUPLICATE_SHARE = 0.05
# times the square root of N: number of randomly drawn images that are compared with each other
COPY_SAMPLE_FACTOR = 4
# maximum number of equal pairs among them; if every image is stored twice, about 8 are expected
FEW_PAIRS = 2


class Run(NamedTuple):
    """Consecutive equal rows: start..start + length - 1."""

    start: int
    length: int


class Copies(NamedTuple):
    """Two equal rows; the first has the lower number."""

    first: int
    second: int

    def __str__(self) -> str:
        return f"rows {self.first} and {self.second} (from 0)"


class Repeats(NamedTuple):
    """times: how often each image is stored in consecutive rows; notes: lines to print."""

    times: int
    notes: list[str]


def find_repeats(path: Path | str, regions: RegionFile, map_file: Path) -> Repeats:
    """Find how often each image is repeated in features with one row per caption.

    Neighbouring rows are compared at COMPARED places of the file. path, map_file: named in
    messages. Raises InputError if the images are not all repeated equally often, unless only a few
    places have equal neighbours.
    """
    rows = _Rows(regions)
    runs = rows.find_runs()
    times, long = _times(runs), [run for run in runs if run.length > 1]
    remedy = (
        "store every image once; if every row is an image, or captions are in another order, "
        f"write the row of each caption's image, from 0, into {map_file.name}, one per line"
    )
    _refuse_constant(path, long, len(regions), remedy)
    _refuse_tiles(path, rows, times, remedy)
    if times == 1 and len(long) > MAX_DUPLICATE_SHARE * len(runs):
        _refuse_mixture(path, runs, len(regions), remedy)
    copies = rows.find_copies(times)
    if len(copies) > FEW_PAIRS:
        raise InputError(
            f"{path}: as many rows as captions, but {copies[0]} are the same, and so are "
            f"{copies[1]}, expected each image equally often in consecutive rows, or all rows "
            f"different; {remedy}"
        )
    neighbours = [Copies(start, start + length - 1) for start, length in long]
    return Repeats(times, _describe(path, times, neighbours + copies, len(regions), map_file))


def _describe(
    path: Path | str, times: int, copies: list[Copies], num_rows: int, map_file: Path
) -> list[str]:
    """Notes on an unusual number of repetitions."""
    if times == CAPTIONS_PER_IMAGE or num_rows == 1:
        return []
    start = f"{path}: as many rows as captions, "
    if times > 1:
        return [f"{start}equal in groups of {times}: each image is read once"]
    if copies:
        return [
            f"{start}read as one caption per image although {copies[0]} are the same image; "
            f"{map_file.name} can specify another pairing"
        ]
    return [f"{start}all different: one caption per image"]


def unexpected_repeats(regions: RegionFile) -> int:
    """How often images are repeated, although every row should be a different image.

    Only two rows are read if the first image is not repeated. If all rows are equal, the result is
    1: lib/data/check.py reports that.
    """
    rows, last = _Rows(regions), len(regions) - 1
    is_repeated = last and rows.same(0, 1) and not rows.same(0, min(last, LONGEST_RUN))
    return _times(rows.find_runs()) if is_repeated else 1


def refuse_repeats(path: Path, regions: RegionFile, num_captions: int) -> None:
    """Raise InputError if images are repeated although each row has several captions."""
    times = unexpected_repeats(regions)
    if times > 1:
        raise InputError(
            f"{path}: found every image {times} times in consecutive rows, and {num_captions} "
            f"captions, {num_captions // len(regions)} per row; expected every image once, or one "
            "row per caption: store every image once"
        )


def _times(runs: list[Run]) -> int:
    """How often images are repeated: starts and lengths of all runs are multiples of it."""
    return math.gcd(*(number for run in runs for number in run))


def _refuse_constant(path: Path | str, long: list[Run], num_rows: int, remedy: str) -> None:
    """Raise InputError if a run is so long that it cannot be the repetitions of one image."""
    for start, length in long:
        if length > LONGEST_RUN or length == num_rows != CAPTIONS_PER_IMAGE:
            raise InputError(
                f"{path}: as many rows as captions, but rows {start} to {start + length - 1} "
                "(from 0) are all the same, expected different images; extract the features "
                f"again, or {remedy}"
            )


def _refuse_mixture(path: Path | str, runs: list[Run], num_rows: int, remedy: str) -> None:
    """Raise InputError with two equal rows of the first long run, and two different neighbours."""
    start, length = next(run for run in runs if run.length > 1)
    end = next(other + size - 1 for other, size in runs if size != length)
    left, right = (end, end + 1) if end + 1 < num_rows else (end - 1, end)
    raise InputError(
        f"{path}: as many rows as captions, but {Copies(start, start + length - 1)} are the "
        f"same and rows {left} and {right} differ, expected each image equally often in "
        f"consecutive rows, or all rows different; {remedy}"
    )


def _refuse_tiles(path: Path | str, rows: "_Rows", times: int, remedy: str) -> None:
    """Raise InputError if the file consists of equal copies of a smaller one (np.tile)."""
    num_rows = len(rows.regions)
    for copies in range(2, num_rows // times + 1):
        period, rest = divmod(num_rows, copies)
        if rest or period % times:
            continue
        farthest = num_rows - period - 1
        if all(rows.same(row, row + period) for row in (0, farthest // 3, farthest // 2, farthest)):
            raise InputError(
                f"{path}: as many rows as captions, but rows 0 and {period} (from 0) are the "
                f"same: the first {period} rows are stored {copies} times, one copy after the "
                f"other, expected each image repeated in consecutive rows: {remedy}"
            )


class _Rows:
    """Rows of region features, compared bit by bit in a few regions. Each row is read once."""

    def __init__(self, regions: RegionFile) -> None:
        self.regions = regions
        self.read: dict[int, bytes] = {}
        self.which = sorted(
            {*np.linspace(0, regions.shape[1] - 1, COMPARED_REGIONS).astype(np.int64).tolist()}
        )

    def same(self, left: int, right: int) -> bool:
        """Whether two rows are the same image."""
        return self._content(left) == self._content(right)

    def _content(self, row: int) -> bytes:
        if row not in self.read:
            self.read[row] = b"".join(
                self.regions.read(row, place, place + 1).tobytes() for place in self.which
            )
        return self.read[row]

    def find_runs(self) -> list[Run]:
        """Runs of equal rows around COMPARED evenly spaced places, sorted, each once."""
        last = len(self.regions) - 1
        return sorted({self._run(int(place)) for place in np.linspace(0, last, COMPARED)})

    def find_copies(self, times: int) -> list[Copies]:
        """Pairs of equal rows among randomly drawn images.

        times: how often each image is repeated; only its first row is read.
        """
        num_images = len(self.regions) // times
        drawn = np.random.default_rng(0).choice(
            num_images,
            min(num_images, math.ceil(COPY_SAMPLE_FACTOR * math.sqrt(num_images))),
            replace=False,
        )
        found: dict[bytes, int] = {}
        copies: list[Copies] = []
        for row in (np.sort(drawn) * times).tolist():
            first = found.setdefault(self._content(row), row)
            copies += [Copies(first, row)] * (first != row)
        return copies

    def _run(self, place: int) -> Run:
        start, stop = place, place + 1
        while start > 0 and place - start <= LONGEST_RUN and self.same(start - 1, place):
            start -= 1
        while stop < len(self.regions) and stop - start <= LONGEST_RUN and self.same(stop, place):
            stop += 1
        return Run(start, stop - start)

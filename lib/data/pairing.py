"""Which image every caption of a split belongs to: the map in its files,
or equally many captions in order.

Nothing is guessed: where a file has a row a caption, rows are compared, and what stays ambiguous is
refused or named.
"""

# N images, C captions, M rows of region features

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..evaluation.caption_order import CAPTIONS_PER_IMAGE, captions_in_order
from ..system.console import one_line
from ..system.errors import InputError
from .layout import read_lines
from .region_file import RegionFile

COMPARED = 40  # places of a file at which neighbouring rows are compared
COMPARED_REGIONS = 4  # of a row: two images that agree in four whole regions are one
LONGEST_RUN = 256  # equal rows in a row that are looked at
# of places with equal neighbours, up to which a data set just holds some images twice
MAX_DUPLICATE_SHARE = 0.05
# times the root of the number of images: so many, drawn at random, are compared with each other
COPY_SAMPLE_FACTOR = 4
# equal pairs among them that a data set may have; where every image is there twice, about 8 are
# expected
FEW_PAIRS = 2


class Pairing(NamedTuple):
    """What belongs together in a split as it is stored.

    caption_images: (C,) int64, image of every caption, from 0; num_images: N; rows_per_image: how
    often each image is repeated in the features; source: how this is known, for people; notes: what
    they must be told.
    """

    caption_images: np.ndarray
    num_images: int
    rows_per_image: int
    source: str
    notes: list

    def count_text(self) -> str:
        """For example "5 captions an image" or "1 to 7 captions an image"."""
        counts = np.bincount(self.caption_images)
        low, high = counts.min(), counts.max()
        return (
            f"{low if low == high else f'{low} to {high}'} "
            f"caption{'' if high == 1 else 's'} an image"
        )


def map_path(folder: Path, split: str) -> Path:
    """The optional file that maps every caption to its image."""
    return folder / f"{split}_caps_images.txt"


def drop_blank_end(
    folder: Path, split: str, texts: list[str], num_rows: int
) -> tuple[list[str], str | None]:
    """The captions of a split without blank lines at the end, and a note or None.

    texts: lines of the file; num_rows: rows of the features. A blank line is kept as a caption if
    the number of captions requires it. Raises InputError if blank lines separate captions, if
    several numbers of captions are possible, and if a map of the captions cannot be read.
    """
    path = map_path(folder, split)
    wanted = len(_read_numbers(path)) if os.path.lexists(path) else None
    captions = without_blank_end(
        texts, lambda count: count % num_rows == 0 if wanted is None else count == wanted
    )
    blank = np.flatnonzero([not text for text in captions])
    num_dropped, num_true = len(texts) - len(captions), len(captions) - len(blank)
    if (
        wanted is None
        and num_true
        and not num_true % num_rows
        and _are_separators(blank, len(captions))
    ):
        raise InputError(
            f"{folder / split}_caps.txt: found {len(captions)} captions for {num_rows} rows of "
            f"features, the last of every {blank[0] + 1} blank; expected {num_true} captions, or "
            "a text in every line: remove the blank lines, or write captions there"
        )
    num_blank_end = len(captions) - 1 - max(np.flatnonzero(captions), default=-1)
    if wanted is None and num_true and 1 < num_rows <= num_blank_end:
        raise InputError(
            f"{folder / split}_caps.txt: found {num_blank_end} blank lines at the end, which may "
            f"be captions or none, expected {num_rows} rows of features to tell how many captions "
            "there are: remove these lines, or write captions there"
        )
    lines = f"{num_dropped} blank line{'s' * (num_dropped > 1)} at the end ignored"
    return captions, f"{folder / split}_caps.txt: {lines}" if num_dropped else None


def _are_separators(blank, num_lines):
    """Whether the blank lines are every k-th line of a file, and three at least.
    blank: their numbers, from 0."""
    every, rest = divmod(num_lines, len(blank) or 1)
    return (
        len(blank) > 2
        and not rest
        and np.array_equal(blank, np.arange(every - 1, num_lines, every))
    )


def without_blank_end(lines: list[str], fits: Callable[[int], bool]) -> list[str]:
    """Lines without as many blank ones at the end as fits(count) requires; all of them if no count
    fits."""
    count = len(lines)
    while count and not fits(count) and not lines[count - 1]:
        count -= 1
    return lines[:count] if count and fits(count) else lines


def ids_of_images(path: Path, ids: list[str], pairing: Pairing) -> list[str]:
    """One id per stored image, from a file with one line per image or per caption; other numbers of
    lines are returned unchanged.

    path, ids: the file and its lines. Raises InputError if ids per caption contradict the pairing.
    """
    num_images, num_captions = pairing.num_images, len(pairing.caption_images)
    ids = without_blank_end(ids, lambda count: count in (num_images, num_captions))
    if len(ids) != num_captions or num_captions == num_images:
        return ids
    found = [ids[caption] for caption in np.unique(pairing.caption_images, return_index=True)[1]]
    images = pairing.caption_images.tolist()
    # more are ids of captions
    if len(set(ids)) == num_images and ids != [found[image] for image in images]:
        line, image = next(
            (line, image) for line, image in enumerate(images) if ids[line] != found[image]
        )
        raise InputError(
            f"{path}: line {line + 1} is {one_line(ids[line])}, expected {one_line(found[image])} "
            f"as of the other captions of image {image} (from 0): {pairing.count_text()}, "
            f"{pairing.source}; the captions are in another order; write the row of each "
            f"caption's image, from 0, into {path.name.replace('_ids.txt', '_caps_images.txt')}, "
            "one a line; or remove the ids, where they are wrong"
        )
    return found


def check_ids(folder: Path, split: str, pairing: Pairing) -> list[str]:
    """Notes on what the ids of a split, if there are any, say about its pairing.

    Raises InputError if ids per caption contradict it.
    """
    path = folder / f"{split}_ids.txt"
    if not os.path.lexists(path):
        return []
    ids = ids_of_images(path, read_lines(path, "an image id"), pairing)
    repeated = [identity for identity, count in Counter(ids).items() if count > 1]
    if not repeated or len(ids) != pairing.num_images:
        return []
    return [
        (
            f"warning: {path}: {len(repeated)} ids stand for several images, such as "
            f"{one_line(repeated[0])}; each of these rows counts as an image of its own "
            f"({pairing.count_text()}, {pairing.source})"
        )
    ]


def find_pairing(folder: Path, split: str, regions: RegionFile, num_captions: int) -> Pairing:
    """The pairing of a split. regions: M rows. Raises InputError if it is not certain."""
    path = map_path(folder, split)
    if os.path.lexists(path):
        caption_images = read_map(path, len(regions), num_captions)
        repeats, rows = (
            _unexpected_repeats(regions),
            f"{folder / split}_ims.npy: rows 0 and 1 (from 0)",
        )
        note = (
            f"warning: {rows} are the same image, but {path.name} "
            "counts every row as an image of its own"
        )
        return Pairing(
            caption_images,
            len(regions),
            1,
            path.name,
            [f"{note}; store every image once"] * (repeats > 1),
        )
    return _pairing_in_order(folder, split, regions, num_captions, path)


def _pairing_in_order(folder, split, regions, num_captions, path):
    """`find_pairing` without the map `path`: the captions of an image follow each other."""
    num_rows, missing = len(regions), f"no {path.name}"
    if num_captions < num_rows:
        raise InputError(
            f"{folder / split}_caps.txt: found {num_captions} captions for the {num_rows} rows of "
            f"{split}_ims.npy, expected a caption of every row at least: copy both again if they "
            "are not of one split, or store the features of the images that have captions, each "
            "once"
        )
    if num_captions % num_rows:
        raise InputError(
            f"{folder / split}_caps.txt: found {num_captions} captions for the {num_rows} rows of "
            f"{split}_ims.npy, expected equally many captions of every row, such as "
            f"{5 * num_rows}: copy both again if they are not of one split; if images have "
            "different numbers of captions, write the row of each caption's image, from 0, into "
            f"{path.name}, one a line"
        )
    if num_captions > num_rows:
        _refuse_repeats(folder / f"{split}_ims.npy", regions, num_captions)
        return Pairing(
            captions_in_order(num_rows, num_captions), num_rows, 1, f"in order, {missing}", []
        )
    rows_per_image, notes = find_repeats(folder / f"{split}_ims.npy", regions, path)
    num_images = num_rows // rows_per_image
    source = f"rows repeated {rows_per_image} times" if rows_per_image > 1 else "a row a caption"
    return Pairing(
        captions_in_order(num_images, num_captions),
        num_images,
        rows_per_image,
        f"{source}, {missing}",
        notes,
    )


def read_map(path: Path, num_images: int, num_captions: int) -> np.ndarray:
    """The image of every caption, (C,) int64, from `{split}_caps_images.txt`. Raises InputError."""
    numbers = _read_numbers(path)
    expected = f"the row of each caption's image, from 0, one a line, for {num_captions} captions"
    if len(numbers) != num_captions:
        raise InputError(
            f"{path}: found {len(numbers)} lines, expected {expected}: write it again for these "
            "captions, or remove it where all images have equally many captions in order"
        )
    wrong = np.flatnonzero((numbers < 0) | (numbers >= num_images))
    if len(wrong):
        raise InputError(
            f"{path}: line {wrong[0] + 1} is {numbers[wrong[0]]}, expected a row of 0 to "
            f"{num_images - 1}, for the features have {num_images} rows: write the file again for "
            "these features"
        )
    without = np.flatnonzero(np.bincount(numbers, minlength=num_images) == 0)
    if len(without):
        raise InputError(
            f"{path}: {len(without)} images have no caption, the first is row {without[0]} (from "
            "0), expected one at least of every row: store every image once, and leave out images "
            "without captions"
        )
    return numbers


def _read_numbers(path):
    lines = read_lines(path, "the row of a caption's image")
    lines = without_blank_end(lines, lambda count: bool(lines[count - 1]))
    for number, line in enumerate(lines, 1):
        if not (line.isascii() and line.isdigit() and len(line) < 19):
            raise InputError(
                f"{path}: line {number} is {line[:40]!r}, expected a whole number: the row of a "
                "caption's image, from 0"
            )
    return np.array(lines, dtype=np.int64)


def find_repeats(path: Path, regions: RegionFile, map_file: Path) -> tuple[int, list[str]]:
    """How often each image is repeated in features with one row per caption (1 if all rows are
    different images), and notes.

    Neighbouring rows are compared at COMPARED places of the file. path, map_file: named in
    messages. Raises InputError if the images are not repeated equally often, unless only a few
    places have equal neighbours.
    """
    rows, num_rows = _Rows(regions), len(regions)
    runs = rows.find_runs()
    repeats, long = _repeats(runs), [run for run in runs if run[1] > 1]
    remedy = (
        "store every image once; if every row is an image, or captions are in another order, "
        f"write the row of each caption's image, from 0, into {map_file.name}, one a line"
    )
    for start, length in long:
        if length > LONGEST_RUN or length == num_rows != CAPTIONS_PER_IMAGE:
            raise InputError(
                f"{path}: as many rows as captions, but rows {start} to {start + length - 1} "
                "(from 0) are all the same, expected different images; extract the features "
                f"again, or {remedy}"
            )
    _refuse_tiles(path, rows, repeats, remedy)
    if repeats == 1 and len(long) > MAX_DUPLICATE_SHARE * len(runs):
        _refuse_mixture(path, runs, num_rows, remedy)
    copies = rows.find_copies(repeats)
    if len(copies) > FEW_PAIRS:
        raise InputError(
            f"{path}: as many rows as captions, but {_named(copies[0])} are the same, and so are "
            f"{_named(copies[1])}, expected each image equally often in a row, or all rows "
            f"different; {remedy}"
        )
    if repeats > 1:
        note = (
            f"{path}: as many rows as captions, equal in groups "
            f"of {repeats}: each image is read once"
        )
        return repeats, [note] * (repeats != CAPTIONS_PER_IMAGE)
    copies = [(start, start + length - 1) for start, length in long] + copies
    if copies:
        return 1, [
            (
                f"{path}: as many rows as captions, read as one caption an image although "
                f"{_named(copies[0])} are the same image; {map_file.name} can say otherwise"
            )
        ]
    return 1, [f"{path}: as many rows as captions, all different: one caption an image"] * (
        num_rows > 1
    )


def _refuse_mixture(path, runs, num_rows, remedy):
    """Raises InputError with two equal rows of the first long run,
    and two neighbours that differ."""
    start, length = next(run for run in runs if run[1] > 1)
    end = next(other + size - 1 for other, size in runs if size != length)
    left, right = (end, end + 1) if end + 1 < num_rows else (end - 1, end)
    raise InputError(
        f"{path}: as many rows as captions, but {_named((start, start + length - 1))} are the "
        f"same and rows {left} and {right} differ, expected each image equally often in a row, or "
        f"all rows different; {remedy}"
    )


def _repeats(runs):
    """How often images are repeated, as runs of equal rows show: starts and lengths are multiples
    of it."""
    return math.gcd(*(number for run in runs for number in run))


def _unexpected_repeats(regions):
    """How often images are repeated where every row should be another:
    1 if the first one is not, found by two rows.

    Rows that are all the same count as 1: `check` speaks of them.
    """
    rows, last = _Rows(regions), len(regions) - 1
    is_repeated = last and rows.same(0, 1) and not rows.same(0, min(last, LONGEST_RUN))
    return _repeats(rows.find_runs()) if is_repeated else 1


def _named(rows):
    return f"rows {rows[0]} and {rows[1]} (from 0)"


def _refuse_repeats(path, regions, num_captions):
    """Raises InputError where images are repeated although there are several captions of every
    row."""
    repeats = _unexpected_repeats(regions)
    if repeats > 1:
        raise InputError(
            f"{path}: found every image {repeats} times in a row, and {num_captions} captions, "
            f"{num_captions // len(regions)} of every row; expected every image once, or a row a "
            "caption: store every image once"
        )


def _refuse_tiles(path, rows, repeats, remedy):
    """Raises InputError where the whole file is there several times,
    one copy after the other (np.tile)."""
    num_rows = len(rows.regions)
    for copies in range(2, num_rows // repeats + 1):
        period, rest = divmod(num_rows, copies)
        if rest or period % repeats:
            continue
        farthest = num_rows - period - 1
        if all(rows.same(row, row + period) for row in (0, farthest // 3, farthest // 2, farthest)):
            raise InputError(
                f"{path}: as many rows as captions, but rows 0 and {period} (from 0) are the "
                f"same: {period} rows stand there {copies} times one after the other, expected "
                f"each image repeated in a row: {remedy}"
            )


class _Rows:
    """Rows of region features, compared bit by bit in a few of their regions, each read once."""

    def __init__(self, regions: RegionFile) -> None:
        self.regions = regions
        self.read: dict = {}
        self.which = sorted(
            {*np.linspace(0, regions.shape[1] - 1, COMPARED_REGIONS).astype(np.int64).tolist()}
        )

    def same(self, left: int, right: int) -> bool:
        """Whether two rows are the same image."""
        return self._content(left) == self._content(right)

    def _content(self, row):
        if row not in self.read:
            self.read[row] = b"".join(
                self.regions.read(row, place, place + 1).tobytes() for place in self.which
            )
        return self.read[row]

    def find_runs(self) -> list[tuple[int, int]]:
        """Runs of equal rows around COMPARED places spread over the file: sorted (start, length),
        without duplicates."""
        last = len(self.regions) - 1
        return sorted({self._run(int(place)) for place in np.linspace(0, last, COMPARED)})

    def find_copies(self, repeats: int) -> list[tuple[int, int]]:
        """Pairs of equal rows among images drawn at random anywhere in the file, the lower row
        first.

        repeats: how often each image is repeated; the first row of each is compared.
        """
        num_images = len(self.regions) // repeats
        drawn = np.random.default_rng(0).choice(
            num_images,
            min(num_images, math.ceil(COPY_SAMPLE_FACTOR * math.sqrt(num_images))),
            replace=False,
        )
        found: dict = {}
        copies = []
        for row in (np.sort(drawn) * repeats).tolist():
            first = found.setdefault(self._content(row), row)
            copies += [(first, row)] * (first != row)
        return copies

    def _run(self, place):
        start, stop = place, place + 1
        while start > 0 and place - start <= LONGEST_RUN and self.same(start - 1, place):
            start -= 1
        while stop < len(self.regions) and stop - start <= LONGEST_RUN and self.same(stop, place):
            stop += 1
        return start, stop - start

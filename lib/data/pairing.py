"""Find the image of each caption of a split.

A file `{split}_caps_images.txt` may state it. Otherwise, captions are in the order of the images,
the same number for each image. Nothing is guessed: features with one row per caption are compared
(lib/data/repeats.py), and ambiguous files are refused or reported.
"""

# N images, C captions, M rows of region features

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..evaluation.caption_order import captions_in_order
from ..system.console import one_line
from ..system.errors import InputError
from .layout import read_lines
from .region_file import RegionFile
from .repeats import find_repeats, refuse_repeats, unexpected_repeats


class Pairing(NamedTuple):
    """The images and captions of a split as stored.

    caption_images: (C,) int64, image of each caption, from 0; num_images: N; rows_per_image: how
    often each image is repeated in the features; source: how this is known, as text; notes: lines
    to print.
    """

    caption_images: np.ndarray
    num_images: int
    rows_per_image: int
    source: str
    notes: list[str]

    def count_text(self) -> str:
        """Such as "5 captions per image" or "1 to 7 captions per image"."""
        counts = np.bincount(self.caption_images)
        low, high = counts.min(), counts.max()
        return (
            f"{low if low == high else f'{low} to {high}'} "
            f"caption{'' if high == 1 else 's'} per image"
        )


class CaptionLines(NamedTuple):
    """The captions of a file. note: a line to print, or None."""

    texts: list[str]
    note: str | None


def map_path(folder: Path, split: str) -> Path:
    """The optional file that states the image of each caption."""
    return folder / f"{split}_caps_images.txt"


def drop_blank_end(folder: Path, split: str, texts: list[str], num_rows: int) -> CaptionLines:
    """Drop blank lines at the end of a caption file that are not captions.

    texts: lines of the file; num_rows: rows of the features. A blank line counts as a caption if
    the number of captions requires it. Raises InputError if blank lines separate captions, if
    several numbers of captions are possible, or if the map of the captions is invalid.
    """
    path = map_path(folder, split)
    wanted = len(_read_numbers(path)) if os.path.lexists(path) else None
    captions = without_blank_end(
        texts, lambda count: count % num_rows == 0 if wanted is None else count == wanted
    )
    if wanted is None:
        _refuse_ambiguous_blanks(folder / f"{split}_caps.txt", captions, num_rows)
    num_dropped = len(texts) - len(captions)
    if not num_dropped:
        return CaptionLines(captions, None)
    lines = f"{num_dropped} blank line{'s' * (num_dropped > 1)} at the end ignored"
    return CaptionLines(captions, f"{folder / split}_caps.txt: {lines}")


def _refuse_ambiguous_blanks(path: Path, captions: list[str], num_rows: int) -> None:
    """Raise InputError if the number of captions is not clear because of blank lines."""
    blank = np.flatnonzero([not text for text in captions])
    num_true = len(captions) - len(blank)
    if num_true and not num_true % num_rows and _are_separators(blank, len(captions)):
        raise InputError(
            f"{path}: found {len(captions)} captions for {num_rows} rows of features, the last of "
            f"every {blank[0] + 1} blank; expected {num_true} captions, or a text in every line: "
            "remove the blank lines, or write captions there"
        )
    num_blank_end = len(captions) - 1 - max(np.flatnonzero(captions), default=-1)
    if num_true and 1 < num_rows <= num_blank_end:
        raise InputError(
            f"{path}: found {num_blank_end} blank lines at the end, which may or may not be "
            f"captions, expected no blank lines, because {num_rows} rows of features fit both "
            "numbers of captions: remove these lines, or write captions there"
        )


def _are_separators(blank: np.ndarray, num_lines: int) -> bool:
    """Whether the blank lines (numbers from 0) are at least three and every k-th of a file."""
    every, rest = divmod(num_lines, len(blank) or 1)
    return (
        len(blank) > 2
        and not rest
        and np.array_equal(blank, np.arange(every - 1, num_lines, every))
    )


def without_blank_end(lines: list[str], fits: Callable[[int], bool]) -> list[str]:
    """Drop blank lines at the end until fits(count) is true; all lines if it never is."""
    count = len(lines)
    while count and not fits(count) and not lines[count - 1]:
        count -= 1
    return lines[:count] if count and fits(count) else lines


def ids_of_images(path: Path, ids: list[str], pairing: Pairing) -> list[str]:
    """The id of each stored image, from one line per image or one line per caption.

    path, ids: the file and its lines, which are returned unchanged if their number is another.
    Raises InputError if ids of images, one line per caption, contradict the pairing.
    """
    num_images, num_captions = pairing.num_images, len(pairing.caption_images)
    ids = without_blank_end(ids, lambda count: count in (num_images, num_captions))
    if len(ids) != num_captions or num_captions == num_images:
        return ids
    found = [ids[caption] for caption in np.unique(pairing.caption_images, return_index=True)[1]]
    images = pairing.caption_images.tolist()
    # if there are more different ids than images, they are ids of captions
    if len(set(ids)) == num_images and ids != [found[image] for image in images]:
        line, image = next(
            (line, image) for line, image in enumerate(images) if ids[line] != found[image]
        )
        raise InputError(
            f"{path}: line {line + 1} is {one_line(ids[line])}, expected {one_line(found[image])} "
            f"as for the other captions of image {image} (from 0): {pairing.count_text()}, "
            f"{pairing.source}; the captions are in another order; write the row of each "
            f"caption's image, from 0, into {path.name.replace('_ids.txt', '_caps_images.txt')}, "
            "one per line; or remove the ids if they are wrong"
        )
    return found


def check_ids(folder: Path, split: str, pairing: Pairing) -> list[str]:
    """Notes on the ids of a split, if it has any.

    Raises InputError if ids of images, one line per caption, contradict the pairing.
    """
    path = folder / f"{split}_ids.txt"
    if not os.path.lexists(path):
        return []
    ids = ids_of_images(path, read_lines(path, "an image id"), pairing)
    repeated = [identity for identity, count in Counter(ids).items() if count > 1]
    if not repeated or len(ids) != pairing.num_images:
        return []
    return [
        f"warning: {path}: {len(repeated)} ids stand for several images, such as "
        f"{one_line(repeated[0])}; each of these rows counts as a separate image "
        f"({pairing.count_text()}, {pairing.source})"
    ]


def find_pairing(folder: Path, split: str, regions: RegionFile, num_captions: int) -> Pairing:
    """The `Pairing` of a split. regions: M rows. Raises InputError if it is not certain."""
    map_file, regions_path = map_path(folder, split), folder / f"{split}_ims.npy"
    if os.path.lexists(map_file):
        return _mapped_pairing(map_file, regions_path, regions, num_captions)
    num_rows, missing = len(regions), f"no {map_file.name}"
    _check_counts(folder / f"{split}_caps.txt", map_file, num_rows, num_captions)
    if num_captions > num_rows:
        refuse_repeats(regions_path, regions, num_captions)
        images = captions_in_order(num_rows, num_captions)
        return Pairing(images, num_rows, 1, f"in order, {missing}", [])
    times, notes = find_repeats(regions_path, regions, map_file)
    num_images = num_rows // times
    source = f"rows repeated {times} times" if times > 1 else "one row per caption"
    images = captions_in_order(num_images, num_captions)
    return Pairing(images, num_images, times, f"{source}, {missing}", notes)


def _mapped_pairing(
    map_file: Path, regions_path: Path, regions: RegionFile, num_captions: int
) -> Pairing:
    """The `Pairing` that a map states. Raises InputError if the map is invalid."""
    caption_images, notes = read_map(map_file, len(regions), num_captions), []
    if unexpected_repeats(regions) > 1:
        notes = [
            f"warning: {regions_path}: rows 0 and 1 (from 0) are the same image, but "
            f"{map_file.name} counts every row as a separate image; store every image once"
        ]
    return Pairing(caption_images, len(regions), 1, map_file.name, notes)


def _check_counts(captions_path: Path, map_file: Path, num_rows: int, num_captions: int) -> None:
    """Raise InputError if the captions cannot be divided evenly among the rows of the features."""
    found = (
        f"{captions_path}: found {num_captions} captions for the {num_rows} rows of the features"
    )
    if num_captions < num_rows:
        raise InputError(
            f"{found}, expected at least one caption per row: copy both files again if they are "
            "not of the same split, or store only the features of images that have captions, each "
            "once"
        )
    if num_captions % num_rows:
        raise InputError(
            f"{found}, expected the same number of captions for every row, such as "
            f"{5 * num_rows}: copy both files again if they are not of the same split; if images "
            "have different numbers of captions, write the row of each caption's image, from 0, "
            f"into {map_file.name}, one per line"
        )


def read_map(path: Path, num_images: int, num_captions: int) -> np.ndarray:
    """Read a `{split}_caps_images.txt`: the image of each caption, (C,) int64.

    Raises InputError if it is invalid.
    """
    numbers = _read_numbers(path)
    if len(numbers) != num_captions:
        raise InputError(
            f"{path}: found {len(numbers)} lines, expected the row of each caption's image, from "
            f"0, one per line, for {num_captions} captions: write it again for these captions, or "
            "remove it if the captions are in order, the same number for every image"
        )
    wrong = np.flatnonzero((numbers < 0) | (numbers >= num_images))
    if len(wrong):
        raise InputError(
            f"{path}: line {wrong[0] + 1} is {numbers[wrong[0]]}, expected a row from 0 to "
            f"{num_images - 1}, because the features have {num_images} rows: write the file again "
            "for these features"
        )
    without = np.flatnonzero(np.bincount(numbers, minlength=num_images) == 0)
    if len(without):
        raise InputError(
            f"{path}: {len(without)} images have no caption, the first is row {without[0]} (from "
            "0), expected at least one for every row: store every image once, and leave out images "
            "without captions"
        )
    return numbers


def _read_numbers(path: Path) -> np.ndarray:
    lines = read_lines(path, "the row of a caption's image")
    lines = without_blank_end(lines, lambda count: bool(lines[count - 1]))
    for number, line in enumerate(lines, 1):
        if not (line.isascii() and line.isdigit() and len(line) < 19):
            raise InputError(
                f"{path}: line {number} is {line[:40]!r}, expected a whole number: the row of a "
                "caption's image, from 0"
            )
    return np.array(lines, dtype=np.int64)

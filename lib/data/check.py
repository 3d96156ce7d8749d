"""Check a data folder: the contents of each split, what splits have in common, and what to fix.

    python -m lib.data check data/f30k_precomp

Every value is read once, in blocks, so files may be larger than the memory.
"""

# N images, M rows that are read, R regions, D region feature size

import argparse
import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..system.console import one_line, write_line
from ..system.errors import InputError
from ..system.options import COUNT
from . import caption_forms
from .layout import (
    describe_missing_dev,
    find_splits,
    read_lines,
    read_num_regions,
    unfinished_conversion,
)
from .pairing import drop_blank_end, find_pairing, ids_of_images
from .region_file import RegionFile

BLOCK_BYTES = 32e6  # read at once
HUGE = 1e4  # larger than features of any detector or backbone; bottom-up-attention stays below 100


def add_command(commands: Any) -> None:  # argparse._SubParsersAction
    """Add `check` to the commands of lib/data/__main__.py."""
    parser = commands.add_parser(
        "check", description=str(__doc__).split("\n\n")[0], help="check a data folder"
    )
    parser.add_argument("folder", type=Path, help="such as data/f30k_precomp")
    parser.add_argument(
        "--sample", type=COUNT, help="read the features of only this many images of each split"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the report. The exit status is 1 if there is something to fix."""
    report = check(options.folder, options.sample)
    write_line(str(report))
    if report.fixes:
        sys.exit(1)


class Report:
    """Result of a check: lines that describe the folder, and fixes.

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
            [*self.lines, *(["", f"to mend: {len(fixes)}", *fixes] if fixes else ["OK"])]
        )


class Contents(NamedTuple):
    """Contents of a split that are compared with other splits.

    region_dim: 0 if unknown; images: number of each image, by the digest of its features.
    """

    region_dim: int
    images: dict[bytes, int]
    ids: list[str]
    captions: list[str]


class Rows(NamedTuple):
    """Properties of M rows.

    numbers: (M,); lowest, highest: (M,) values; filled: (M,) number of regions up to the last one
    that is not all zeros; digests: M hashes of the features.
    """

    numbers: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    filled: np.ndarray
    digests: list[bytes]


def check(folder: Path | str, sample: int | None = None) -> Report:
    """Check a data folder. With `sample`, read the features of only so many images per split.

    Raises InputError if the folder has no split.
    """
    folder, report = Path(folder), Report()
    contents: dict[str, Contents] = {}
    for split in find_splits(folder):
        contents[split] = _check_split(report, folder, split, sample)
    report.lines += filter(None, [describe_missing_dev(contents)])
    report.fixes += filter(None, [unfinished_conversion(folder)])
    _check_dims(report, folder, contents)
    for pair in itertools.combinations(contents, 2):
        _compare(report, folder, contents, *pair, compare_images=not sample)
    return report


def _check_split(report: Report, folder: Path, split: str, sample: int | None) -> Contents:
    regions_path, captions_path, ids_path = (
        folder / f"{split}_{end}" for end in ("ims.npy", "caps.txt", "ids.txt")
    )
    regions = report.attempt(RegionFile, regions_path)
    captions = report.attempt(read_lines, captions_path)
    ids = report.attempt(read_lines, ids_path, "an image id") if os.path.lexists(ids_path) else None
    notes: list[str | None] = []
    pairing = None
    if regions is not None and captions is not None:
        captions, note = report.attempt(drop_blank_end, folder, split, captions, len(regions)) or (
            captions,
            None,
        )
        notes.append(note)
    report.lines.append(f"{split}: {_size(regions)}, {len(captions or ())} captions")
    shape, images = (0, 0, 0), {}
    if regions is not None:
        shape = regions.shape
        if captions is not None:
            pairing = report.attempt(find_pairing, folder, split, regions, len(captions))
        images = _check_images(
            report, regions_path, shape, pairing.rows_per_image if pairing else 1, sample
        )
    if pairing:
        report.lines.append(f"  pairs     {pairing.count_text()} ({pairing.source})")
        notes += pairing.notes
    report.lines += [f"  note      {note}" for note in notes if note]
    if captions is not None:
        _check_captions(report, captions_path, captions)
    return Contents(shape[2], images, _check_ids(report, ids_path, ids, pairing), captions or [])


def _size(regions):
    if regions is None:
        return "no features that can be read"
    rows, num_regions, dim = regions.shape
    return (
        f"{rows} rows x {num_regions} regions x {dim} features ({regions.dtype}, "
        f"{regions.nbytes / 1e6:.1f} MB)"
    )


def _check_images(report, path, shape, rows_per_image, sample):
    num_images = shape[0] // rows_per_image
    num_read = min(sample or num_images, num_images)
    # all of them, or evenly spaced
    which = np.linspace(0, num_images - 1, num_read).astype(np.int64)
    rows = read_rows(path, (which[:, None] * rows_per_image + np.arange(rows_per_image)).flatten())
    _check_repeated(report, path, rows.digests, which, rows_per_image)
    images = dict(zip(rows.digests[::rows_per_image], which.tolist()))
    copies = num_read - len(images)
    repeated = f"each {rows_per_image} times" if rows_per_image > 1 else "a row each"
    report.lines.append(
        f"  images    {num_images}, {repeated}; {copies or 'none'} with the features of another"
    )
    _check_values(report, path, rows, shape[0])
    _check_num_regions(report, path, rows, shape)
    return images


def read_rows(path: Path, numbers: np.ndarray) -> Rows:
    """Read these rows of a file of region features, in blocks."""
    regions = RegionFile(path)
    row_bytes = regions.nbytes // len(regions)
    at_once = max(1, int(BLOCK_BYTES // row_bytes))
    blocks = []
    with tqdm(
        total=len(numbers) * row_bytes,
        desc=one_line(path.name),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    ) as progress:
        for start in range(0, len(numbers), at_once):
            regions.check_unchanged()
            block = np.stack(
                [regions.read(row) for row in numbers[start : start + at_once]]
            ).astype("<f4", copy=False)
            is_filled = block.any(axis=2)  # (n, R)
            filled = np.where(
                is_filled.any(axis=1), block.shape[1] - is_filled[:, ::-1].argmax(axis=1), 0
            )
            hashes = [hashlib.sha256(row).digest() for row in block]
            blocks.append((block.min(axis=(1, 2)), block.max(axis=(1, 2)), filled, hashes))
            progress.update(block.nbytes)
    lowest, highest, filled = (np.concatenate([block[n] for block in blocks]) for n in range(3))
    return Rows(numbers, lowest, highest, filled, [row for block in blocks for row in block[3]])


def _check_repeated(report, path, digests, which, rows_per_image):
    groups = [
        set(digests[start : start + rows_per_image])
        for start in range(0, len(digests), rows_per_image)
    ]
    differing = [
        int(image) * rows_per_image for image, group in zip(which, groups) if len(group) > 1
    ]
    if differing:
        report.fixes.append(
            f"{path}: each image stands there {rows_per_image} times, but rows differ for "
            f"{some(differing, 'images', 'rows')}, expected the same row {rows_per_image} times: "
            "store every image once; now the first row of each is used"
        )


def _check_values(report, path, rows, num_rows):
    is_finite = np.isfinite(rows.lowest) & np.isfinite(rows.highest)
    found = (
        f"{rows.lowest[is_finite].min():.4g} to {rows.highest[is_finite].max():.4g}"
        if is_finite.any()
        else "none"
    )
    with np.errstate(invalid="ignore"):
        is_huge = is_finite & (np.maximum(rows.highest, -rows.lowest) > HUGE)
        num_negative = int((rows.lowest < 0).sum())
    negative = (
        f"negative in {num_negative} rows (bottom-up-attention has none)"
        if num_negative
        else "none negative"
    )
    read = (
        "all rows read"
        if len(rows.numbers) == num_rows
        else f"{len(rows.numbers)} of {num_rows} rows read"
    )
    report.lines.append(
        f"  values    {found}, {negative}, {'finite' if is_finite.all() else 'NaN or Inf'}; {read}"
    )
    if not is_finite.all():
        report.fixes.append(
            f"{path}: NaN or Inf in {some(rows.numbers[~is_finite], 'rows')}, expected finite "
            "features: extract these images again"
        )
    if is_huge.any():
        report.fixes.append(
            f"{path}: values beyond {HUGE:.0f} in {some(rows.numbers[is_huge], 'rows')}, expected "
            "features of ordinary size: extract these images again, or scale all features alike"
        )
    if not rows.filled.all():
        report.fixes.append(
            f"{path}: only zeros in {some(rows.numbers[rows.filled == 0], 'rows')}, expected "
            "features: extract these images again"
        )


def _check_num_regions(report, path, rows, shape):
    counts_path = path.with_name(path.name.replace("_ims.npy", "_num_regions.npy"))
    counts = report.attempt(read_num_regions, counts_path, *shape[:2])
    if counts is None:
        return
    counts = counts[rows.numbers]
    spread: str = (
        f"{counts.min()} to {counts.max()}, mean {counts.mean():.1f}"
        if np.ptp(counts)
        else f"{counts[0]}"
    )
    source = counts_path.name if counts_path.exists() else f"no {counts_path.name}: none is padding"
    report.lines.append(f"  regions   {spread} an image ({source})")
    junk = rows.numbers[rows.filled > counts]
    padded = rows.numbers[(0 < rows.filled) & (rows.filled < counts)]
    if len(junk):
        report.fixes.append(
            f"{path}: regions that are not zero beyond the counts of {counts_path.name} in "
            f"{some(junk, 'rows')}, expected zeros: one of the two files is of other data, make "
            "both again"
        )
    if len(padded):
        report.fixes.append(
            f"{path}: the last regions are all zeros in {some(padded, 'rows')}, expected true "
            f"regions: say how many are true in {counts_path.name} (int32, one a row)"
        )


def _check_captions(report, path, captions):
    words = [len(caption.split()) for caption in captions] or [0]
    blank = [number for number, caption in enumerate(captions, 1) if not caption]
    report.lines.append(
        f"  captions  {min(words)} to {max(words)} words, mean {sum(words) / len(words):.1f}; "
        f"{len(set(captions))} different texts; {len(blank) or 'none'} blank"
    )
    if blank:
        report.fixes.append(
            f"{path}: {some(blank, 'blank captions', 'lines', counted_from=1)}, expected a "
            "caption a line: write captions there, or take out these images everywhere"
        )
    report.fixes += filter(None, [caption_forms.warning(path, captions)])


def _check_ids(report, path, ids, pairing):
    """Returns the id of each image. ids, pairing: None if they are unknown."""
    if ids is None:
        report.lines.append("  ids       none (optional)")
        return []
    num_lines = len(ids)
    if pairing:
        ids = report.attempt(ids_of_images, path, ids, pairing)
        if ids is None:
            return []
    repeated = [text for text, count in Counter(ids).items() if count > 1]
    report.lines.append(
        f"  ids       {len(ids)}, "
        f"{f'{len(repeated)} of them repeated' if repeated else 'all different'}"
        + (f" ({num_lines} lines, a line a caption)" if len(ids) < num_lines else "")
    )
    if pairing and len(ids) != pairing.num_images:
        report.fixes.append(
            f"{path}: found {len(ids)} ids for {pairing.num_images} images, expected an id a "
            "line, in the images' order: write the file again or remove it, it is optional"
        )
    elif repeated:
        report.fixes.append(
            f"{path}: {some(repeated, 'ids', 'ids')} stand for several images, expected one for "
            "each: take out images that are there twice, or number them anew"
        )
    return ids


def _check_dims(report, folder, contents):
    dims = {split: found.region_dim for split, found in contents.items() if found.region_dim}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{dim} in {split}_ims.npy" for split, dim in dims.items())
        report.fixes.append(
            f"{folder}: features of different sizes, {found}; expected one size: extract them alike"
        )


def _compare(report, folder, contents, left, right, compare_images):
    """Report what two splits have in common. Only test may be a part of testall."""
    a, b = contents[left], contents[right]
    images = (
        [row for digest, row in a.images.items() if digest in b.images] if compare_images else []
    )
    ids = sorted(set(a.ids) & set(b.ids))
    counts = f"{len(images) if compare_images else 'not compared'} images", f"{len(ids)} ids"
    texts = len(set(a.captions) & set(b.captions))
    report.lines.append(
        f"{left} and {right} have in common: {', '.join(counts)}, {texts} caption texts"
    )
    if {left, right} == {"test", "testall"}:
        return
    if images:
        report.fixes.append(
            f"{folder}/{left}_ims.npy: {some(images, 'images', 'images')} are in {right}_ims.npy "
            "too, expected splits without common images: take them out of one of the two, with "
            "their captions"
        )
    if ids:
        report.fixes.append(
            f"{folder}/{left}_ids.txt: {some(ids, 'ids', 'ids')} are in {right}_ids.txt too, "
            "expected splits without common images: take them out of one of the two, or number "
            "the ids through all splits"
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

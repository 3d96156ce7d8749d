"""Check the region features of a split: its repeated rows, its values and its padding.

Every value is read once, in blocks, so files may be larger than the memory.
"""

# M rows that are read, R regions, D region feature size

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..system.console import one_line
from .check_report import Report, some
from .layout import read_num_regions
from .region_file import RegionFile

BLOCK_BYTES = 32e6  # that are read at once
HUGE = 1e4  # larger than features of any detector or backbone; bottom-up-attention stays below 100


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


def check_images(
    report: Report,
    path: Path,
    shape: tuple[int, int, int],
    rows_per_image: int,
    sample: int | None = None,
) -> dict[bytes, int]:
    """Check a file of region features of shape (rows, R, D), and add what is found to the report.

    sample: number of images to read, evenly spaced, by default all. Returns the number of each
    image, by the digest of its features.
    """
    num_images = shape[0] // rows_per_image
    num_read = min(sample or num_images, num_images)
    which = np.linspace(0, num_images - 1, num_read).astype(np.int64)
    rows = read_rows(path, (which[:, None] * rows_per_image + np.arange(rows_per_image)).flatten())
    _check_repeated(report, path, rows.digests, which, rows_per_image)
    images = dict(zip(rows.digests[::rows_per_image], which.tolist()))
    copies = num_read - len(images)
    repeated = f"each {rows_per_image} times" if rows_per_image > 1 else "one row each"
    duplicates = f"{copies or 'no'} duplicate{'' if copies == 1 else 's'}"
    report.lines.append(f"  images    {num_images}, {repeated}; {duplicates}")
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
            which = numbers[start : start + at_once]
            block = np.stack([regions.read(row) for row in which]).astype("<f4", copy=False)
            blocks.append(_describe_rows(which, block))
            progress.update(block.nbytes)
    lowest, highest, filled = (np.concatenate([block[n] for block in blocks]) for n in (1, 2, 3))
    digests = [digest for block in blocks for digest in block.digests]
    return Rows(numbers, lowest, highest, filled, digests)


def _describe_rows(numbers: np.ndarray, block: np.ndarray) -> Rows:
    """The `Rows` of features that were read. block: (n, R, D)."""
    is_filled = np.asarray(block.any(axis=2))  # (n, R)
    filled = np.where(is_filled.any(axis=1), block.shape[1] - is_filled[:, ::-1].argmax(axis=1), 0)
    digests = [hashlib.sha256(row).digest() for row in block]
    return Rows(numbers, block.min(axis=(1, 2)), block.max(axis=(1, 2)), filled, digests)


def _check_repeated(
    report: Report, path: Path, digests: list[bytes], which: np.ndarray, rows_per_image: int
) -> None:
    """Check that all rows of each image are equal. which: numbers of the images that were read."""
    groups = [
        set(digests[start : start + rows_per_image])
        for start in range(0, len(digests), rows_per_image)
    ]
    differing = [
        int(image) * rows_per_image for image, group in zip(which, groups) if len(group) > 1
    ]
    if differing:
        report.fixes.append(
            f"{path}: each image is stored {rows_per_image} times, but rows differ for "
            f"{some(differing, 'images', 'rows')}, expected {rows_per_image} equal rows per image: "
            "store every image once; at present, the first row of each is used"
        )


def _check_values(report: Report, path: Path, rows: Rows, num_rows: int) -> None:
    """Check that values are finite, not huge, and not all zeros."""
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
            f"{path}: found NaN or Inf in {some(rows.numbers[~is_finite], 'rows')}, expected "
            "finite features: extract these images again"
        )
    if is_huge.any():
        report.fixes.append(
            f"{path}: found values beyond {HUGE:.0f} in {some(rows.numbers[is_huge], 'rows')}, "
            "expected features of the usual size: extract these images again, or rescale all "
            "features"
        )
    if not rows.filled.all():
        report.fixes.append(
            f"{path}: found only zeros in {some(rows.numbers[rows.filled == 0], 'rows')}, expected "
            "features: extract these images again"
        )


def _check_num_regions(report: Report, path: Path, rows: Rows, shape: tuple[int, int, int]) -> None:
    """Check that the counts of true regions, if there are any, agree with the features."""
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
    source = counts_path.name if counts_path.exists() else f"no {counts_path.name}: no padding"
    report.lines.append(f"  regions   {spread} per image ({source})")
    junk = rows.numbers[rows.filled > counts]
    padded = rows.numbers[(0 < rows.filled) & (rows.filled < counts)]
    if len(junk):
        report.fixes.append(
            f"{path}: found nonzero regions beyond the counts of {counts_path.name} in "
            f"{some(junk, 'rows')}, expected zeros: the two files do not belong together, create "
            "both again"
        )
    if len(padded):
        report.fixes.append(
            f"{path}: the last regions are all zeros in {some(padded, 'rows')}, expected true "
            f"regions: write the number of true regions into {counts_path.name} (int32, one per "
            "row)"
        )

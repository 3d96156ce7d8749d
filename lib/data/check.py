"""Check a data folder: the contents of each split, what splits have in common, and what to fix.

python -m lib.data check data/f30k_precomp
"""

import argparse
import itertools
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..system.console import write_line
from ..system.options import COUNT
from . import caption_forms
from .check_report import Report, some
from .feature_checks import check_images
from .layout import (
    BOXES,
    describe_missing_dev,
    find_splits,
    read_boxes,
    read_lines,
    unfinished_conversion,
)
from .pairing import Pairing, drop_blank_end, find_pairing, ids_of_images
from .region_file import RegionFile


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


class Contents(NamedTuple):
    """Contents of a split that are compared with other splits.

    region_dim: 0 if unknown; images: number of each image, by the digest of its features.
    """

    region_dim: int
    images: dict[bytes, int]
    ids: list[str]
    captions: list[str]


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
        images = check_images(
            report, regions_path, shape, pairing.rows_per_image if pairing else 1, sample
        )
        _check_boxes(report, folder / f"{split}_{BOXES}", shape)
    if pairing:
        report.lines.append(f"  pairs     {pairing.count_text()} ({pairing.source})")
        notes += pairing.notes
    report.lines += [f"  note      {note}" for note in notes if note]
    if captions is not None:
        _check_captions(report, captions_path, captions)
    return Contents(shape[2], images, _check_ids(report, ids_path, ids, pairing), captions or [])


def _check_boxes(report: Report, path: Path, shape: tuple[int, ...]) -> None:
    """Check the optional boxes. shape: of the region features."""
    boxes = report.attempt(read_boxes, path, *shape[:2])
    if boxes is not None:
        report.lines.append(f"  boxes     one per region ({path.name}); they are only drawn")


def _size(regions: RegionFile | None) -> str:
    if regions is None:
        return "no features that can be read"
    rows, num_regions, dim = regions.shape
    return (
        f"{rows} rows x {num_regions} regions x {dim} features ({regions.dtype}, "
        f"{regions.nbytes / 1e6:.1f} MB)"
    )


def _check_captions(report: Report, path: Path, captions: list[str]) -> None:
    words = [len(caption.split()) for caption in captions] or [0]
    blank = [number for number, caption in enumerate(captions, 1) if not caption]
    report.lines.append(
        f"  captions  {min(words)} to {max(words)} words, mean {sum(words) / len(words):.1f}; "
        f"{len(set(captions))} different texts; {len(blank) or 'none'} blank"
    )
    if blank:
        report.fixes.append(
            f"{path}: found {some(blank, 'blank captions', 'lines', counted_from=1)}, expected a "
            "caption in every line: write captions there, or remove these images from all files"
        )
    report.fixes += filter(None, [caption_forms.warning(path, captions)])


def _check_ids(
    report: Report, path: Path, ids: list[str] | None, pairing: Pairing | None
) -> list[str]:
    """Check the ids of a split, and return the id of each image.

    ids, pairing: None if they are unknown.
    """
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
        + (f" ({num_lines} lines, one per caption)" if len(ids) < num_lines else "")
    )
    if pairing and len(ids) != pairing.num_images:
        report.fixes.append(
            f"{path}: found {len(ids)} ids for {pairing.num_images} images, expected one id per "
            "line, in the order of the images: write the file again, or remove it (it is optional)"
        )
    elif repeated:
        report.fixes.append(
            f"{path}: {some(repeated, 'ids', 'ids')} stand for several images, expected a "
            "different id for each: remove images that are stored twice, or number them again"
        )
    return ids


def _check_dims(report: Report, folder: Path, contents: Mapping[str, Contents]) -> None:
    dims = {split: found.region_dim for split, found in contents.items() if found.region_dim}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{dim} in {split}_ims.npy" for split, dim in dims.items())
        report.fixes.append(
            f"{folder}: splits have features of different sizes (found {found}), expected one "
            "size: extract all of them with the same model"
        )


def _compare(
    report: Report,
    folder: Path,
    contents: Mapping[str, Contents],
    left: str,
    right: str,
    compare_images: bool,
) -> None:
    """Report what two splits have in common. Only testall may contain images of test."""
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
            f"{folder}/{left}_ims.npy: {some(images, 'images', 'images')} are also in "
            f"{right}_ims.npy, expected splits without common images: remove them from one of the "
            "two, with their captions"
        )
    if ids:
        report.fixes.append(
            f"{folder}/{left}_ids.txt: {some(ids, 'ids', 'ids')} are also in {right}_ids.txt, "
            "expected splits without common images: remove them from one of the two, or number "
            "the images of all splits consecutively"
        )

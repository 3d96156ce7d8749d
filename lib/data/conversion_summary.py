"""Print how a conversion used its inputs."""

# R regions, D region feature size

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..system.console import one_line, write_line
from . import conversion, karpathy, matching, tsv
from .layout import BOXES, COUNTS, SPLITS, describe_missing_dev
from .work_folder import Shape


def print_matching(matched: matching.Matched, index: tsv.Index) -> None:
    """Print how the images were matched, and warn if their names look like running numbers."""
    example = one_line(matched.lines[0][0].name)
    write_line(
        f"matched by {matched.field}: {len(matched.lines)} images, such as line '{example}' "
        f"(images of the JSON that each field finds: {matching.describe_counts(matched.counts)})"
    )
    names = {line.name for line in index.lines.values()}
    first = next(
        (first for first in (0, 1) if names == {str(first + n) for n in range(len(names))}), None
    )
    if first is not None and matched.field != "imgid":
        write_line(
            f"warning: the names in the TSV files are the numbers from {first} on; if that is not "
            f"how the images are named ({matched.field}), every image gets the features of another "
            "one: extract them under their file names"
        )


def print_summary(
    given: dict[str, list[karpathy.Image]],
    splits: dict[str, list[karpathy.Image]],
    matched: matching.Matched,
    shape: Shape,
    dtype: str,
    index: tsv.Index,
) -> None:
    """Print how the inputs were used.

    given: the splits with all their captions; shape: of the arrays.
    """
    for split, images in splits.items():
        counts = {len(image.captions) for image in images}
        several = f", {min(counts)} to {max(counts)} per image" if len(counts) > 1 else ""
        num_captions = sum(len(image.captions) for image in images)
        dropped = sum(len(image.captions) for image in given[split]) - num_captions
        more = f"; {dropped} more were dropped, --captions_per_image 0 keeps all" if dropped else ""
        write_line(f"{split}: {len(images)} images, {num_captions} captions{several}{more}")
    if without := describe_missing_dev(splits):
        write_line(f"{without} (the JSON contains no image of val)")
    boxes = np.array([line.num_boxes for line, _ in matched.lines])
    num_regions, dim = shape.num_regions, shape.dim
    write_line(
        f"{len(boxes)} images of {boxes.min()} to {boxes.max()} regions x {dim} features "
        f"({dtype}): {(boxes > num_regions).sum()} truncated to their first {num_regions} regions, "
        f"{(boxes < num_regions).sum()} padded with zero rows"
    )
    write_line(
        f"not used: {len(index.lines) - len(boxes)} images not in the JSON, {index.num_repeated} "
        "lines that repeat an image"
    )


def print_boxes(
    work: Path, splits: Collection[str], matched: matching.Matched, shape: Shape
) -> None:
    """Print whether boxes were kept, and warn if some do not lie in their pictures."""
    if not shape.with_boxes:
        line = next(line for line, _ in matched.lines if not line.has_boxes)
        what = "image_w and image_h" if line.box_bytes else "boxes"
        write_line(f"boxes: not kept, because {line.where} has no {what}")
        return
    strange = []
    for split in splits:
        boxes = np.load(work / f"{split}_{BOXES}", mmap_mode="r", allow_pickle=False)
        counts = np.load(work / f"{split}_{COUNTS}", allow_pickle=False)
        strange += [
            f"image {image} of {split}"
            for image, count in enumerate(counts)
            if not _lie_in_picture(boxes[image, :count])
        ]
    write_line("boxes: kept, as fractions of the width and height of each picture")
    if strange:
        write_line(
            f"warning: boxes of {len(strange)} images do not lie in their pictures, such as "
            f"{strange[0]} (from 0); expected left, top, right and bottom in pixels: boxes that "
            "are drawn may be wrong"
        )


def _lie_in_picture(boxes: np.ndarray) -> bool:
    """Whether (n, 4) fractions are boxes in a picture, up to rounding."""
    inside = ((boxes >= -0.01) & (boxes <= 1.01)).all()  # false for NaN
    return bool(inside and (boxes[:, :2] <= boxes[:, 2:]).all())


def print_other_splits(
    out: Path, splits: Collection[str], source: str = "the JSON contains"
) -> None:
    """Print which splits in `out` are not written by the conversion. source: of the images."""
    others = [
        split for split in SPLITS if split not in splits and conversion.find_files(out, [split])
    ]
    if others:
        write_line(
            f"not changed: files of {', '.join(others)} in {out}, of which {source} no image"
        )

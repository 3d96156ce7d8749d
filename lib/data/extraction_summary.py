"""Print what an extraction found and made."""

from collections.abc import Mapping, Sequence

from ..system.console import one_line, write_line
from .conversion import Named
from .extraction_record import Record
from .karpathy import few
from .layout import describe_missing_dev
from .picture_files import PictureFile, find_copies
from .picture_splits import Matched


def print_copies(splits: Mapping[str, Sequence[Matched]], files: Mapping[str, PictureFile]) -> None:
    """Name pictures with the same bytes, and warn if they are in different splits."""
    paths = {picture.path for pictures in splits.values() for picture in pictures}
    owners = {  # test is part of testall
        picture.path: split.removesuffix("all")
        for split, pictures in splits.items()
        for picture in pictures
    }
    for group in find_copies(sorted(paths), files):
        where = sorted({owners[path] for path in group})
        warning = "warning: " * (len(where) > 1)
        more = f", in {' and '.join(where)}" if warning else ""
        write_line(f"{warning}the same picture {len(group)} times: {few(group)}{more}")


def print_summary(named: Mapping[str, Sequence[Named]], record: Record) -> None:
    """Print what was extracted."""
    for split, pictures in named.items():
        counts = [len(picture.captions) for picture in pictures]
        several = f", {min(counts)} to {max(counts)} per image" if len({*counts}) > 1 else ""
        write_line(f"{split}: {len(pictures)} images, {sum(counts)} captions{several}")
    if without := describe_missing_dev(named):
        write_line(without)
    height, width = record["grid"]
    write_line(
        f"{height * width} regions ({height} x {width}) x {record['region_dim']} features of "
        f"{one_line(record['model'])}"
    )

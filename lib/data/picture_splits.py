"""Match captions with pictures, and divide pictures into splits."""

# N pictures

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..system.console import one_line, write_line
from ..system.errors import InputError
from .conversion import Named
from .karpathy import few
from .layout import SPLITS
from .picture_captions import Captioned, CaptionFile
from .picture_files import PictureFile, PictureIndex

RANDOM_SPLITS = "train", "dev", "test"


class Matched(NamedTuple):
    """A picture with captions. path: relative to the folder of pictures."""

    path: str
    captioned: Captioned


def split_shares(text: str) -> tuple[float, ...]:
    """An argparse type: shares of train, dev and test such as 80/10/10, which add up to anything.
    Returns fractions."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(0 <= share < float("inf") for share in shares) or shares[0] == 0:
        raise argparse.ArgumentTypeError(
            f"not shares of train, dev and test (found {text!r:.60}, expected three numbers such "
            "as 80/10/10, the first above 0)"
        )
    return tuple(share / sum(shares) for share in shares)


def match(captions: CaptionFile, index: PictureIndex, path: Path) -> list[Matched]:
    """Match captions with pictures, and print what does not match. Raises InputError if nothing
    matches, or if two names lead to one picture. path: of the captions, for messages."""
    found = [(picture, index.find(picture.name)) for picture in captions.pictures]
    unknown = [picture.name for picture, file in found if file is None]
    if len(unknown) == len(found):
        raise InputError(
            f"{path}: its names are no pictures (found {few(unknown)}, expected names such as "
            f"{few(index.paths)} in {index.folder}). Give another --images or --captions"
        )
    blank = [picture.name for picture, file in found if file and not picture.captions]
    matched = [
        Matched(file, picture) for picture, file in found if file is not None and picture.captions
    ]
    names: dict[tuple[str, str | None], str] = {}
    for file, picture in matched:
        other = names.setdefault((file, picture.split), picture.name)
        if other != picture.name:
            raise InputError(
                f"{path}: {one_line(other)} and {one_line(picture.name)} are the same picture "
                f"(found {file}, expected one name for it). Write the path below {index.folder}"
            )
    if captions.num_blank:
        write_line(f"left out: {captions.num_blank} blank captions in {path}")
    _print_left_out("names in the captions that are no picture", unknown)
    _print_left_out("pictures whose captions are all blank", blank)
    captioned = {file for _, file in found}
    _print_left_out(
        "pictures without a caption", [name for name in index.paths if name not in captioned]
    )
    if not matched:
        raise InputError(f"{path}: no picture has a caption, expected some. Give another file")
    return matched


def _print_left_out(what: str, names: Sequence[str]) -> None:
    if names:
        write_line(f"left out: {len(names)} {what}, such as {few(names)}")


def choose_split_names(
    captions: CaptionFile, shares: Sequence[float] | None, path: Path
) -> list[str]:
    """The splits that will be written. shares: of --split, or None. Raises InputError unless
    exactly one of the captions and --split says the splits."""
    if captions.has_splits and shares is not None:
        raise InputError(
            f"--split: {path} already says the split of each picture (found both, expected one of "
            "them). Leave out --split, or remove the splits from the captions"
        )
    if not captions.has_splits and shares is None:
        raise InputError(
            f"{path}: says no split (found no column 'split', expected one). Add the column, or "
            "divide the pictures at random: --split 80/10/10 --seed 0"
        )
    if shares is not None:
        return [split for split, share in zip(RANDOM_SPLITS, shares) if share]
    named = {picture.split for picture in captions.pictures}
    return [split for split in SPLITS if split in named]


def divide(
    matched: Sequence[Matched],
    files: Mapping[str, PictureFile],
    shares: Sequence[float] | None,
    seed: int,
) -> dict[str, list[Matched]]:
    """Pictures by split, in the order of the captions. Raises InputError if there are too few.

    With `shares`, a random division that depends on the bytes of the pictures and the seed only;
    copies of a picture stay together.
    """
    if shares is None:
        given = [picture.captioned.split for picture in matched]
    else:
        digests = sorted({files[picture.path].digest for picture in matched})
        chosen = dict(zip(digests, _random_splits(len(digests), shares, seed)))
        given = [chosen[files[picture.path].digest] for picture in matched]
    splits = {
        split: [picture for picture, own in zip(matched, given) if own == split] for split in SPLITS
    }
    return {split: pictures for split, pictures in splits.items() if pictures}


def _random_splits(count: int, shares: Sequence[float], seed: int) -> list[str]:
    """A random split for each of `count` pictures. Raises InputError if one would be empty."""
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    sizes = np.diff(ends, prepend=0)
    empty = [
        split for split, size, share in zip(RANDOM_SPLITS, sizes, shares) if share and not size
    ]
    if empty:
        raise InputError(
            f"--split: no picture for {empty[0]} (found {count} different pictures, expected "
            "enough for each split). Give another share, or more pictures"
        )
    names = np.repeat(RANDOM_SPLITS, sizes)
    return np.random.default_rng(seed).permutation(names).tolist()


def name_pictures(splits: Mapping[str, Sequence[Matched]]) -> dict[str, list[Named]]:
    """The id and the captions of each picture, by split.

    The id is the one that the captions give, or the name of the file without its ending; where
    several files have this name, it is the path.
    """
    paths = {picture.path for pictures in splits.values() for picture in pictures}
    ids = _unique_names(sorted(paths))
    return {
        split: [
            Named(captioned.id or ids[path], captioned.captions) for path, captioned in pictures
        ]
        for split, pictures in splits.items()
    }


def _unique_names(paths: Iterable[str]) -> dict[str, str]:
    """A different name for each path: the shortest kind of name that no other path has."""
    paths = list(paths)
    kinds = [
        [Path(path).stem for path in paths],
        [Path(path).with_suffix("").as_posix() for path in paths],
        paths,
    ]
    counts = [Counter(names) for names in kinds]
    return {
        path: next(names[row] for names, count in zip(kinds, counts) if count[names[row]] == 1)
        for row, path in enumerate(paths)
    }

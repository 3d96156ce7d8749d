"""Find and read the files of a data folder (docs/method.md, section 1).

Each InputError names the file, what was found, what was expected, and the remedy.
"""

# R regions, D region feature size

import os
import tokenize
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable

SPLITS = ("train", "dev", "test", "testall")
# entries of a conversion in a data folder: its work folder, and its list of files to move
WORK, SWITCH = ".conversion", ".converted"
EXTRACTION = "extraction.json"  # how `extract` made the features (lib/data/extraction_record.py)
# endings of the files of a split
REGIONS, COUNTS, CAPTIONS, IDS, MAP, BOXES, PICTURE_SIZES = (
    "ims.npy",
    "num_regions.npy",
    "caps.txt",
    "ids.txt",
    "caps_images.txt",
    "boxes.npy",
    "picture_sizes.npy",
)
ENDS = (REGIONS, COUNTS, CAPTIONS, IDS, MAP, BOXES, PICTURE_SIZES)
DAMAGED = (  # exceptions that numpy raises for damaged files
    ValueError, TypeError, OverflowError, EOFError, OSError, SyntaxError, tokenize.TokenError,
    zipfile.BadZipFile,
)  # fmt: skip


def find_splits(folder: Path) -> list[str]:
    """Names of the splits of a folder, those of SPLITS first. Raises InputError if it has none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder such as data/f30k_precomp")
    refuse_unfinished_switch(folder)
    names = {
        file.name.removesuffix(end)
        for end in ("_ims.npy", "_caps.txt")
        for file in folder.glob(f"*{end}")
    }
    begun = unfinished_conversion(folder)
    if not names and begun:
        raise InputError(
            f"{folder}: found no split, expected those of a finished conversion: {begun}"
        )
    if not names:
        raise InputError(
            f"{folder}: found no split, expected files such as train_ims.npy and train_caps.txt; "
            "data/README.md lists them"
        )
    return [*(split for split in SPLITS if split in names), *sorted(names.difference(SPLITS))]


def split_file_names(splits: Iterable[str]) -> list[str]:
    """Sorted names of all files of these splits, including optional files."""
    return sorted(f"{split}_{end}" for split in splits for end in ENDS)


def unfinished_conversion(folder: Path) -> str | None:
    """Describe an unfinished conversion in a data folder and the remedy; None if there is none."""
    work = folder / WORK
    if not os.path.lexists(work):
        return None
    return (
        f"{work} contains an unfinished conversion; run the same "
        "command again, or remove this folder"
    )


def unfinished_switch(folder: Path) -> bool:
    """Whether a conversion is moving its files into place, or was stopped while it did.

    The folder may then hold files of two conversions.
    """
    return os.path.lexists(folder / SWITCH)


def refuse_unfinished_switch(folder: Path) -> None:
    """Raise InputError if convert has not finished moving its files into place."""
    if unfinished_switch(folder):
        raise InputError(
            f"{folder}: a conversion is moving its files, or was stopped meanwhile (found "
            f"{SWITCH}), expected the files of one conversion; run the same command again to "
            "finish the move"
        )


def describe_missing_dev(splits: Collection[str]) -> str | None:
    """Note that training on these splits needs --val_split; None if "dev" is among them."""
    if "dev" in splits or "train" not in splits:
        return None
    other = next((split for split in splits if split != "train"), "SPLIT")
    return f"no dev split: training needs --val_split {other}"


def read_num_regions(path: Path, num_rows: int, num_regions: int) -> np.ndarray:
    """Read the number of true regions of each row, (rows,); all R if the file does not exist.

    Raises InputError if it does not fit an array of `num_rows` rows x `num_regions` regions.
    """
    expected = f"a whole number from 1 to {num_regions} for each of the {num_rows} rows"
    remedy = "without this file all regions count as true"
    counts = _optional_array(path, "iu", (num_rows,), expected, remedy)
    if counts is None:
        return np.full(num_rows, num_regions)
    wrong = np.flatnonzero((counts < 1) | (counts > num_regions))
    if len(wrong):
        raise InputError(
            f"{path}: found {counts[wrong[0]]} regions for row {wrong[0]} (from 0), expected "
            f"{expected}; {remedy}"
        )
    return counts.astype(np.int64)


def read_boxes(path: Path, num_rows: int, num_regions: int) -> np.ndarray | None:
    """Read the boxes of each row, (rows, R, 4): left, top, right, bottom as fractions of the width
    and height of the picture; None if the file does not exist.

    Raises InputError if it does not fit an array of `num_rows` rows x `num_regions` regions. The
    values are not checked: training does not use them.
    """
    shape = num_rows, num_regions, 4
    remedy = "boxes are only drawn, so you can remove this file"
    return _optional_array(path, "fiu", shape, f"numbers of shape {shape}", remedy, mmap_mode="r")


def _optional_array(
    path: Path,
    kinds: str,
    shape: tuple[int, ...],
    expected: str,
    remedy: str,
    mmap_mode: Literal["r"] | None = None,
) -> np.ndarray | None:
    """Read an array of a shape, None if the file does not exist. kinds: of its type, as in
    `np.dtype.kind`. Raises InputError, with `expected` and `remedy`, if it is another one."""
    if not os.path.lexists(path):
        return None
    why = why_unreadable(path)
    if why:
        raise InputError(f"{path}: {why}, expected a .npy array: copy the file again, or remove it")
    array = load_array(path, expected, mmap_mode)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.shape != shape:
        found = (
            f"{getattr(array, 'dtype', 'unknown')} of shape {getattr(array, 'shape', 'unknown')}"
        )
        raise InputError(f"{path}: found {found}, expected {expected}; {remedy}")
    return array


def load_array(path: Path, expected: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Like `np.load`, but raises InputError if the file is damaged."""
    try:
        with np.errstate(over="ignore"):  # a damaged shape may be too large
            return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except DAMAGED as error:
        raise InputError(
            f"{path}: cannot be read as a .npy array: found {path.stat().st_size} bytes "
            f"({first_sentence(error)}), expected {expected}: copy or download it again"
        ) from error


def read_lines(path: Path, what: str = "a caption") -> list[str]:
    """Read the lines of a UTF-8 file, stripped of white space. Blank lines are kept.

    Raises InputError if the file is missing or not UTF-8 text; `what`: what each line should hold.
    """
    why = why_unreadable(path)
    if why:
        raise InputError(f"{path}: {why}; expected {what} per line, in UTF-8: copy the file there")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte 0x{byte:02x}), expected UTF-8 text; convert "
            f"it, for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path}: line {text[: text.index(chr(0))].count(chr(10)) + 1} contains a NUL "
            "character, expected UTF-8 text; copy the file again, or convert it, for instance: "
            f"iconv -f utf-16 -t utf-8 {path.name}"
        )
    lines = text.split("\n")
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """Write a text file in UTF-8, with a line feed after each line."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")

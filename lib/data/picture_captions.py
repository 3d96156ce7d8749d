"""Read the captions of pictures: a table with a head row, JSON lines, a Karpathy split JSON, or
lines such as `name.jpg#0<TAB>text`.

The format is found from the content, not from the name of the file.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..system.console import one_line
from ..system.errors import InputError, first_sentence
from . import karpathy
from .layout import read_lines

# names of columns, and of fields in JSON lines
IMAGE_COLUMNS = ("image", "filename", "file_name", "image_name", "file", "filepath", "path")
CAPTION_COLUMNS = ("caption", "text", "sentence", "comment", "raw")
SPLIT_COLUMN = "split"
SPLIT_NAMES = karpathy.SPLIT_NAMES | dict(valid="dev", validation="dev", dev="dev")
NUMBERED = re.compile(r"(?P<name>[^\t]+?)#\d+\t(?P<caption>.*)")  # as in Flickr8k.token.txt
DELIMITERS = "\t", "|", ","  # of tables; a comma may also be part of a caption
FORMATS = (
    "a table with a head row such as image,caption; JSON lines; a Karpathy JSON; or lines "
    "name.jpg#0<TAB>text"
)


class Captioned(NamedTuple):
    """A picture as the captions name it.

    name: of its file; split: of the data folder, None if the captions do not say; id: None if its
    file names it.
    """

    name: str
    captions: list[str]
    split: str | None = None
    id: str | None = None


class Line(NamedTuple):
    """One caption of a file of captions. number: of its line, from 1; split: as written."""

    number: int
    name: str
    caption: str
    split: str | None = None


class CaptionFile(NamedTuple):
    """The pictures of a file of captions, in its order, and how many blank captions were left
    out."""

    pictures: list[Captioned]
    num_blank: int = 0

    @property
    def has_splits(self) -> bool:
        """Whether the captions say the split of each picture."""
        return self.pictures[0].split is not None


def read_captions(path: Path) -> CaptionFile:
    """Read a file of captions. Raises InputError if its format is unknown, or a line is invalid."""
    lines = read_lines(path)
    first = next((line for line in lines if line), "")
    if first.startswith(("{", "[")):
        if _is_karpathy(first, lines):
            return CaptionFile(_read_karpathy(path))
        found = _json_lines(path, lines)
    elif NUMBERED.fullmatch(first):
        found = _numbered_lines(path, lines)
    else:
        found = _table(path)
    return _group(path, found)


def _is_karpathy(first: str, lines: Iterable[str]) -> bool:
    """Whether a JSON file is one value, and not one value per line."""
    try:
        return "images" in json.loads(first)
    except (ValueError, RecursionError):  # its first line is not a whole value
        return True


def _read_karpathy(path: Path) -> list[Captioned]:
    """The pictures of a Karpathy JSON. A test picture of COCO is only in `testall`: `test` has the
    first of them."""
    pictures = []
    for split, images in karpathy.read_splits(path).items():
        unnamed = next((image for image in images if "filename" not in image.names), None)
        if unnamed:
            raise InputError(
                f"{path}: an image has no filename (found {', '.join(unnamed.names)}, expected the "
                "name of its picture). Add a filename to each image"
            )
        pictures += [
            Captioned(image.names["filename"], image.captions, split, image.names.get("cocoid"))
            for image in images
        ]
    return pictures


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Line]:
    """One object per line, with a caption or with a list of captions."""
    for number, text in enumerate(lines, 1):
        if not text:
            continue
        try:
            entry = json.loads(text)
            if not isinstance(entry, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not a JSON object ({first_sentence(error)}), expected "
                'one per line, such as {"image": "1.jpg", "caption": "..."}. Correct this line'
            ) from error
        columns = _find_columns(path, entry, f"line {number} has the fields", ("captions",))
        captions = entry[columns.caption]
        captions = captions if isinstance(captions, list) else [captions]
        split = [entry[columns.split]] if columns.split else []
        for value in [entry[columns.image], *captions, *split]:
            if not isinstance(value, str):
                raise InputError(
                    f"{path}: line {number}: found {one_line(repr(value)):.60}, expected text for "
                    "the picture, its captions and its split. Correct this line"
                )
        for caption in captions:
            yield Line(number, entry[columns.image], caption, *split)


def _numbered_lines(path: Path, lines: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(lines, 1):
        found = NUMBERED.fullmatch(text)
        # a blank caption has lost its tab
        if not found and not (found := NUMBERED.fullmatch(f"{text}\t")) and text:
            raise InputError(
                f"{path}: line {number} is {one_line(text)!r:.60}, expected name.jpg#0<TAB>text as "
                "in the first line. Correct this line"
            )
        if found:
            yield Line(number, found["name"], found["caption"])


def _table(path: Path) -> Iterator[Line]:
    """The lines of a table. Quotes have a meaning only if commas separate the columns."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        delimiter = next((letter for letter in DELIMITERS if letter in head), ",")
        file.seek(0)
        rows = csv.reader(file, _Quoted if delimiter == "," else _Plain, delimiter=delimiter)
        try:
            names = [name.strip() for name in next(rows, [])]
            columns = _find_columns(path, names, "the head row has")
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(names):
                    raise InputError(
                        f"{path}: line {rows.line_num} has {len(row)} columns, expected "
                        f"{len(names)} as in the head row. Put text that contains the separator "
                        "in quotes, or correct this line"
                    )
                cells = dict(zip(names, (cell.strip() for cell in row)))
                yield Line(
                    rows.line_num,
                    cells[columns.image],
                    cells[columns.caption],
                    cells[columns.split] if columns.split else None,
                )
        except csv.Error as error:
            raise InputError(
                f"{path}: line {rows.line_num} is not a row of a table ({first_sentence(error)}), "
                f"expected {FORMATS}. Correct this line"
            ) from error


class _Quoted(csv.excel):
    strict = True


class _Plain(_Quoted):
    quoting = csv.QUOTE_NONE


class Columns(NamedTuple):
    """The columns of a table, as it names them. split: None if it has none."""

    image: str
    caption: str
    split: str | None


def _find_columns(
    path: Path, names: Iterable[str], where: str, more: tuple[str, ...] = ()
) -> Columns:
    """Find the columns by their names, in any case. Raises InputError if one is not clear.

    more: further names of the captions.
    """
    given = {name.strip().lower(): name for name in names}
    chosen = []
    for known in (IMAGE_COLUMNS, CAPTION_COLUMNS + more):
        found = [given[name] for name in known if name in given]
        if len(found) != 1:
            raise InputError(
                f"{path}: {where} {one_line(', '.join(given)):.200}, expected exactly one of "
                f"{', '.join(known)}; formats: {FORMATS}. Rename the columns"
            )
        chosen += found
    return Columns(chosen[0], chosen[1], given.get(SPLIT_COLUMN))


def _group(path: Path, lines: Iterable[Line]) -> CaptionFile:
    """Collect the captions of each picture. Raises InputError if its lines contradict each
    other."""
    pictures: dict[str, Captioned] = {}
    num_blank = 0
    for line in lines:
        if not line.name:
            raise InputError(
                f"{path}: line {line.number} names no picture, expected a file name. Correct this "
                "line"
            )
        split = _split_name(path, line)
        picture = pictures.setdefault(line.name, Captioned(line.name, [], split))
        if picture.split != split:
            raise InputError(
                f"{path}: line {line.number} puts {one_line(line.name)} into {split}, expected "
                f"{picture.split} as in an earlier line. Correct one of them"
            )
        caption = " ".join(line.caption.split())
        if caption:
            picture.captions.append(caption)
        num_blank += not caption
    if not pictures:
        raise InputError(f"{path}: found no caption, expected {FORMATS}. Give another --captions")
    return CaptionFile(list(pictures.values()), num_blank)


def _split_name(path: Path, line: Line) -> str | None:
    """The split of the data folder that a line names."""
    if line.split is None:
        return None
    names: Mapping[str, Any] = SPLIT_NAMES
    if line.split.strip().lower() not in names:
        raise InputError(
            f"{path}: line {line.number} has the split {one_line(line.split)!r:.60}, expected one "
            f"of {', '.join(names)}. Correct this line"
        )
    return names[line.split.strip().lower()]

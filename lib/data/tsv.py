"""Region features in TSV files of the bottom-up-attention detector and its PyTorch extractors.

Each line holds one image; lib/data/tsv_columns.py finds its columns. Boxes and features are
little-endian numbers in base64, with four numbers per box. The files are read twice, line by line:
`read_index` locates each image without decoding it, `read_image` in lib/data/tsv_image.py decodes
one image.
"""

# n boxes of an image, D region feature size

import contextlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from ..system.errors import InputError
from ..system.files import why_unreadable
from .tsv_cells import decoded_size, image_name, split_cells, unquoted
from .tsv_columns import Columns, columns_by_count, columns_of_head, read_head

ENDINGS = re.compile(r"(\.(jpe?g|png|bmp|gif|webp|tiff?|np[yz]))+$", re.IGNORECASE)
LONGEST_LINE = 2**28  # bytes; a line of 100 x 2048 float64 features has 2.2 MB
READ_BUFFER_BYTES = 2**19  # bytes: a line of 36 x 2048 features has 400 kB
LONGEST_NAME = 1000
OTHER_ORDER = "if the columns are in another order, write a first line that names them; otherwise "
# nrows: so that the bar is also shown in a terminal that does not report its size
BAR = dict(leave=False, disable=None, nrows=20)


class Line(NamedTuple):
    """A line of a TSV file, which holds one image.

    number: counted from 1; offset: of its first byte; name: of the image, as written; box_bytes: of
    its boxes, or 0; size: width and height of the picture in pixels, or None if they are unknown.
    """

    path: Path
    number: int
    offset: int
    columns: Columns
    name: str
    num_boxes: int
    box_bytes: int = 0
    size: tuple[int, int] | None = None

    @property
    def has_boxes(self) -> bool:
        """Whether boxes can be located in the picture."""
        return bool(self.box_bytes and self.size)

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}: line {self.number}"


class Index(NamedTuple):
    """The images of the TSV files.

    lines: the first line of each image, by its `key`; clashes: for some keys, another line whose
    name differs; row_bytes: bytes of the features of a box; num_repeated: lines that repeat a name.
    """

    lines: dict[str, Line]
    clashes: dict[str, Line]
    row_bytes: int
    num_repeated: int


def stem(name: str | int) -> str:
    r"""Remove the folder, file endings and leading zeros of a name.

    For example, "00042", 42, "42.JPG" and "C:\x\42.jpg.npz" become "42".
    """
    text = re.split(r"[/\\]", str(name).strip())[-1]
    text = ENDINGS.sub("", text) or text
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def key(name: str | int) -> str:
    """Key that is equal for all names of an image: the case-folded `stem` in Unicode form NFC."""
    return unicodedata.normalize("NFC", stem(name).casefold())


def read_index(paths: Sequence[Path]) -> Index:
    """Locate every image in the TSV files.

    Raises InputError, with file and line, if columns, numbers or lengths are wrong.
    """
    lines: dict[str, Line] = {}
    clashes: dict[str, Line] = {}
    row_bytes, num_repeated = None, 0
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="1 of 2: reading", unit="B", unit_scale=True, **BAR) as progress:
        for path in paths:
            for line, num_bytes in _measured_lines(path, row_bytes, progress):
                row_bytes = num_bytes
                first = lines.setdefault(key(line.name), line)
                if first is not line and first.name == line.name:
                    num_repeated += 1
                elif first is not line:
                    clashes.setdefault(key(line.name), line)
    if not lines or row_bytes is None:
        raise InputError(
            f"{paths[0]}: found no image in the TSV files, expected one per line: extract "
            "them again"
        )
    return Index(lines, clashes, row_bytes, num_repeated)


def _measured_lines(
    path: Path, row_bytes: int | None, progress: tqdm
) -> Iterator[tuple[Line, int]]:
    """Yield a `Line` for each image of a file, and the bytes of the features of a box.

    row_bytes: bytes of the features of a box in earlier lines, or None.
    """
    offset, columns = 0, None
    with open_tsv(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            where = f"{path}: line {number}"
            if len(line) == LONGEST_LINE:
                raise InputError(
                    f"{where} has more than {LONGEST_LINE} bytes, "
                    "expected the features of one image"
                )
            cells = split_cells(line, is_first=number == 1)
            if head := read_head(cells, number == 1):
                columns = columns_of_head(where, head)
            elif line.strip():
                columns = columns or columns_by_count(where, cells, _remedy(line))
                name, num_boxes, row_bytes, box_bytes = _measure(
                    where, line, cells, columns, row_bytes
                )
                size = _picture_size(cells, columns)
                yield (
                    Line(path, number, offset, columns, name, num_boxes, box_bytes, size),
                    row_bytes,
                )
            offset += len(line)
            progress.update(len(line))


@contextlib.contextmanager
def open_tsv(path: Path) -> Iterator[BinaryIO]:
    """Open a file. An OSError while it is open becomes an InputError."""
    try:
        with open(path, "rb", READ_BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({why_unreadable(path) or str(error.strerror).lower()}), "
            "expected a file that stays in place while it is converted: restore it"
        ) from error


def _remedy(line: bytes) -> str:
    return (
        "extract this image again"
        if line.endswith(b"\n")
        else "the file is truncated, copy or download it again"
    )


def _measure(
    where: str, line: bytes, cells: list[bytes], columns: Columns, row_bytes: int | None
) -> tuple[str, int, int, int]:
    """Name, number of boxes, bytes of the features of a box, and bytes of all boxes, without
    decoding the line."""
    remedy = _remedy(line)
    if len(cells) != columns.num_columns:
        raise InputError(
            f"{where} has {len(cells)} columns, expected {columns.num_columns}: {remedy}"
        )
    name = image_name(cells[columns.image_id])
    if not name or len(name) > LONGEST_NAME:
        found = f"{len(name)} characters" if name else "nothing"
        raise InputError(
            f"{where}: found {found} as image_id, expected the name of an image: "
            f"{OTHER_ORDER}{remedy}"
        )
    num_boxes = _num_boxes(where, cells[columns.num_boxes], remedy)
    row_bytes = _row_bytes(where, name, num_boxes, cells[columns.features], row_bytes, remedy)
    box_bytes = 0
    if columns.boxes is not None:
        box_bytes = decoded_size(unquoted(cells[columns.boxes])) or 0
    if box_bytes not in (0, 8 * num_boxes, 16 * num_boxes, 32 * num_boxes):
        raise InputError(
            f"{where} (image {name}): found {box_bytes} bytes of boxes, expected 4 float16, 32 or "
            f"64 for each of {num_boxes} boxes: {OTHER_ORDER}{remedy}"
        )
    return name, num_boxes, row_bytes, box_bytes


def _picture_size(cells: list[bytes], columns: Columns) -> tuple[int, int] | None:
    """Width and height of the picture; None if the line does not give them."""
    if columns.width is None or columns.height is None:
        return None
    width, height = (unquoted(cells[column]).strip() for column in (columns.width, columns.height))
    known = all(text.isdigit() and len(text) < 8 and int(text) for text in (width, height))
    return (int(width), int(height)) if known else None


def _row_bytes(
    where: str, name: str, num_boxes: int, cell: bytes, row_bytes: int | None, remedy: str
) -> int:
    """Bytes of the features of a box, from the length of the cell of features."""
    num_bytes = decoded_size(unquoted(cell))
    expected = row_bytes or (num_bytes or 0) // num_boxes
    if num_bytes is None or num_bytes != num_boxes * expected or not num_bytes or expected % 2:
        found = (
            "base64 of a wrong length" if num_bytes is None else f"{num_bytes} bytes of features"
        )
        of = (
            f"{row_bytes} bytes, as in the first line"
            if row_bytes
            else "a whole number of float16, 32 or 64"
        )
        raise InputError(
            f"{where} (image {name}): found {found}, expected {num_boxes} boxes of {of}: {remedy}"
        )
    return expected


def _num_boxes(where: str, cell: bytes, remedy: str) -> int:
    text = unquoted(cell).strip()
    if not (text.isdigit() and len(text) < 10 and int(text)):
        found = text[:20].decode("utf-8", "replace")
        raise InputError(
            f"{where}: found num_boxes '{found}', expected a whole number of at least 1: {remedy}"
        )
    return int(text)

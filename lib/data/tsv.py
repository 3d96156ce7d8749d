"""Region features in TSV files of the bottom-up-attention detector and its PyTorch extractors.

Each line holds one image; lib/data/tsv_columns.py finds its columns. Boxes and features are
little-endian numbers in base64, with four numbers per box. The files are read twice, line by line:
`read_index` locates each image without decoding it, `read_features` decodes one image.
"""

# n boxes of an image, D region feature size

import ast
import base64
import binascii
import contextlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from .tsv_columns import Columns, columns_by_count, columns_of_head, read_head

ENDINGS = re.compile(r"(\.(jpe?g|png|bmp|gif|webp|tiff?|np[yz]))+$", re.IGNORECASE)
LONGEST_LINE = 2**28  # bytes; a line of 100 x 2048 float64 features has 2.2 MB
READ_BUFFER_BYTES = 2**19  # bytes: a line of 36 x 2048 features has 400 kB
LONGEST_NAME = 1000
LINES_SAMPLED = 64
OTHER_ORDER = "if the columns are in another order, write a first line that names them; otherwise "
# nrows: so that the bar is also shown in a terminal that does not report its size
BAR = dict(leave=False, disable=None, nrows=20)


class Line(NamedTuple):
    """A line of a TSV file, which holds one image.

    number: counted from 1; offset: of its first byte; name: of the image, as written.
    """

    path: Path
    number: int
    offset: int
    columns: Columns
    name: str
    num_boxes: int

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
    with _reading(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            where = f"{path}: line {number}"
            if len(line) == LONGEST_LINE:
                raise InputError(
                    f"{where} has more than {LONGEST_LINE} bytes, "
                    "expected the features of one image"
                )
            cells = _cells(line, is_first=number == 1)
            if head := read_head(cells, number == 1):
                columns = columns_of_head(where, head)
            elif line.strip():
                columns = columns or columns_by_count(where, cells, _remedy(line))
                name, num_boxes, row_bytes = _measure(where, line, cells, columns, row_bytes)
                yield Line(path, number, offset, columns, name, num_boxes), row_bytes
            offset += len(line)
            progress.update(len(line))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file. An OSError while it is open becomes an InputError."""
    try:
        with open(path, "rb", READ_BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({why_unreadable(path) or str(error.strerror).lower()}), "
            "expected a file that stays in place while it is converted: restore it"
        ) from error


def _cells(line: bytes, is_first: bool = False) -> list[bytes]:
    return (line.removeprefix(b"\xef\xbb\xbf") if is_first else line).rstrip(b"\r\n").split(b"\t")


def _remedy(line: bytes) -> str:
    return (
        "extract this image again"
        if line.endswith(b"\n")
        else "the file is truncated, copy or download it again"
    )


def _measure(
    where: str, line: bytes, cells: list[bytes], columns: Columns, row_bytes: int | None
) -> tuple[str, int, int]:
    """Name, number of boxes, and bytes of the features of a box, without decoding the line."""
    remedy = _remedy(line)
    if len(cells) != columns.num_columns:
        raise InputError(
            f"{where} has {len(cells)} columns, expected {columns.num_columns}: {remedy}"
        )
    name = _name(cells[columns.image_id])
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
        box_bytes = _decoded_size(_unquoted(cells[columns.boxes])) or 0
    if box_bytes not in (0, 8 * num_boxes, 16 * num_boxes, 32 * num_boxes):
        raise InputError(
            f"{where} (image {name}): found {box_bytes} bytes of boxes, expected 4 float16, 32 or "
            f"64 for each of {num_boxes} boxes: {OTHER_ORDER}{remedy}"
        )
    return name, num_boxes, row_bytes


def _row_bytes(
    where: str, name: str, num_boxes: int, cell: bytes, row_bytes: int | None, remedy: str
) -> int:
    """Bytes of the features of a box, from the length of the cell of features."""
    num_bytes = _decoded_size(_unquoted(cell))
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
    text = _unquoted(cell).strip()
    if not (text.isdigit() and len(text) < 10 and int(text)):
        found = text[:20].decode("utf-8", "replace")
        raise InputError(
            f"{where}: found num_boxes '{found}', expected a whole number of at least 1: {remedy}"
        )
    return int(text)


def _decoded_size(cell: bytes) -> int | None:
    """Bytes that base64 of this length encodes, or None if no base64 has this length."""
    return None if len(cell) % 4 else len(cell) // 4 * 3 - cell[-2:].count(b"=")


def _unquoted(cell: bytes) -> bytes:
    """Remove the quotes of a Python bytes literal, b'...'. Other cells are returned unchanged."""
    return (
        cell[2:-1]
        if cell[:2] in (b"b'", b'b"') and len(cell) > 2 and cell[-1:] == cell[1:2]
        else cell
    )


def _name(cell: bytes) -> str:
    if _unquoted(cell) is not cell:
        with contextlib.suppress(ValueError, SyntaxError):
            cell = ast.literal_eval(cell.decode("ascii"))  # may contain escape sequences
    return cell.decode("utf-8", "replace").strip()


def sample_bytes(lines: Sequence[Line], row_bytes: int) -> np.ndarray:
    """Bytes of the features of up to LINES_SAMPLED evenly spaced images: uint8, whole rows."""
    samples: list[np.ndarray] = [np.zeros(0, np.uint8)]
    for line in lines[:: -(-len(lines) // LINES_SAMPLED)]:
        with contextlib.suppress(InputError):  # reported when the features are read
            samples.append(np.frombuffer(_read_bytes(line, row_bytes), np.uint8))
    return np.concatenate(samples)


def _read_bytes(line: Line, row_bytes: int) -> bytes:
    """Read the bytes of an image's features.

    Raises InputError if the line has changed, or is not valid base64.
    """
    with _reading(line.path) as file:
        file.seek(line.offset)
        cells = _cells(file.readline(LONGEST_LINE), is_first=line.offset == 0)
    columns = line.columns
    if len(cells) != columns.num_columns or _name(cells[columns.image_id]) != line.name:
        raise InputError(
            f"{line.where}: changed while it was read, expected image {line.name}; convert again"
        )
    cell = _unquoted(cells[columns.features])
    if _decoded_size(cell) != line.num_boxes * row_bytes:
        raise InputError(
            f"{line.where}: changed while it was read, expected {line.num_boxes * row_bytes} "
            "bytes; convert again"
        )
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"{line.where}: bad base64 ({first_sentence(error)}), expected features of "
            f"{line.num_boxes} boxes: extract this image again"
        ) from error


def read_features(line: Line, row_bytes: int, dtype: str) -> np.ndarray:
    """Read the features of an image, (n, D) float32.

    dtype: their type in the file, one of `element_type.DTYPES`. Raises InputError, with the line,
    if they have changed, are not valid base64, or are not finite.
    """
    values = np.frombuffer(_read_bytes(line, row_bytes), np.dtype(dtype).newbyteorder("<"))
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        features = values.reshape(line.num_boxes, -1).astype(np.float32)
    if not np.isfinite(features).all():
        raise InputError(
            f"{line.where}: found NaN or Inf in the features, expected finite {dtype} values: "
            "extract this image again"
        )
    return features

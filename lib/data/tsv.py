"""Region features in TSV files of the bottom-up-attention detector and its PyTorch extractors.

A line is an image; lib/data/tsv_columns.py knows its columns. Boxes and features are base64 of
little-endian numbers, four numbers a box. The files are read twice, a line at a time: `read_index`
finds where each image lies without decoding it, `read_features` decodes one.
"""

# n boxes of an image, D region feature size

import ast
import base64
import binascii
import contextlib
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

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
# nrows: shown, too, in a terminal that tells no size
BAR = dict(leave=False, disable=None, nrows=20)


class Line(NamedTuple):
    """Where an image lies: a line of a TSV file (from 1), its first byte, columns,
    name as written, number of boxes."""

    path: Path
    number: int
    offset: int
    columns: Columns
    name: str
    num_boxes: int

    @property
    def where(self):
        return f"{self.path}: line {self.number}"


class Index(NamedTuple):
    """{key of an image: its first Line}, {key: another Line whose name differs but has the same
    key}, bytes a box, and how many lines repeat a name."""

    lines: dict
    clashes: dict
    row_bytes: int
    num_repeated: int


def stem(name):
    r"""A name without folder, endings and leading zeros: "00042", 42, "42.JPG" and
    "C:\x\42.jpg.npz" are 42."""
    text = re.split(r"[/\\]", str(name).strip())[-1]
    text = ENDINGS.sub("", text) or text
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def key(name):
    """What names of the same image have in common: their `stem`,
    in lower case and in one Unicode form."""
    return unicodedata.normalize("NFC", stem(name).casefold())


def read_index(paths):
    """Find every image in the TSV files. Returns an `Index`.

    Raises InputError naming file and line where columns, numbers or lengths are wrong.
    """
    lines, clashes, row_bytes, num_repeated = {}, {}, None, 0
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
    if not lines:
        raise InputError(
            f"{paths[0]}: found no image in the TSV files, expected one a line: extract them again"
        )
    return Index(lines, clashes, row_bytes, num_repeated)


def _measured_lines(path, row_bytes, progress):
    """Yield a `Line` for each image of a file, and the bytes of a box's features that all images
    have in common."""
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
def _reading(path):
    """Open a file; what the system says against reading it becomes an InputError."""
    try:
        with open(path, "rb", READ_BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({why_unreadable(path) or error.strerror.lower()}), expected "
            "the file that was there before: leave it in place while it is converted"
        ) from error


def _cells(line, is_first=False):
    return (line.removeprefix(b"\xef\xbb\xbf") if is_first else line).rstrip(b"\r\n").split(b"\t")


def _remedy(line):
    return (
        "extract this image again"
        if line.endswith(b"\n")
        else "the file is cut short, copy or download it again"
    )


def _measure(where, line, cells, columns, row_bytes):
    """Name, number of boxes and bytes a box that a line tells without being decoded.
    row_bytes: of the lines before."""
    remedy = _remedy(line)
    if len(cells) != columns.count:
        raise InputError(f"{where} has {len(cells)} columns, expected {columns.count}: {remedy}")
    name = _name(cells[columns.image_id])
    if not name or len(name) > LONGEST_NAME:
        found = f"{len(name)} characters" if name else "nothing"
        raise InputError(
            f"{where}: found {found} as image_id, expected the name of an image: "
            f"{OTHER_ORDER}{remedy}"
        )
    num_boxes = _num_boxes(where, cells[columns.num_boxes], remedy)
    num_bytes = _decoded_size(_unquoted(cells[columns.features]))
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
    box_bytes = (
        (_decoded_size(_unquoted(cells[columns.boxes])) or 0) if columns.boxes is not None else 0
    )
    if box_bytes not in (0, 8 * num_boxes, 16 * num_boxes, 32 * num_boxes):
        raise InputError(
            f"{where} (image {name}): found {box_bytes} bytes of boxes, expected 4 float16, 32 or "
            f"64 for each of {num_boxes} boxes: {OTHER_ORDER}{remedy}"
        )
    return name, num_boxes, expected


def _num_boxes(where, cell, remedy):
    text = _unquoted(cell).strip()
    if not (text.isdigit() and len(text) < 10 and int(text)):
        found = text[:20].decode("utf-8", "replace")
        raise InputError(
            f"{where}: found num_boxes '{found}', expected a whole number of at least 1: {remedy}"
        )
    return int(text)


def _decoded_size(cell):
    return None if len(cell) % 4 else len(cell) // 4 * 3 - cell[-2:].count(b"=")


def _unquoted(cell):
    """The content of a cell that was written as a Python bytes literal, b'...';
    other cells as they are."""
    return (
        cell[2:-1]
        if cell[:2] in (b"b'", b'b"') and len(cell) > 2 and cell[-1:] == cell[1:2]
        else cell
    )


def _name(cell):
    if _unquoted(cell) is not cell:
        with contextlib.suppress(ValueError, SyntaxError):
            cell = ast.literal_eval(cell.decode("ascii"))  # its bytes may be escaped
    return cell.decode("utf-8", "replace").strip()


def sample_bytes(lines, row_bytes):
    """The bytes of the features of up to LINES_SAMPLED images,
    evenly spaced: a uint8 array of whole rows."""
    found = [np.zeros(0, np.uint8)]
    for line in lines[:: -(-len(lines) // LINES_SAMPLED)]:
        with contextlib.suppress(InputError):  # it is named when it is stored
            found.append(np.frombuffer(_read_bytes(line, row_bytes), np.uint8))
    return np.concatenate(found)


def _read_bytes(line, row_bytes):
    """The bytes of an image's features. Raises InputError where the line is not what it was,
    or no base64."""
    with _reading(line.path) as file:
        file.seek(line.offset)
        cells = _cells(file.readline(LONGEST_LINE), is_first=line.offset == 0)
    columns = line.columns
    if len(cells) != columns.count or _name(cells[columns.image_id]) != line.name:
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


def read_features(line, row_bytes, dtype):
    """(n, D) float32, the features of an image. Raises InputError naming its line."""
    values = np.frombuffer(_read_bytes(line, row_bytes), np.dtype(dtype).newbyteorder("<"))
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        features = values.reshape(line.num_boxes, -1).astype(np.float32)
    if not np.isfinite(features).all():
        raise InputError(
            f"{line.where}: the features hold NaN or Inf, expected finite "
            f"{dtype} values: extract this image again"
        )
    return features

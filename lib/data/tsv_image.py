"""Read one image from a TSV file: features, boxes, size."""

# n boxes of an image, D region feature size

import base64
import binascii
import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..system.errors import InputError, first_sentence
from .tsv import LONGEST_LINE, Line, open_tsv
from .tsv_cells import decoded_size, image_name, split_cells, unquoted

LINES_SAMPLED = 64


class ImageData(NamedTuple):
    """What a line holds: features (n, D) and boxes (n, 4), float32, boxes as fractions of the width
    and height; boxes and size are None where the line has none."""

    features: np.ndarray
    boxes: np.ndarray | None
    size: tuple[int, int] | None

    def first(self, count: int) -> "ImageData":
        """The first boxes only."""
        boxes = None if self.boxes is None else self.boxes[:count]
        return self._replace(features=self.features[:count], boxes=boxes)


def sample_bytes(lines: Sequence[Line], row_bytes: int) -> np.ndarray:
    """Bytes of the features of up to LINES_SAMPLED evenly spaced images: uint8, whole rows."""
    samples: list[np.ndarray] = [np.zeros(0, np.uint8)]
    for line in lines[:: -(-len(lines) // LINES_SAMPLED)]:
        with contextlib.suppress(InputError):  # reported when the features are read
            samples.append(np.frombuffer(_features(line, _read_cells(line), row_bytes), np.uint8))
    return np.concatenate(samples)


def _read_cells(line: Line) -> list[bytes]:
    """Read the cells of a line. Raises InputError if the line has changed."""
    with open_tsv(line.path) as file:
        file.seek(line.offset)
        cells = split_cells(file.readline(LONGEST_LINE), is_first=line.offset == 0)
    columns = line.columns
    if len(cells) != columns.num_columns or image_name(cells[columns.image_id]) != line.name:
        raise InputError(
            f"{line.where}: changed while it was read, expected image {line.name}; convert again"
        )
    return cells


def _features(line: Line, cells: list[bytes], row_bytes: int) -> bytes:
    return _decode(line, cells[line.columns.features], line.num_boxes * row_bytes, "features")


def _decode(line: Line, cell: bytes, num_bytes: int, what: str) -> bytes:
    """Decode a cell of base64. Raises InputError if it has changed, or is not valid."""
    cell = unquoted(cell)
    if decoded_size(cell) != num_bytes:
        raise InputError(
            f"{line.where}: changed while it was read, expected {num_bytes} bytes; convert again"
        )
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"{line.where}: bad base64 ({first_sentence(error)}), expected {what} of "
            f"{line.num_boxes} boxes: extract this image again"
        ) from error


def read_image(line: Line, row_bytes: int, dtype: str) -> ImageData:
    """Read the features of an image, its boxes and its size.

    dtype: type of the features in the file, one of `element_type.DTYPES`. Raises InputError, with
    the line, if the line has changed, or if the features are not valid base64 or not finite.
    """
    cells = _read_cells(line)
    values = np.frombuffer(_features(line, cells, row_bytes), np.dtype(dtype).newbyteorder("<"))
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        features = values.reshape(line.num_boxes, -1).astype(np.float32)
    if not np.isfinite(features).all():
        raise InputError(
            f"{line.where}: found NaN or Inf in the features, expected finite {dtype} values: "
            "extract this image again"
        )
    return ImageData(features, _read_boxes(line, cells), line.size)


def _read_boxes(line: Line, cells: list[bytes]) -> np.ndarray | None:
    """The boxes as fractions of the picture, (n, 4) float32; None if they cannot be located."""
    if not line.has_boxes:
        return None
    assert line.columns.boxes is not None and line.size is not None
    content = _decode(line, cells[line.columns.boxes], line.box_bytes, "corners")
    width = line.box_bytes // (4 * line.num_boxes)  # bytes of a number
    pixels = np.frombuffer(content, f"<f{width}").reshape(-1, 4).astype(np.float64)
    return (pixels / np.tile(line.size, 2)).astype(np.float32)

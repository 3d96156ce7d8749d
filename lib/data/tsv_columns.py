"""Columns of a TSV file of region features, found by the names in its header or by their number."""

from collections.abc import Sequence
from typing import NamedTuple

from ..system.errors import InputError

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
PYTORCH_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
    "boxes",
    "features",
)  # fmt: skip
KNOWN = {*COLUMNS, *PYTORCH_COLUMNS}


class Columns(NamedTuple):
    """Positions of the columns that are read, and the number of columns.

    boxes, width, height: None if the file has no such column.
    """

    image_id: int
    num_boxes: int
    boxes: int | None
    features: int
    num_columns: int
    width: int | None = None
    height: int | None = None


def read_head(cells: list[bytes], is_first: bool = False) -> list[str] | None:
    """The column names of a header line, in lower case, or None if the line is not a header.

    The first line is a header if no cell contains a digit.
    """
    if any(len(cell) > 40 for cell in cells) or len(cells) < 3:
        return None
    names = [cell.decode("utf-8", "replace").strip().strip("\"'").lower() for cell in cells]
    is_words = is_first and not any(any(map(str.isdigit, name)) for name in names)
    return names if is_words or len(KNOWN.intersection(names)) > 1 else None


def columns_of_head(where: str, names: Sequence[str]) -> Columns:
    """Find the columns by the names in a header.

    Raises InputError if a required column is missing, or a column is named twice.
    """
    required = {
        "image_id or img_id": {"image_id", "img_id"},
        "num_boxes": {"num_boxes"},
        "features": {"features"},
    }
    missing = [text for text, spellings in required.items() if not spellings.intersection(names)]
    repeated = [
        text for text, spellings in required.items() if sum(name in spellings for name in names) > 1
    ]
    if missing or repeated or names.count("boxes") > 1:
        problem = (
            f"lacks {', '.join(missing)}"
            if missing
            else f"names {', '.join(repeated) or 'boxes'} twice"
        )
        raise InputError(
            f"{where}: the header {problem} (found {', '.join(names)}), expected image_id, "
            "num_boxes, features and, if there is one, boxes, each once; correct the header"
        )
    image_id = names.index("image_id" if "image_id" in names else "img_id")
    boxes, width, height = (
        next((names.index(name) for name in spellings if name in names), None)
        for spellings in (("boxes",), ("image_w", "img_w"), ("image_h", "img_h"))
    )
    return Columns(
        image_id, names.index("num_boxes"), boxes, names.index("features"), len(names),
        width, height,
    )  # fmt: skip


def columns_by_count(where: str, cells: list[bytes], remedy: str) -> Columns:
    """Find the columns of a file without a header by their number.

    Raises InputError, with `remedy` as its last words, if the number of columns is unknown.
    """
    for names in (COLUMNS, PYTORCH_COLUMNS):
        if len(cells) == len(names):
            return columns_of_head(where, names)
    raise InputError(
        f"{where} has {len(cells)} columns and no header, expected {len(COLUMNS)} "
        f"separated by tabs ({', '.join(COLUMNS)}), {len(PYTORCH_COLUMNS)} "
        f"({', '.join(PYTORCH_COLUMNS)}), or a first line that names them: {remedy}"
    )

"""Which column of a TSV file of region features holds what: by the names of a head,
or by their number."""

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
    """Positions of the columns that are read (boxes: None where there are none),
    and how many columns there are."""

    image_id: int
    num_boxes: int
    boxes: int | None
    features: int
    count: int


def read_head(cells, is_first=False):
    """The names in a head, in lower case; None where the line is none.
    The first line is one if it holds no number."""
    if any(len(cell) > 40 for cell in cells) or len(cells) < 3:
        return None
    names = [cell.decode("utf-8", "replace").strip().strip("\"'").lower() for cell in cells]
    is_words = is_first and not any(any(map(str.isdigit, name)) for name in names)
    return names if is_words or len(KNOWN.intersection(names)) > 1 else None


def columns_of_head(where, names):
    """The `Columns` that a head names. Raises InputError where it lacks one that is needed,
    or names one twice."""
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
            f"{where}: the head {problem} (found {', '.join(names)}), expected image_id, "
            "num_boxes, features and, if there is one, boxes, each once; mend the head"
        )
    image_id = names.index("image_id" if "image_id" in names else "img_id")
    boxes = names.index("boxes") if "boxes" in names else None
    return Columns(image_id, names.index("num_boxes"), boxes, names.index("features"), len(names))


def columns_by_count(where, cells, remedy):
    """The `Columns` of a file without a head. Raises InputError, which ends with `remedy`,
    for any other number."""
    for names in (COLUMNS, PYTORCH_COLUMNS):
        if len(cells) == len(names):
            return columns_of_head(where, names)
    raise InputError(
        f"{where} has {len(cells)} columns and there is no head, expected {len(COLUMNS)} "
        f"separated by tabs ({', '.join(COLUMNS)}), {len(PYTORCH_COLUMNS)} "
        f"({', '.join(PYTORCH_COLUMNS)}), or a first line that names them: {remedy}"
    )

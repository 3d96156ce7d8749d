"""The record of an extraction, `extraction.json`: which network made the features, and how.

A checkpoint keeps its values, so that a trained model can encode new pictures.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from .layout import EXTRACTION

DEFAULT_MODEL = "efficientnet_lite0"  # lib/data/efficientnet.py
FORMAT = "hrem-extraction-1"
Record = dict[str, Any]
KINDS: dict[str, type] = dict(
    format=str, model=str, weights=dict, preprocessing=dict, regions=int, grid=list,
    region_dim=int, versions=dict,
)  # fmt: skip
LARGEST = 2**20  # characters of a record


def check(found: Any) -> Record:
    """Check the values of a record. Raises ValueError or TypeError."""
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ValueError(f"extraction is not a record, expected one of format {FORMAT}")
    for name, kind in KINDS.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise ValueError(f"extraction: {name} {found.get(name)!r:.60}, expected a {kind}")
    if not isinstance(found["weights"].get("sha256"), str):
        raise ValueError("extraction: the weights have no sha256, expected a hash")
    if not 1 <= found["regions"] <= 10**9:
        raise ValueError(f"extraction: regions {found['regions']}, expected at least 1")
    if len(json.dumps(dict(found))) > LARGEST:  # raises TypeError for values that are not JSON
        raise ValueError("extraction has more than a million characters, expected a short record")
    return {name: found[name] for name in KINDS}


def check_optional(found: Any) -> Record | None:
    """`check` a record of a checkpoint, if it has one. Raises ValueError or TypeError."""
    return None if found is None else check(found)


def to_bytes(record: Record) -> bytes:
    """The content of the file of a record."""
    return (json.dumps(record, indent=2) + "\n").encode()


def read(folder: Path) -> Record | None:
    """The record of a data folder; None if it has none. Raises InputError if it is damaged."""
    path = folder / EXTRACTION
    why = why_unreadable(path)
    if why == "no such file":
        return None
    try:
        if why:
            raise ValueError(why)
        return check(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: not the record of an extraction (found {first_sentence(error)}, expected "
            "what `extract` wrote). Copy it again, or remove it: then the trained model cannot "
            "encode new pictures"
        ) from error

"""A folder with the results of evaluations: metrics.json, and which files are ours."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..system.cache import DAMAGED
from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from ..system.run_folder import RunFolder
from .result_names import EXTRAS, ResultName
from .table import HEADER

METRICS = "metrics.json"
# fields of the files of similarities and of cached embeddings
RESULTS, EMBEDDINGS = ("npts", "sims"), {"key", "images", "captions"}
PAGE = b"<title>HREM: "  # near the beginning of a report page


def read_entries(path: Path) -> dict[str, Any]:
    """Read metrics.json: {name of a table: entry}, empty if there is no such file.

    Raises InputError if the file cannot be read or is not ours.
    """
    if not os.path.lexists(path):
        return {}
    try:
        if why := why_unreadable(path):
            raise ValueError(why)
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__} instead of a dict")
        strange = next((name for name, entry in entries.items() if not _is_entry(entry)), None)
        if strange is not None:
            raise ValueError(f"the entry {strange!r}, which is not a table")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not the metrics of earlier evaluations (found {first_sentence(error)}, "
            "expected a JSON object with an entry for each table). Move the file away"
        ) from error
    return entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), dict) for name in ("scores", "versions")
    )


def run_folder(path: Path | str) -> RunFolder:
    """The folder into which results are written."""
    return RunFolder(path, is_ours)


def is_ours(path: Path) -> bool:
    """Whether a file that no manifest names was written by an earlier version of this project,
    according to its contents."""
    if path.name == METRICS:
        return bool(read_entries(path))
    if path.suffix == ".md":
        entry = read_entries(path.with_name(METRICS)).get(path.stem)
        text = path.read_text(encoding="utf-8", errors="replace")
        return entry is not None and HEADER in text and text.startswith(f"{entry.get('title')}\n")
    if path.suffix in (".npy", ".npz"):
        return _is_our_array(path)
    with open(path, "rb") as file:
        return path.suffix == ".html" and PAGE in file.read(1000)


def _is_our_array(path: Path) -> bool:
    """Whether a .npy file has the fields of saved similarities, or a .npz file those of cached
    embeddings."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).dtype.names == RESULTS
        with np.load(path, allow_pickle=False) as file:
            return set(file.files) - {"checksum"} == EMBEDDINGS
    except (*DAMAGED, AttributeError):  # a file of another kind
        return False


def find_name(folder: RunFolder, result: ResultName, facts: Mapping[str, Any]) -> ResultName:
    """The name under which an evaluation is saved. It includes a hash of the data if the name is
    already used for other data.

    facts: from `lib.evaluation.facts.find_facts`. Raises InputError if an existing file of that
    name is not ours.
    """
    entries = read_entries(folder.path / METRICS)
    # these tables share one file of similarities
    tables = [result._replace(extras=extras).table() for extras in EXTRAS]
    if any(_differs(entries[table], facts) for table in tables if table in entries):
        result = result._replace(data=facts["data"]["fingerprint"][:8])
    return result


def _differs(entry: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether an entry of metrics.json is about another data set, split or other data than the
    facts of an evaluation."""
    data = entry.get("data")  # none in entries of earlier versions
    is_other_data = (
        isinstance(data, dict) and data.get("fingerprint") != facts["data"]["fingerprint"]
    )
    return is_other_data or any(entry.get(name) != facts[name] for name in ("dataset", "split"))

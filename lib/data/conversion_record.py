"""Records of a conversion: JSON files with a checksum, so that a damaged record is never used."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..system.files import atomic_write, why_unreadable

FORMAT = "hrem-conversion-1"


def read_record(path: Path) -> dict[str, Any]:
    """Read the values that `write_record` wrote. Raises ValueError if the file is damaged."""
    why = "a link" if path.is_symlink() else why_unreadable(path)
    if why:
        raise ValueError(why)
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, dict) or found.get("sha256") != _digest(content):
        raise ValueError("contents that convert did not write")
    if content.get("format") != FORMAT:
        raise ValueError("a record of another version")
    return content


def write_record(path: Path, **content: Any) -> None:
    """Write JSON values to a record, by name."""
    content = {"format": FORMAT} | content
    with atomic_write(path) as file:
        file.write(json.dumps({"content": content, "sha256": _digest(content)}).encode())


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

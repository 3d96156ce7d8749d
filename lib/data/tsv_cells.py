"""Cells of a line of a TSV file: splitting it, quotes, the size of base64, names."""

import ast
import contextlib


def split_cells(line: bytes, is_first: bool = False) -> list[bytes]:
    return (line.removeprefix(b"\xef\xbb\xbf") if is_first else line).rstrip(b"\r\n").split(b"\t")


def decoded_size(cell: bytes) -> int | None:
    """Bytes that base64 of this length encodes, or None if no base64 has this length."""
    return None if len(cell) % 4 else len(cell) // 4 * 3 - cell[-2:].count(b"=")


def unquoted(cell: bytes) -> bytes:
    """Remove the quotes of a Python bytes literal, b'...'. Other cells are returned unchanged."""
    return (
        cell[2:-1]
        if cell[:2] in (b"b'", b'b"') and len(cell) > 2 and cell[-1:] == cell[1:2]
        else cell
    )


def image_name(cell: bytes) -> str:
    if unquoted(cell) is not cell:
        with contextlib.suppress(ValueError, SyntaxError):
            cell = ast.literal_eval(cell.decode("ascii"))  # may contain escape sequences
    return cell.decode("utf-8", "replace").strip()

"""Text that can be printed safely: no raw control characters,
no failure because of an encoding or a closed pipe."""

import os
import sys
from typing import TextIO

# they reorder what a terminal shows
BIDIRECTIONAL = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
SEPARATORS = {0x2028, 0x2029}  # line breaks of Unicode


def printable(text: str) -> str:
    r"""`text` with control characters, bidirectional controls and lone surrogates as escapes such
    as \x1b.

    Line feeds and tabs stay. Use `one_line` for text that must not break a line.
    """
    return "".join(_escape(letter) if _is_unsafe(ord(letter)) else letter for letter in str(text))


def one_line(text: str) -> str:
    r"""`printable` text whose line feeds and tabs are escaped too: \n and \t."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown_cell(text: str) -> str:
    r"""`one_line` text for a cell of a Markdown table: | becomes \|."""
    return one_line(text).replace("|", "\\|")


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Write `printable(text)` and a line feed to `stream` (default: standard output).

    Characters that the encoding of the stream lacks are escaped. Nothing is written if the stream
    is closed, or once its reader has closed the pipe. Raises OSError if the disk of the stream is
    full.
    """
    stream = stream or sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)  # what is left in the buffer would fail again at exit
        raise OSError(error.errno, error.strerror, getattr(stream, "name", None)) from error


def _is_unsafe(code):
    is_control = code < 0x20 and code not in (0x09, 0x0A) or 0x7F <= code < 0xA0
    return is_control or 0xD800 <= code < 0xE000 or code in BIDIRECTIONAL or code in SEPARATORS


def _escape(letter):
    return f"\\x{ord(letter):02x}" if ord(letter) < 0x100 else f"\\u{ord(letter):04x}"


def _discard(stream):
    """Send the rest of what is written to `stream` nowhere,
    so that nothing fails at exit either."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)

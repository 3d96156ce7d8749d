"""Detect caption files whose lines hold more than captions, such as `name.jpg#0<TAB>text`.

For most of these forms, a shell command extracts the captions.
"""

# C captions

import ast
import json
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LOOKED_AT = 1000  # lines that are examined, evenly spaced
SHARED = 0.95  # minimum fraction of these lines that have the form
FEWEST_NUMBERS = 8  # minimum number of different, increasing line numbers
PICTURE = r"\.(?:jpe?g|png|gif|bmp|webp|npy|npz)"
CSV = (
    "import csv, sys; "
    'sys.stdout.writelines(" ".join(",".join(row[1:]).split()) + "\\n" for row in '
    "csv.reader(sys.stdin))"
)
JSON = 'import json, sys; sys.stdout.writelines(" ".join({}.split()) + "\\n" for line in sys.stdin)'
LITERAL = (
    "import ast, sys; values = (ast.literal_eval(line.strip()) "
    "for line in sys.stdin if line.strip()); "
    'texts = (" ".join(value) if isinstance(value, list) else value for value in values); '
    "texts = (text.decode() if isinstance(text, bytes) else text for text in texts); "
    'sys.stdout.writelines(" ".join(text.split()) + "\\n" for text in texts)'
)
MARKER = r"(<[^> ]+>|\[[A-Z]+\])"  # <start>, <s>, [CLS]
JSON_KEYS = ("caption", "raw", "text", "sentence", "title")  # of the text in an object
FORMS = (  # pattern of the start of a line, description, shell filter that keeps the caption
    (rf"[^|]*(?:{PICTURE}|\d)\s*\|\s*\d+\s*\|", "columns separated by |", "cut -d '|' -f 3-"),
    (rf"[^|]*(?:{PICTURE}|\d)\s*\|", "columns separated by |", "cut -d '|' -f 2-"),
    (r"[\d\s.,;+-]+$", "numbers and nothing else", None),
    (
        rf'"?[^,\s"]*{PICTURE}(?:#\d+)?"?,|"?\d+"?,\s*[^\d\s]|\w*\d{{3,}},\s*[^\d\s]',
        "`id,text`",
        "cut -d , -f 2-",
    ),
    (rf"[^;]*(?:{PICTURE}(?:#\d+)?|\d)\s*;", "columns separated by ;", "cut -d ';' -f 2-"),
    (
        rf"(?:\d+|\S*{PICTURE}(?:#\d+)?)[.):]\s+[^\d\s]",
        "a number or a name, and a text",
        "sed -E 's/^[^ ]+ +//'",
    ),
    (rf"\S+(?:#\d+|{PICTURE})\s", "a file name and a text", "sed -E 's/^[^ ]+ +//'"),
    (r"\d{3,}\s+[^\d\s]", "a number and a text", "sed -E 's/^[^ ]+ +//'"),
    (
        rf"{MARKER}\s.*\s{MARKER}$",
        "a text between markers",
        f"sed -E 's/^{MARKER} +//; s/ +{MARKER}[[:space:]]*$//'",
    ),
)


class Form(NamedTuple):
    """A form of lines. command: a shell filter that extracts the captions, or None."""

    description: str
    command: str | None


def find_form(texts: Sequence[str]) -> Form | None:
    """Find the form that nearly all lines share; None if they are captions. texts: C strings."""
    places = np.unique(np.linspace(0, max(len(texts) - 1, 0), LOOKED_AT).astype(int))
    chosen = [texts[number] for number in places[: len(texts)] if texts[number]]
    if not chosen:
        return None
    found = (
        _find_columns(chosen)
        or _find_json(chosen)
        or _find_literals(chosen)
        or _find_running_numbers(chosen)
    )
    if found:
        return found
    form = next((Form(*form) for pattern, *form in FORMS if _is_shared(pattern, chosen)), None)
    if form and form.description == "`id,text`" and any(',"' in text for text in chosen):
        form = form._replace(command=f"python -c {shlex.quote(CSV)}")  # CSV with quoted texts
    return form


def _is_shared(pattern: str, texts: list[str]) -> bool:
    return sum(bool(re.match(pattern, text)) for text in texts) >= SHARED * len(texts)


def _find_columns(texts: list[str]) -> Form | None:
    """Form of tab-separated lines; the column with the most words is taken as the caption."""
    if not _is_shared(r"[^\t]*\t", texts):
        return None
    rows = [text.split("\t") for text in texts]
    num_columns = min(len(row) for row in rows if len(row) > 1)
    words = [
        sum(len(row[column].split()) for row in rows if len(row) > column)
        for column in range(num_columns)
    ]
    column = int(np.argmax(words)) + 1
    is_token = column == 2 and _is_shared(r"[^\t]*#\d+\t", texts)
    description = "`name#number`, a tab and a text" if is_token else "columns separated by tabs"
    return Form(description, f"cut -f {column}{'-' * (column == num_columns)}")


def _find_json(texts: list[str]) -> Form | None:
    """Form of JSON lines."""
    if not _is_shared(r'[{\["]', texts):
        return None
    values = [value for value in map(_read_json, texts) if isinstance(value, (dict, list, str))]
    if len(values) < SHARED * len(texts):
        return None
    if all(isinstance(value, str) for value in values):
        return Form("JSON", f"python -c {shlex.quote(JSON.format('json.loads(line)'))}")
    objects = [value for value in values if isinstance(value, dict)]
    for key in JSON_KEYS:
        if len(objects) == len(values) and all(
            isinstance(value.get(key), str) for value in objects
        ):
            taken = f'json.loads(line)["{key}"]'
            return Form("JSON", f"python -c {shlex.quote(JSON.format(taken))}")
    return Form("JSON", None)


def _find_literals(texts: list[str]) -> Form | None:
    """Form of Python literals: bytes, strings or lists of words."""
    if not _is_shared(r"""(b?['"]|\[['"]).*['"\]]$""", texts):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escape sequences
        num_literals = sum(_is_literal(text) for text in texts)
    return (
        Form("Python literals", f"python -c {shlex.quote(LITERAL)}")
        if num_literals >= SHARED * len(texts)
        else None
    )


def _is_literal(text: str) -> bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return (
        isinstance(value, (bytes, str))
        or isinstance(value, list)
        and all(isinstance(word, str) for word in value)
    )


def _find_running_numbers(texts: list[str]) -> Form | None:
    """Form of lines that begin with numbers that increase through the file."""
    matches = [re.match(r"(\d{1,18})\s+[^\d\s]", text) for text in texts]
    numbers = [int(match[1]) for match in matches if match]
    if (
        len(numbers) < SHARED * len(texts)
        or len(set(numbers)) < FEWEST_NUMBERS
        or numbers != sorted(numbers)
    ):
        return None
    return Form("a number and a text", "sed -E 's/^[^ ]+ +//'")


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def warning(path: Path, texts: Sequence[str]) -> str | None:
    """Warning if the lines of a file hold more than captions, with a command that extracts them."""
    form = find_form(texts)
    if form is None:
        return None
    example = next(text for text in texts if text)
    example = example if len(example) <= 60 else example[:57] + "..."
    old, new = shlex.quote(str(path)), shlex.quote(f"{path}.new")
    how = (
        f"to keep only the text: {form.command} < {old} > {new} && mv {new} {old}"
        if form.command
        else "write the captions as text, one per line"
    )
    return (
        f"{path}: its lines hold more than captions: found "
        f"{form.description}, such as {example!r}; {how}"
    )

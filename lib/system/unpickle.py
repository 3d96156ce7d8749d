"""Files of torch.save, read so that nothing in them can run: tensors and plain values,
whatever kind wrote them.

Beside what torch allows, three kinds are let in: argparse.Namespace, in which the published
training script kept its options, and NumPy numbers and paths, which options hold now and then.
NumPy and pathlib take no part in reading them: the functions below stand in for theirs and give a
Python number or a string.
"""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from .errors import InputError, first_sentence
from .files import why_unreadable

DAMAGED = (  # what torch.load was seen to raise for files of random or altered bytes
    RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, struct.error, zipfile.BadZipFile, RecursionError, MemoryError,
)  # fmt: skip
NUMBERS = re.compile(
    r"b1|[iu][1248]|f[248]|U\d{1,4}"
)  # types of NumPy that are plain values: numbers and text
GLOBAL = re.compile(r"GLOBAL (\S+)")  # in what torch says of a name that it does not allow


class NumpyType:
    """Stands in for numpy.dtype: remembers a name such as "f8", and a byte order."""

    def __init__(self, name: str, *_: object) -> None:
        if not isinstance(name, str) or not NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(
                f"found a NumPy value of type {str(name):.20}, expected a number"
            )
        self.name, self.order = name, "="

    def __setstate__(self, state):
        order = state[1]
        self.order = order if order in ("<", ">") else "="


def numpy_number(kind: Any, data: Any) -> Any:
    """Replaces numpy.core.multiarray.scalar: the Python number, or text, of these bytes."""
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("found a damaged NumPy number")
    dtype: Any = np.dtype(kind.name).newbyteorder(kind.order)  # type: ignore[arg-type]
    if len(data) != dtype.itemsize or not data:
        raise pickle.UnpicklingError(
            f"found a NumPy number of {len(data)} bytes, expected {dtype.itemsize}"
        )
    return np.frombuffer(data, dtype)[0].item()


def posix_path(*parts: str) -> str:
    """Replaces pathlib's paths of Unix: the path as a string."""
    return str(PurePosixPath(*parts))


def windows_path(*parts: str) -> str:
    """Replaces pathlib's paths of Windows: the path as a string."""
    return str(PureWindowsPath(*parts))


ALLOWED = [
    argparse.Namespace,
    (NumpyType, "numpy.dtype"),
    *((numpy_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((posix_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "PurePosixPath")),
    *((windows_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("WindowsPath", "PureWindowsPath")),
]  # fmt: skip


def read(path: Path | str) -> Any:
    """The content of a file of torch.save, on the CPU. Raises InputError."""
    why = why_unreadable(path)
    if why:
        raise InputError(f"{path}: {why}; expected a checkpoint file: name another")
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a program of TorchScript is warned about, and refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # what torch wraps in advice
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        named = GLOBAL.search(reason)
        found = (
            (
                f"it needs {named[1]}, which is no tensor and no "
                "plain value and would run code when read"
            )
            if named
            else f"the file is damaged or would run code when read ({first_sentence(reason)})"
        )
        raise InputError(
            f"{path}: refused: {found}; expected tensors and plain values only: fetch it again "
            "from a source that you trust"
        ) from error
    except DAMAGED as error:
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({first_sentence(error)}); expected a "
            "complete file written by torch.save: copy or download it again"
        ) from error

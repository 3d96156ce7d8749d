"""Files of similarities: written as a record or as the published pickled dict, and read."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..system.errors import InputError, first_sentence
from ..system.files import why_unreadable
from .result_folder import run_folder
from .similarity import Similarities

UNREADABLE = (  # raised by NumPy for other or damaged files
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
    pickle.UnpicklingError,
)  # fmt: skip
PICKLE_ADVICE = (
    ". If it is a pickled file of the published code from a source that you trust, read it with "
    "load_similarities(path, allow_pickle=True)"
)


class SavedSimilarities(NamedTuple):
    """The contents of a results file. npts: number of images; sims: (N, C) float32."""

    npts: int
    sims: np.ndarray


def save_similarities(path: Path, similarities: Similarities, form: int | str = 1) -> None:
    """Write `npts` (number of images) and `sims` (N, C) as a .npy file in a run folder.

    form, as in --save_results: 1: one record without pickle, np.load(path)["sims"]; "published":
    the pickled dict that existing scripts read, np.load(path, allow_pickle=True).item()["sims"].
    """
    npts, sims = similarities.shape[0], similarities[:, :]
    with run_folder(path.parent).atomic_write(path.name) as file:
        if form == "published":
            _write_published(file, npts, sims)
        else:
            record: Any = np.zeros((), dtype=[("npts", np.int64), ("sims", np.float32, sims.shape)])
            record["npts"], record["sims"] = npts, sims
            np.save(file, record, allow_pickle=False)


def _write_published(file: BinaryIO, npts: int, sims: np.ndarray) -> None:
    """Write the bytes that np.save of NumPy 1 writes for the published dict. Every version of NumPy
    reads them."""
    protocol = 3 if sims.nbytes < 2**32 else 4  # the limit of protocol 3
    content = pickle.dumps(
        np.array(dict(npts=npts, sims=np.ascontiguousarray(sims)), dtype=object), protocol
    )
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))


def load_similarities(path: Path | str, allow_pickle: bool = False) -> SavedSimilarities:
    """Read a results file: the record of `save_similarities` or, with `allow_pickle`, the published
    pickled dict.

    A pickle can execute any code: allow it only for a file from a source that you trust. Raises
    InputError.
    """
    if why := why_unreadable(path):
        raise InputError(
            f"{path}: cannot be read (found {why}, expected a file results_DATASET.npy). Name "
            "another file"
        )
    try:
        content = np.load(path, allow_pickle=allow_pickle)
        content = content.item() if content.dtype == object else content
        npts, sims = int(content["npts"]), np.asarray(content["sims"], dtype=np.float32)
    except UNREADABLE as error:
        raise InputError(
            f"{path}: not a results file (found {first_sentence(error)}, expected an array with "
            f"npts and sims). Copy it again{'' if allow_pickle else PICKLE_ADVICE}"
        ) from error
    if sims.ndim != 2:
        raise InputError(
            f"{path}: not a matrix of similarities (found sims of shape {sims.shape}, expected "
            "images x captions). Save it again"
        )
    return SavedSimilarities(npts, sims)

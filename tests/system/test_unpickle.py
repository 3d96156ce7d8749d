"""Values of NumPy in files of torch.save."""

import pickle

import numpy as np
import pytest
import torch

from lib.system import unpickle
from lib.system.errors import InputError

WRONG_NUMBERS = {
    "an object": (("O8", False, True), (3, "|", None, None, None, -1, -1, 63), b""),
    "a record": (("V99999999999", False, True), None, b""),
    "too few bytes": (("f8", False, True), None, b"abc"),
    "a date": (("M8", False, True), None, b"\0" * 8),
    "no type": ((5,), None, b""),
}


class Scalar:
    """A NumPy number as a pickle can describe it, right or wrong."""

    def __init__(self, arguments, data):
        self.arguments, self.data = arguments, data

    def __reduce__(self):
        return np.dtype(np.float64).type(0).__reduce__()[0], (Type(self.arguments), self.data)


class Type:
    def __init__(self, arguments):
        self.arguments = arguments

    def __reduce__(self):
        return np.dtype, self.arguments


@pytest.mark.parametrize("arguments, _, data", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_numpy_values_that_are_no_numbers_are_refused(tmp_path, arguments, _, data):
    torch.save({"x": Scalar(arguments, data)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="file.pth: .*(NumPy|cannot be read)"):
        unpickle.read(tmp_path / "file.pth")


def test_an_array_is_named_as_what_it_is(tmp_path):
    torch.save({"x": np.ones(3)}, tmp_path / "file.pth")
    with pytest.raises(
        InputError,
        match=r"file.pth: refused: it needs numpy.*_reconstruct, which is no tensor and no",
    ):
        unpickle.read(tmp_path / "file.pth")


def test_damage_that_pickle_allows_is_refused(tmp_path):
    with open(tmp_path / "file.pth", "wb") as file:
        pickle.dump(Scalar(("f8", False, True), "text"), file, protocol=2)
    with pytest.raises(InputError, match="file.pth: "):
        unpickle.read(tmp_path / "file.pth")

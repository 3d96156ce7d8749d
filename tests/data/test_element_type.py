"""The type of features in a TSV file, inferred from their bytes."""

import json

import numpy as np
import pytest
from tsv_inputs import DIM, check_values, convert_there, encoded, write_json, write_tsv

from lib.data import element_type


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path)
    return tmp_path


@pytest.mark.parametrize("boxes", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype, error", [("float16", 2e-3), ("float64", 0)])
def test_the_element_type_shows_in_the_bytes(folder, dtype, error, boxes, capsys):
    write_tsv(folder, dtype=dtype, box_dtype=boxes)
    assert convert_there(folder) == 0
    check_values(folder, atol=error, rtol=0)
    assert f"x {DIM} features ({dtype})" in capsys.readouterr().out


KINDS = {
    "of a detector": lambda generator: np.maximum(generator.normal(0.3, 0.6, (600, 16)), 0),
    "mostly zeros": lambda generator: np.maximum(generator.normal(-1.5, 0.8, (4000, 16)), 0),
    "of both signs": lambda generator: generator.standard_normal((600, 16)),
    "of length one": lambda generator: generator.standard_normal((600, 16)) / 40,
    "large": lambda generator: generator.uniform(2, 60, (600, 16)),
    "rounded to float16": lambda generator: generator.standard_normal((600, 16)).astype(np.float16),
    "rounded to bfloat16": lambda generator: np.exp2(generator.integers(-6, 3, (600, 16))) * 1.5,
    "zeros and ones": lambda generator: generator.integers(0, 2, (600, 16)),
}


@pytest.mark.parametrize("dtype", element_type.DTYPES)
@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_the_type_of_all_kinds_of_values_is_found(values, dtype):
    array = values(np.random.default_rng(1)).astype(dtype)
    content = np.frombuffer(array.tobytes(), np.uint8)
    assert element_type.find_dtype(content, array[0].nbytes) == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_whole_numbers_are_none_of_the_types(dtype):
    array = np.random.default_rng(1).integers(0, 120, (600, 16)).astype(dtype)
    assert (
        element_type.find_dtype(np.frombuffer(array.tobytes(), np.uint8), array[0].nbytes) is None
    )


def test_too_few_bytes_show_no_type(folder, capsys):
    assert element_type.find_dtype(np.zeros(0, np.uint8), 64) is None
    assert element_type.find_dtype(np.zeros(64000, np.uint8), 64) is None
    (folder / "split.json").write_text(
        json.dumps(
            {"images": [dict(filename="100.jpg", split="test", sentences=[dict(raw="one")] * 5)]}
        )
    )
    write_tsv(
        folder,
        pictures=[100],
        change=lambda cell: cell if len(cell) < 1000 else encoded(np.ones((6, 8))),
    )
    assert convert_there(folder) == 2
    error = capsys.readouterr().err
    assert (
        "32 bytes of features per box, and their type cannot be inferred" in error
        and "give the right --dtype" in error
    )
    assert not (folder / "mine_precomp").exists()
    assert convert_there(folder, "--dtype", "float32") == 0
    assert np.array_equal(np.load(folder / "mine_precomp" / "test_ims.npy"), np.ones((1, 6, 8)))


def test_a_type_that_is_said_is_taken_and_doubted_aloud(folder, capsys):
    write_tsv(folder, dtype=np.float16)
    assert convert_there(folder, "--dtype", "float32") == 0
    assert (
        "features are read as float32, because of --dtype, although their bytes look like float16"
        in capsys.readouterr().out
    )
    write_tsv(folder, change=lambda cell: cell if len(cell) < 1000 else encoded(np.ones((6, 3))))
    assert convert_there(folder, "--dtype", "float64", "--overwrite") == 2
    assert (
        "found 12 bytes of features per box, and --dtype float64 does not fit"
        in capsys.readouterr().err
    )

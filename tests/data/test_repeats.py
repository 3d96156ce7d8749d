"""Images that are stored several times in a file of region features."""

import numpy as np
import pytest

from lib.data import repeats
from lib.data.repeats import find_repeats
from lib.system.errors import InputError


class InMemory:
    """Replaces a `RegionFile`."""

    def __init__(self, rows):
        self.rows, self.shape = rows, rows.shape

    def __len__(self):
        return len(self.rows)

    def read(self, row, start, stop):
        return self.rows[row, start:stop]


class Named:
    name = "x_caps_images.txt"


SHAPES = [(1, 1), (1, 5), (12, 1), (500, 1), (12, 2), (12, 3), (100, 5), (5000, 5), (2, 7)]


@pytest.mark.parametrize("num_images, times", SHAPES)
def test_rows_that_repeat_equally_often_are_found(num_images, times):
    rows = np.arange(num_images).repeat(times)
    found, notes = find_repeats(
        "x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named
    )
    assert found == times and len(notes) == (times != 5 and num_images > 1)


@pytest.mark.parametrize(
    "rows, expected",
    [
        (
            np.tile(np.arange(100), 5),
            "rows 0 and 100 (from 0) are the same: the first 100 rows are stored 5 times",
        ),
        (
            np.tile(np.arange(50).repeat(5), 2),
            "rows 0 and 250 (from 0) are the same: the first 250 rows are stored 2 times",
        ),
        (np.zeros(40), "rows 0 to 39 (from 0) are all the same"),
        (np.zeros(5000), "are all the same, expected different images"),
        (
            [*np.arange(50).repeat(5), *range(50, 300)],
            "rows 0 and 4 (from 0) are the same and rows",
        ),
        ([*range(40), *np.arange(40, 60).repeat(3)], "are the same and rows 0 and 1 differ"),
        (
            [*np.arange(10).repeat(5), *np.arange(10, 20).repeat(3)],
            "rows 0 and 4 (from 0) are the same and rows 52 and 53",
        ),
        (
            np.random.default_rng(0).permutation(np.arange(1000).repeat(5)),
            "are the same, and so are rows",
        ),
        (
            [image for start in range(0, 900, 10) for image in [*range(start, start + 10)] * 5],
            "and so are rows",
        ),
        ([*range(900), *[*range(900, 1000)] * 5], "and so are rows"),
        (
            [*np.arange(9).repeat(5), 9, 9, 10, 9, 9],
            "rows 0 and 4 (from 0) are the same and rows 46 and 47 differ",
        ),
    ],
)
def test_other_repetitions_are_refused_with_two_rows(rows, expected):
    rows = np.asarray(rows, np.float32)[:, None, None]
    with pytest.raises(InputError) as error:
        find_repeats("x_ims.npy", InMemory(rows), Named)
    assert expected in str(error.value) and "store every image once" in str(error.value)
    assert "into x_caps_images.txt" in str(error.value)


def test_images_that_a_data_set_holds_twice_are_told_of():
    rows = np.arange(200)
    rows[101] = rows[100]  # between two places that are compared
    assert (
        find_repeats("x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named)[0] == 1
    )
    apart = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 10, 11]
    found, (note,) = find_repeats(
        "x_ims.npy", InMemory(np.array(apart, np.float32)[:, None, None]), Named
    )
    assert found == 1 and "rows 2 and 9 (from 0) are the same image" in note
    rows[1] = rows[0]
    found, (note,) = find_repeats(
        "x_ims.npy", InMemory(rows.astype(np.float32)[:, None, None]), Named
    )
    assert (
        found == 1
        and "rows 0 and 1 (from 0) are the same image" in note
        and "x_caps_images.txt" in note
    )
    repeated = rows.repeat(5)  # also consecutive copies in a file of repeated rows
    assert find_repeats(
        "x_ims.npy", InMemory(repeated.astype(np.float32)[:, None, None]), Named
    ) == (5, [])


def test_opening_compares_few_rows(monkeypatch):
    """The number of compared rows grows with the square root of the number of images."""
    read, content = [], repeats._Rows._content
    monkeypatch.setattr(
        repeats._Rows, "_content", lambda rows, row: read.append(row) or content(rows, row)
    )
    for num_images in (100, 5000):
        read.clear()
        rows = np.arange(num_images, dtype=np.float32).repeat(5)[:, None, None]
        assert find_repeats("x_ims.npy", InMemory(rows), Named) == (5, [])
        assert len(set(read)) < 300 + repeats.COPY_SAMPLE_FACTOR * num_images**0.5

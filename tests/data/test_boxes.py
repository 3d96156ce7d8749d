"""Boxes of regions: kept by a conversion, checked, and left out where they cannot be located."""

import numpy as np
import pytest
from own_features import (
    NUM_BOXES,
    PLACES,
    arguments,
    boxes_of,
    encoded,
    features,
    tsv_line,
    write_inputs,
)
from test_check import run


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


def write_one_line_of_each(inputs, change):
    """a.tsv with all images, the cells of each changed by `change(cells, name, num_boxes)`."""
    lines = []
    for number, num_boxes in enumerate(NUM_BOXES):
        name = 1000 + number
        cells = tsv_line(name, num_boxes, features(name, num_boxes)).rstrip(b"\n").split(b"\t")
        lines.append(b"\t".join(change(cells, name, num_boxes)) + b"\n")
    (inputs / "a.tsv").write_bytes(b"".join(lines))
    return arguments(inputs, tsv=("a.tsv",))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_boxes_of_every_type_are_fractions_of_the_picture(inputs, dtype, capsys):
    def change(cells, name, num_boxes):
        cells[4] = encoded(boxes_of(name, num_boxes).astype(dtype)).encode()
        return cells

    assert run(*write_one_line_of_each(inputs, change)) == 0
    out = inputs / "mine_precomp"
    for split, numbers in PLACES.items():
        boxes = np.load(out / f"{split}_boxes.npy")
        for row, number in zip(boxes, numbers):
            expected = boxes_of(1000 + number, NUM_BOXES[number]) / [640, 480, 640, 480]
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-3)
    assert "boxes: kept, as fractions" in capsys.readouterr().out
    assert run("check", out) == 0
    assert "  boxes     one per region (train_boxes.npy)" in capsys.readouterr().out


def without_boxes(cells, name, num_boxes):
    return [*cells[:4], b"" if name == 1004 else cells[4], cells[5]]


def without_size(cells, name, num_boxes):
    return [cells[0], b"0" if name == 1004 else cells[1], *cells[2:]]


@pytest.mark.parametrize(
    "change, lacks", [(without_boxes, "boxes"), (without_size, "image_w and image_h")]
)
def test_boxes_that_cannot_be_located_are_not_kept(inputs, change, lacks, capsys):
    assert run(*write_one_line_of_each(inputs, change)) == 0
    out = inputs / "mine_precomp"
    assert f"a.tsv: line 5 has no {lacks}\n" in capsys.readouterr().out
    assert not [*out.glob("*_boxes.npy"), *out.glob("*_picture_sizes.npy")]
    assert run("check", out) == 0 and "boxes" not in capsys.readouterr().out


def widths_and_heights(cells, name, num_boxes):
    """Left, top, width, height instead of corners."""
    boxes = boxes_of(name, num_boxes)
    boxes[:, 2:] -= boxes[:, :2]
    return [*cells[:4], encoded(boxes).encode(), cells[5]]


def twice_as_large(cells, name, num_boxes):
    return [*cells[:4], encoded(2 * boxes_of(name, num_boxes)).encode(), cells[5]]


def not_numbers(cells, name, num_boxes):
    return [*cells[:4], encoded(np.full((num_boxes, 4), np.nan, np.float32)).encode(), cells[5]]


@pytest.mark.parametrize("change", [widths_and_heights, twice_as_large, not_numbers])
def test_boxes_outside_their_pictures_are_named(inputs, change, capsys):
    assert run(*write_one_line_of_each(inputs, change)) == 0
    text = capsys.readouterr().out
    assert "do not lie in their pictures, such as image 0 of train (from 0)" in text


@pytest.mark.parametrize(
    "content",
    [np.zeros((7, 10, 3), np.float32), np.zeros((7, 36, 4), bool), np.zeros(3), "no array"],
    ids=["shape", "type", "dimensions", "text"],
)
def test_check_names_boxes_that_do_not_fit(inputs, content, capsys):
    assert run(*arguments(inputs)) == 0
    path = inputs / "mine_precomp" / "train_boxes.npy"
    if isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    capsys.readouterr()
    assert run("check", inputs / "mine_precomp") == 1
    text = capsys.readouterr().out
    assert f"1. {path}: " in text and "expected numbers of shape (7, 36, 4)" in text


def test_boxes_of_an_earlier_conversion_do_not_survive(inputs):
    assert run(*arguments(inputs)) == 0
    assert run(*write_one_line_of_each(inputs, without_boxes), "--overwrite") == 0
    assert not list((inputs / "mine_precomp").glob("*_boxes.npy"))

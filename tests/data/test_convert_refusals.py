"""Inputs of a conversion that are refused, before or after something is written."""

import base64
import json
import os

import numpy as np
import pytest
from own_features import (
    DIM,
    arguments,
    check_converted,
    contents,
    features,
    tsv_line,
    write_inputs,
)
from test_check import run

from lib.data import conversion, convert


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


def change_line(number, change):
    """Damage: replace a line of b.tsv, from 1, by change(its fields)."""

    def damage(folder):
        lines = (folder / "b.tsv").read_bytes().splitlines(keepends=True)
        lines[number - 1] = b"\t".join(change(lines[number - 1].split(b"\t")))
        (folder / "b.tsv").write_bytes(b"".join(lines))

    return damage


def change_json(change):
    def damage(folder):
        content = json.loads((folder / "split.json").read_text())
        change(content["images"])
        (folder / "split.json").write_text(json.dumps(content))

    return damage


def cut(size):
    return lambda folder: os.truncate(folder / "b.tsv", (folder / "b.tsv").stat().st_size - size)


LINE = base64.b64encode(features(1, 3)[:, :15].copy()) + b"\n"
REFUSED_BEFORE = {  # damage to valid inputs -> parts of the error message; nothing is written
    "no TSV": (lambda folder: (folder / "b.tsv").unlink(), ["b.tsv: no such file", "--tsv"]),
    "a folder of TSV": (
        lambda folder: [
            (folder / "b.tsv").rename(folder / "c.tsv"),
            (folder / "b.tsv").mkdir(),
            (folder / "c.tsv").rename(folder / "b.tsv" / "c.tsv"),
        ],
        ["b.tsv: a folder, not a file", "b.tsv/*.tsv"],
    ),
    "no JSON": (lambda folder: (folder / "split.json").unlink(), ["split.json: no such file"]),
    "half a JSON": (
        lambda folder: os.truncate(folder / "split.json", 500),
        ["split.json: cannot be read as JSON"],
    ),
    "another JSON": (
        lambda folder: (folder / "split.json").write_text("[]"),
        ['split.json: found no list "images"'],
    ),
    "a JSON without images": (
        change_json(lambda images: images.clear()),
        ['found no list "images"'],
    ),
    "an entry without sentences": (
        change_json(lambda images: images[3].pop("sentences")),
        ["split.json: image 3: sentences is missing, expected a list of {"],
    ),
    "an entry that is a text": (
        change_json(lambda images: images.append("x")),
        ['split.json: image 12: a string, expected {"split": ...', "images count from 0"],
    ),
    "a sentence that is a text": (
        change_json(lambda images: images[0].update(sentences=["A dog.", "Two dogs."])),
        ['split.json: image 0: sentences[0] is a string, expected {"raw": ...}'],
    ),
    "a sentence without raw": (
        change_json(lambda images: images[1]["sentences"][4].pop("raw")),
        ['image 1: "raw" of sentences[4] is missing, expected a string'],
    ),
    "an unknown split": (
        change_json(lambda images: images[2].update(split="dev")),
        ["split.json: image 2: split 'dev' is none of train, restval, val, test"],
    ),
    "a split that is a list": (
        change_json(lambda images: images[2].update(split=["val"])),
        ["image 2: split is a list, expected one of train, restval, val, test"],
    ),
    "an entry without a name": (
        change_json(lambda images: [images[0].pop(name) for name in ("imgid", "filename")]),
        ["image 0: found none of cocoid, filename, imgid"],
    ),
    "images of one name": (
        change_json(lambda images: images[4].update(filename="val/1002.jpg")),
        ["split.json: 1 names stand for several images, such as 1002; expected"],
    ),
    "images of one cocoid": (
        change_json(lambda images: [image.update(cocoid=n // 2) for n, image in enumerate(images)]),
        ["split.json: 6 names stand for several images, such as 0, 1, 2, 4, 5, ...; expected"],
    ),
    "no sentences": (
        change_json(lambda images: [images[n]["sentences"].clear() for n in (2, 6)]),
        ["split.json: 2 images without sentences, such as 1002, 1006", "remove these images"],
    ),
    "half a character": (
        change_json(lambda images: images[1]["sentences"][2].update(raw="a \ud800 b")),
        ['image 1: "raw" of sentences[2] contains NUL or half a character'],
    ),
    "a name of two lines": (
        change_json(lambda images: images[1].update(filename="10\n01")),
        ["image 1: filename '10\\n01' contains control characters"],
    ),
    "a name that is a fraction": (
        change_json(lambda images: images[1].update(cocoid=1.5)),
        ["image 1: cocoid is a number, expected a string or a whole number"],
    ),
    "missing images": (
        lambda folder: (folder / "b.tsv").write_bytes(tsv_line(1001, 3)),
        [
            (
                "split.json: 6 of 12 images are in no TSV file, such as 1004, 1005, 1008, 1010, "
                "1006, ... (by filename); the TSV files hold 0 others; matched by filename: 6, "
                "imgid: 0"
            )
        ],
    ),
    "an empty TSV": (
        lambda folder: [(folder / name).write_bytes(b"") for name in ("a.tsv", "b.tsv")],
        ["a.tsv: found no image in the TSV files"],
    ),
    "a last line cut in its features": (
        cut(20),
        ["b.tsv: line 7 (image 1005): found", "the file is truncated"],
    ),
    "a last line cut in its boxes": (
        cut(400),
        ["b.tsv: line 7 has 5 columns, expected 6", "the file is truncated"],
    ),
    "spaces for tabs": (
        change_line(2, lambda fields: [b" ".join(fields)]),
        ["b.tsv: line 2 has 1 columns"],
    ),
    "no boxes": (
        change_line(4, lambda f: [*f[:3], b"0", *f[4:]]),
        ["b.tsv: line 4: found num_boxes '0'", "extract"],
    ),
    "boxes in words": (
        change_line(4, lambda f: [*f[:3], b"ten", *f[4:]]),
        ["b.tsv: line 4: found num_boxes 'ten'"],
    ),
    "a box too many": (
        change_line(4, lambda f: [*f[:3], b"11", *f[4:]]),
        ["b.tsv: line 4 (image 1010): found 640 bytes of features, expected 11 boxes of 64 bytes"],
    ),
    "another feature size": (
        change_line(1, lambda f: [*f[:3], b"3", f[4], LINE]),
        [
            (
                "b.tsv: line 1 (image 1004): found 180 bytes of features, expected 3 boxes of 64 "
                "bytes, as in the first"
            )
        ],
    ),
    "a character lost": (
        change_line(3, lambda f: [*f[:5], f[5][1:]]),
        ["b.tsv: line 3 (image 1001): found"],
    ),
    "an output that is a file": (
        lambda folder: (folder / "mine_precomp").write_text("kept"),
        ["mine_precomp", "expected a writable folder"],
    ),
}


@pytest.mark.parametrize("damage, expected", REFUSED_BEFORE.values(), ids=REFUSED_BEFORE)
def test_bad_inputs_are_refused_before_anything_is_written(inputs, damage, expected, capsys):
    damage(inputs)
    before = contents(inputs)
    assert run(*arguments(inputs, "--regions", 4)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in expected:
        assert part in error, error
    assert contents(inputs) == before and not (inputs / "mine_precomp").is_dir()


def nan(fields):
    return [
        *fields[:5],
        base64.b64encode(np.full((int(fields[3]), DIM), np.nan, np.float32)) + b"\n",
    ]


REFUSED_AFTER = {
    "bad base64": (
        lambda f: [*f[:5], b"!" + f[5][1:]],
        ["b.tsv: line 3: bad base64", "expected features of 5"],
    ),
    "NaN": (nan, ["b.tsv: line 3: found NaN or Inf in the features"]),
}


@pytest.mark.parametrize("change, expected", REFUSED_AFTER.values(), ids=REFUSED_AFTER)
def test_bad_features_are_named_and_leave_nothing_that_looks_finished(
    inputs, change, expected, capsys, monkeypatch
):
    monkeypatch.setattr(convert, "IMAGES_PER_WRITE", 2)
    good = (inputs / "b.tsv").read_bytes()
    change_line(3, change)(inputs)
    assert run(*arguments(inputs, "--regions", 4)) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in expected) and error.count("\n") == 1
    assert {path.name for path in (inputs / "mine_precomp").iterdir()} == {
        convert.WORK,
        conversion.LOCK,
    }
    (inputs / "b.tsv").write_bytes(good)
    assert (
        run(*arguments(inputs, "--regions", 4)) == 0
    )  # the file is different now, so the conversion restarts
    assert "going on" not in capsys.readouterr().out
    check_converted(inputs)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_the_number_of_regions_is_at_least_one(inputs, value, capsys):
    assert run(*arguments(inputs, f"--regions={value}")) == 2
    assert (
        "--regions" in (error := capsys.readouterr().err)
        and f"found {value!r}, expected a whole number" in error
    )

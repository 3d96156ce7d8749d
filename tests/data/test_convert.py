"""Own features to a data folder: what lands where, what is refused,
conversions that are killed, training on them."""

import base64
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import damage
import numpy as np
import pytest
import torch
from helpers import PROCESS_TIMEOUT
from test_check import run

import eval as evaluation
import train
from lib.data import conversion, convert, demo, karpathy, tsv, tsv_columns
from lib.data.dataset import RetrievalDataset, TrainingPairs, batches, training_loader
from lib.evaluation import encoding
from lib.model import bert, checkpoint
from lib.model.network import build_model
from lib.system.errors import InputError

ROOT = Path(__file__).parents[2]
DIM = 16


def features(name, num_boxes, dim=DIM):
    """(n, D), the same for the same name; never all zero."""
    return np.random.default_rng(int(name)).random((num_boxes, dim), dtype=np.float32) + 0.1


def tsv_line(name, num_boxes, values=None):
    values = features(name, num_boxes) if values is None else values
    boxes = np.zeros((num_boxes, 4), np.float32)
    fields = [
        name,
        640,
        480,
        num_boxes,
        base64.b64encode(boxes).decode(),
        base64.b64encode(values).decode(),
    ]
    return "\t".join(map(str, fields)).encode() + b"\n"


def entry(number, split, sentences=5, **more):
    """An image of a Karpathy JSON, as dataset_flickr30k.json has it."""
    texts = [
        {"raw": f"Caption {caption}  of\n image {number} .", "tokens": []}
        for caption in range(sentences)
    ]
    image = {
        "split": split,
        "sentences": texts,
        "filename": f"{1000 + number}.jpg",
        "imgid": number,
    }
    return image | {"sentids": [5 * number + caption for caption in range(sentences)]} | more


NUM_BOXES = [3, 5, 4, 9, 1, 4, 7, 4, 6, 2, 10, 4]
SPLITS = [
    "train",
    "val",
    "train",
    "test",
    "train",
    "train",
    "val",
    "test",
    "train",
    "test",
    "train",
    "train",
]
# which images, in the JSON's order
PLACES = {"train": [0, 2, 4, 5, 8, 10, 11], "dev": [1, 6], "test": [3, 7, 9]}


@pytest.fixture
def inputs(tmp_path):
    """Two TSV files, images in an order of their own,
    and a JSON of twelve images of up to ten boxes."""
    lines = [
        tsv_line(1000 + number, NUM_BOXES[number])
        for number in [7, 2, 11, 0, 9, 4, 6, 1, 10, 3, 8, 5]
    ]
    (tmp_path / "a.tsv").write_bytes(b"".join(lines[:5]))
    (tmp_path / "b.tsv").write_bytes(b"".join(lines[5:]))
    write_json(tmp_path, [entry(number, split) for number, split in enumerate(SPLITS)])
    return tmp_path


def write_json(folder, images, **more):
    (folder / "split.json").write_text(json.dumps({"images": images, "dataset": "mine"} | more))


def arguments(folder, *more, tsv=("a.tsv", "b.tsv")):
    files = [folder / name for name in tsv]
    return [
        "convert",
        "--tsv",
        *files,
        "--json",
        folder / "split.json",
        "--out",
        folder / "mine_precomp",
        *more,
    ]


def contents(folder):
    return {
        path: content
        for path, content in damage.contents(folder).items()
        if path.name != convert.LOCK
    }


def check_converted(folder, num_regions=4):
    out = folder / "mine_precomp"
    ends = ("ims.npy", "num_regions.npy", "caps.txt", "ids.txt")
    names = {f"{split}_{end}" for split in PLACES for end in ends}
    assert {path.name for path in out.iterdir()} - {convert.LOCK} == names
    for split, numbers in PLACES.items():
        regions, counts = (
            np.load(out / f"{split}_ims.npy"),
            np.load(out / f"{split}_num_regions.npy"),
        )
        assert regions.shape == (len(numbers), num_regions, DIM) and regions.dtype == np.float32
        assert counts.dtype == np.int32 and counts.tolist() == [
            min(NUM_BOXES[n], num_regions) for n in numbers
        ]
        for row, count, number in zip(regions, counts, numbers):
            expected = features(1000 + number, NUM_BOXES[number])[:num_regions]
            np.testing.assert_array_equal(row[:count], expected)
            assert not row[count:].any()
        captions = [
            f"Caption {caption} of image {number} ." for number in numbers for caption in range(5)
        ]
        assert (out / f"{split}_caps.txt").read_text() == "".join(f"{text}\n" for text in captions)
        assert (out / f"{split}_ids.txt").read_text() == "".join(
            f"{1000 + number}\n" for number in numbers
        )


def test_every_image_lands_in_its_place(inputs, capsys):
    assert run(*arguments(inputs, "--regions", 4)) == 0
    check_converted(inputs)
    text = capsys.readouterr().out
    assert "no dev split" not in text and "--dataset NAME" not in text
    assert (
        "train: 7 images, 35 captions\ndev: 2 images, 10 captions\ntest: 3 images, 15 captions\n"
        in text
    )
    assert (
        "12 images of 1 to 10 regions x 16 features (float32): 5 cut to their first 4 "
        "regions, 3 padded with"
    ) in text
    assert run("check", inputs / "mine_precomp") == 0
    assert (
        "  regions   1 to 4, mean 3.4 an image (train_num_regions.npy)\n" in capsys.readouterr().out
    )


def test_36_regions_unless_told_otherwise(inputs):
    assert run(*arguments(inputs)) == 0
    check_converted(inputs, num_regions=36)


def test_heads_blank_lines_line_ends_and_unused_images(inputs, capsys):
    for name in ("a.tsv", "b.tsv"):
        found = (inputs / name).read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n")
        (inputs / name).write_bytes("\t".join(tsv_columns.COLUMNS).encode() + b"\r\n" + found)
    with open(inputs / "a.tsv", "ab") as file:
        file.write(b"\n\n" + tsv_line(7, 3) + tsv_line(8, 5) + tsv_line(1002, 5, features(0, 5)))
    assert run(*arguments(inputs, "--regions", 4)) == 0
    check_converted(inputs)  # of 1002 the first
    assert (
        "not used: 2 images not in the JSON, 1 lines that repeat an image"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "tsv_name, json_fields, written_id",
    [
        ("{0}", lambda n: dict(cocoid=n), "{0}"),
        ("{0:012d}", lambda n: dict(cocoid=n), "{0}"),
        ("{0}", lambda n: dict(filename=f"{n}.jpg"), "{0}"),
        ("{0}.jpg", lambda n: dict(filename=f"{n}.jpg"), "{0}"),
        ("val2014/x_{0:06d}.jpg", lambda n: dict(filename=f"x_{n:06d}.jpg", imgid=7), "x_{0:06d}"),
        ("C:\\val\\X_{0}.JPG", lambda n: dict(filename=f"x_{n}.jpg"), "x_{0}"),
        ("X_{0}.jpg.npz", lambda n: dict(filename=f"X_{n}.jpg"), "X_{0}"),
        ("x_{0}.jpg", lambda n: dict(filename=f"x_{n}.jpg", cocoid=n + 7), "{1}"),
    ],
)
def test_an_image_may_go_by_any_of_its_names(inputs, tsv_name, json_fields, written_id):
    numbers = [3, 8, 5]
    (inputs / "a.tsv").write_bytes(
        b"".join(tsv_line(tsv_name.format(n), n, features(n, n)) for n in reversed(numbers))
    )
    write_json(inputs, [entry(n + 100, "train") | json_fields(n) for n in numbers])
    convert.convert([inputs / "a.tsv"], inputs / "split.json", inputs / "out")
    regions = np.load(inputs / "out" / "train_ims.npy")
    for row, number in zip(regions, numbers):
        np.testing.assert_array_equal(row[:number], features(number, number))
    ids = (inputs / "out" / "train_ids.txt").read_text().split("\n")
    # COCO's number, or the name that was matched
    assert ids == [*(written_id.format(n, n + 7) for n in numbers), ""]


def test_training_without_dev_is_told_the_option(inputs, capsys):
    write_json(inputs, [entry(n, split) for n, split in enumerate(SPLITS) if split != "val"])
    assert run(*arguments(inputs)) == 0 and run("check", inputs / "mine_precomp") == 0
    text = capsys.readouterr().out
    assert (
        "\nno dev split: training needs --val_split test (the JSON has no image of val)\n" in text
    )
    assert (
        "\nno dev split: training needs --val_split test\ntrain "
        "and test have in common: 0 images, 0 ids"
    ) in text


def test_a_folder_that_no_dataset_finds_is_told_of(inputs, capsys):
    assert run(*arguments(inputs)[:-1], inputs / "slip") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(
        "training finds it as --dataset NAME only where the folder is called NAME_precomp"
    )
    assert last.endswith(f"{inputs / 'slip'}_precomp")


def test_coco_has_restval_in_train_and_two_test_splits(inputs, monkeypatch):
    monkeypatch.setattr(karpathy, "COCO_1K", 2)
    splits = [
        "restval",
        "test",
        "train",
        "val",
        "test",
        "restval",
        "test",
        "test",
        "train",
        "val",
        "val",
        "test",
    ]
    write_json(
        inputs, [entry(n, split, sentences=6, cocoid=1000 + n) for n, split in enumerate(splits)]
    )
    assert run(*arguments(inputs, "--regions", 4)) == 0
    out = inputs / "mine_precomp"
    numbers = {
        "train": [0, 2, 5, 8],
        "dev": [3, 9, 10],
        "test": [1, 4],
        "testall": [1, 4, 6, 7, 11],
    }
    for split, expected in numbers.items():
        assert (out / f"{split}_ids.txt").read_text().split() == [
            str(1000 + number) for number in expected
        ]
        firsts = [features(1000 + number, NUM_BOXES[number])[0] for number in expected]
        np.testing.assert_array_equal(np.load(out / f"{split}_ims.npy")[:, 0], firsts)
        captions = (out / f"{split}_caps.txt").read_text().splitlines()
        assert captions[-1] == f"Caption 4 of image {expected[-1]} ." and len(captions) == 5 * len(
            expected
        )
    assert run("check", out) == 0


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
REFUSED_BEFORE = {  # what is done to good inputs -> what the refusal must say; nothing is written
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
        ['image 1: "raw" of sentences[2] holds NUL or half a character'],
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
        ["mine_precomp", "expected a folder to write in"],
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
        convert.LOCK,
    }
    (inputs / "b.tsv").write_bytes(good)
    assert run(*arguments(inputs, "--regions", 4)) == 0  # another file now: from the start
    assert "going on" not in capsys.readouterr().out
    check_converted(inputs)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_the_number_of_regions_is_at_least_one(inputs, value, capsys):
    assert run(*arguments(inputs, f"--regions={value}")) == 2
    assert (
        "--regions" in (error := capsys.readouterr().err)
        and f"found {value!r}, expected a whole number" in error
    )


def test_a_full_disk_is_told_before_anything_is_written(inputs, monkeypatch, capsys):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    assert run(*arguments(inputs)) == 2
    assert (
        "0.0 GB free, expected 0.0 GB: make room" in capsys.readouterr().err
        and not (inputs / "mine_precomp").exists()
    )


def test_what_is_there_is_replaced_only_when_asked(inputs, capsys):
    out = inputs / "mine_precomp"
    out.mkdir()
    (out / "dev_caps.txt").write_text("old")
    (out / "other.txt").write_text("kept")
    assert run(*arguments(inputs, "--regions", 4)) == 2
    error = capsys.readouterr().err
    assert "mine_precomp: holds dev_caps.txt, expected none" in error and "--overwrite" in error
    assert contents(out) == {Path("dev_caps.txt"): b"old", Path("other.txt"): b"kept"}
    assert run(*arguments(inputs, "--regions", 4, "--overwrite")) == 0
    assert (out / "other.txt").read_text() == "kept"
    (out / "other.txt").unlink()
    check_converted(inputs)
    assert run(*arguments(inputs, "--regions", 5, "--overwrite", "1")) == 0
    check_converted(inputs, num_regions=5)
    assert run(*arguments(inputs, "--regions", 4, "--overwrite", "0")) == 2


def test_a_conversion_with_other_settings_starts_over(inputs, monkeypatch, capsys):
    monkeypatch.setattr(convert, "IMAGES_PER_WRITE", 2)
    kill_at(inputs, "conversion.store", 3)
    assert run(*arguments(inputs, "--regions", 5)) == 0
    assert ".conversion is restarted: it is of other inputs or options" in capsys.readouterr().out
    check_converted(inputs, num_regions=5)


def kill_at(folder, name, call):
    """Convert in a forked process that kills itself after a call of a function (from 1)."""
    pid = os.fork()
    if pid == 0:
        try:
            *parents, attribute = name.split(".")
            place = functools.reduce(getattr, parents, convert)
            function, calls = getattr(place, attribute), []

            def fatal(*arguments, **settings):
                calls.append(1)
                found = function(*arguments, **settings)
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            setattr(place, attribute, fatal)
            run(*arguments(folder, "--regions", 4))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def whole_files(folder):
    return {str(path) for path in contents(folder / "mine_precomp") if len(path.parts) == 1}


def test_what_is_on_disk_is_not_decoded_again(inputs, monkeypatch, capsys):
    monkeypatch.setattr(convert, "IMAGES_PER_WRITE", 2)
    assert kill_at(inputs, "conversion.store", 4)
    decoded, read = [], tsv.read_features
    monkeypatch.setattr(tsv, "read_features", lambda *found: decoded.append(1) or read(*found))
    assert run(*arguments(inputs, "--regions", 4)) == 0
    assert "resuming the conversion" in capsys.readouterr().out and len(decoded) == 12 - 8
    check_converted(inputs)


@pytest.mark.parametrize(
    "number, status, told",
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "stopped: run the same command again to resume\n"),
    ],
)
def test_a_process_that_is_stopped_from_outside_goes_on(inputs, capsys, number, status, told):
    slow = (
        "import time; from lib.data import convert, conversion, __main__ as data_command\n"
        "from lib.system import errors\n"
        "store = conversion.store\n"
        "conversion.store = lambda *found: (time.sleep(0.2), "
        "store(*found))\nconvert.IMAGES_PER_WRITE = 1\n"
        "errors.command_line(data_command.main)\n"
    )
    command = [sys.executable, "-c", slow, *map(str, arguments(inputs, "--regions", 4))]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    work, started = inputs / "mine_precomp" / convert.WORK, time.time()
    while not (work / "inputs.json").exists() or not np.load(work / "train_num_regions.npy").any():
        assert process.poll() is None and time.time() - started < PROCESS_TIMEOUT
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=PROCESS_TIMEOUT)[1] == told and process.returncode == status
    done = sum(np.count_nonzero(np.load(path)) for path in work.glob("*_num_regions.npy"))
    assert 1 <= done < 12 and not whole_files(inputs)
    assert run("check", inputs / "mine_precomp") == 2
    assert (
        f"found no split, expected those of a finished conversion: {work} holds an"
        in capsys.readouterr().err
    )
    assert run(*arguments(inputs, "--regions", 4)) == 0
    check_converted(inputs)


def test_a_terminal_is_shown_how_far_it_is(inputs):
    ours, theirs = os.openpty()  # a terminal that tells no size, as under docker exec -t
    command = [sys.executable, "-m", "lib.data", *map(str, arguments(inputs))]
    subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        check=True,
        timeout=PROCESS_TIMEOUT,
    )
    os.close(theirs)
    shown = os.read(ours, 2**16).decode()
    os.close(ours)
    total = sum((inputs / name).stat().st_size for name in ("a.tsv", "b.tsv"))
    assert (
        f"1 of 2: reading:   0%| | 0.00/{total / 1000:.2f}k" in shown
        and "2 of 2: writing:   0%| | 0/12" in shown
    )


def test_a_conversion_holds_some_rows_at_a_time(inputs, monkeypatch):
    monkeypatch.setattr(convert, "IMAGES_PER_WRITE", 3)
    held, store = [], conversion.store
    monkeypatch.setattr(
        conversion, "store", lambda work, found: held.append(len(found)) or store(work, found)
    )
    convert.convert(
        [inputs / "a.tsv", inputs / "b.tsv"], inputs / "split.json", inputs / "mine_precomp", 4
    )
    assert held == [3, 3, 3, 3]


OPTIONS = (
    "--num_epochs 1 --batch_size 15 --embed_size 16 --nhead 2 --workers 0 --warmup 2 --topk 6"
).split()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw files of the demo's images, 3 to 12 boxes each, converted to 8 regions;
    and the demo's BERT."""
    folder = tmp_path_factory.mktemp("raw")
    sizes = {"train": 12, "dev": 4, "test": 5}
    demo.build(folder / "demo_precomp", sizes=sizes)
    images, lines = [], []
    for split, name in (("train", "train"), ("dev", "val"), ("test", "test")):
        captions = (folder / "demo_precomp" / f"{split}_caps.txt").read_text().splitlines()
        for index, regions in enumerate(np.load(folder / "demo_precomp" / f"{split}_ims.npy")):
            number, texts = len(images), captions[5 * index : 5 * index + 5]
            lines.append(tsv_line(number, 3 + number % 10, regions[: 3 + number % 10]))
            images.append(entry(number, name) | {"sentences": [{"raw": text} for text in texts]})
    (folder / "a.tsv").write_bytes(b"".join(reversed(lines)))
    write_json(folder, images)
    assert run(*arguments(folder, "--regions", 8, "--match", "imgid", tsv=["a.tsv"])) == 0
    return folder


def test_from_raw_files_to_a_table(raw, tmp_path, capsys):
    bert_path = str(raw / "demo_precomp" / "bert")
    more = ["--dataset", "mine", "--data_path", str(raw), "--bert_path", bert_path]
    for augment in ("1", "0"):
        folder = str(tmp_path / augment)
        train.main([*OPTIONS, *more, "--logger_name", folder, "--size_augment", augment])
        assert "skipped" not in (tmp_path / augment / "train.txt").read_text()
        table = (tmp_path / augment / "test.md").read_text()
        evaluation.main(["--model_path", folder])
        assert (
            tmp_path / augment / "test.md"
        ).read_text() == table and "split test: 5 images" in table


@pytest.fixture(scope="module")
def split(raw):
    return RetrievalDataset(
        raw / "mine_precomp", "train", bert.tokeniser(raw / "demo_precomp" / "bert")
    )


def true_regions(raw, image):
    return np.load(raw / "demo_precomp" / "train_ims.npy")[image][: min(3 + image, 8)]


def test_an_image_has_its_true_regions(raw, split):
    assert split.num_regions.tolist() == [3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 3, 4]
    for image in range(10):
        np.testing.assert_array_equal(split.image_regions(image), true_regions(raw, image))
    regions, lengths = split.image_block(1, 4)
    assert (
        lengths.tolist() == [4, 5, 6]
        and lengths.dtype == torch.int64
        and regions.shape == (3, 6, demo.FEATURES)
    )
    for row, length, image in zip(regions, lengths, (1, 2, 3)):
        np.testing.assert_array_equal(row[:length], true_regions(raw, image))
        assert not row[length:].any()


@pytest.mark.parametrize("drop_regions", [False, True])
def test_training_takes_true_regions_only(raw, split, drop_regions):
    seen = set()
    loader = training_loader(TrainingPairs(split, seed=0, drop_regions=drop_regions), 60, workers=0)
    for epoch in range(3):
        loader.sampler.epoch = epoch
        for batch in batches(loader):
            for regions, length, image in zip(
                batch.regions.numpy(), batch.region_lengths, batch.image_ids.tolist()
            ):
                assert not regions[length:].any() and 1 <= length <= split.num_regions[image]
                if image < 10:
                    is_same = (regions[:length, None] == true_regions(raw, image)[None]).all(axis=2)
                    assert (is_same.sum(axis=1) == 1).all()
                    seen |= {(image, int(place)) for place in is_same.argmax(axis=1)}
                assert drop_regions or length == split.num_regions[image]
    assert seen == {(image, place) for image in range(10) for place in range(min(3 + image, 8))}


def written(raw, folder, regions, captions):
    """A train split of an array and lines, without counts."""
    folder.mkdir()
    np.save(folder / "train_ims.npy", regions)
    (folder / "train_caps.txt").write_text("".join(f"{line}\n" for line in captions))
    return RetrievalDataset(folder, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))


def test_a_padded_image_is_evaluated_as_if_it_were_alone(raw, split, tmp_path):
    torch.manual_seed(0)
    options = dict(
        embed_size=16, nhead=2, dropout=0.1, residual_weight=0.5, no_imgnorm=False, no_txtnorm=False
    )
    options |= checkpoint.ADDED_OPTIONS
    model = build_model(options, bert.model(raw / "demo_precomp" / "bert"), demo.FEATURES)
    embeddings = encoding.encode_images(model, split, torch.device("cpu"))
    for image in (0, 2, 5):
        alone = written(
            raw, tmp_path / str(image), true_regions(raw, image)[None], ["a red ball"] * 5
        )
        expected = encoding.encode_images(model, alone, torch.device("cpu"))
        torch.testing.assert_close(embeddings[image : image + 1], expected, rtol=1e-5, atol=1e-6)
    uncounted = written(
        raw, tmp_path / "uncounted", np.load(split.regions_path), ["a red ball"] * 60
    )
    differs = (
        encoding.encode_images(model, uncounted, torch.device("cpu")) - embeddings
    ).abs().amax(1) > 1e-3
    assert differs.tolist() == (split.num_regions < 8).tolist()


def test_counts_belong_to_rows_where_rows_repeat(raw, split, tmp_path):
    source = raw / "mine_precomp"
    for name in ("train_ims.npy", "train_num_regions.npy"):
        np.save(tmp_path / name, np.load(source / name).repeat(5, axis=0))
    (tmp_path / "train_caps.txt").write_bytes((source / "train_caps.txt").read_bytes())
    repeated = RetrievalDataset(tmp_path, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))
    for left, right in zip(repeated.image_block(0, 12), split.image_block(0, 12)):
        assert torch.equal(left, right)
    which = np.arange(60)
    for left, right in zip(
        TrainingPairs(repeated, seed=2)[1, which], TrainingPairs(split, seed=2)[1, which]
    ):
        assert torch.equal(left, right)


def test_counts_that_do_not_fit_end_training(raw, tmp_path):
    for name in ("train_ims.npy", "train_caps.txt"):
        (tmp_path / name).write_bytes((raw / "mine_precomp" / name).read_bytes())
    np.save(tmp_path / "train_num_regions.npy", np.full(12, 9))
    with pytest.raises(
        InputError,
        match="train_num_regions.npy: found 9 regions for row 0 .* 1 to 8 for each of the 12",
    ):
        RetrievalDataset(tmp_path, "train", bert.tokeniser(raw / "demo_precomp" / "bert"))

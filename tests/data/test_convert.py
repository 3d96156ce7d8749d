"""Conversion of own features to a data folder, and conversions that are killed."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import PROCESS_TIMEOUT
from own_features import (
    NUM_BOXES,
    SPLITS,
    arguments,
    check_converted,
    contents,
    entry,
    features,
    tsv_line,
    write_inputs,
    write_json,
)
from test_check import run

from lib.data import conversion, convert, karpathy, tsv_columns, tsv_image, work_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


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
        "12 images of 1 to 10 regions x 16 features (float32): 5 truncated to their first 4 "
        "regions, 3 padded with"
    ) in text
    assert run("check", inputs / "mine_precomp") == 0
    assert (
        "  regions   1 to 4, mean 3.4 per image (train_num_regions.npy)\n"
        in capsys.readouterr().out
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
    check_converted(inputs)  # the first line of image 1002 is used
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
        "\nno dev split: training needs --val_split test (the JSON contains no image of val)\n"
        in text
    )
    assert (
        "\nno dev split: training needs --val_split test\ntrain "
        "and test have in common: 0 images, 0 ids"
    ) in text


def test_a_folder_that_no_dataset_finds_is_told_of(inputs, capsys):
    assert run(*arguments(inputs)[:-1], inputs / "slip") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(
        "training finds it with --dataset NAME only if the folder is called NAME_precomp"
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


def test_a_full_disk_is_told_before_anything_is_written(inputs, monkeypatch, capsys):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    assert run(*arguments(inputs)) == 2
    assert (
        "found 0.0 GB of free disk space, expected 0.0 GB: free some space"
        in capsys.readouterr().err
        and not (inputs / "mine_precomp").exists()
    )


def test_what_is_there_is_replaced_only_when_asked(inputs, capsys):
    out = inputs / "mine_precomp"
    out.mkdir()
    (out / "dev_caps.txt").write_text("old")
    (out / "other.txt").write_text("kept")
    assert run(*arguments(inputs, "--regions", 4)) == 2
    error = capsys.readouterr().err
    assert "mine_precomp: found dev_caps.txt, expected none" in error and "--overwrite" in error
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
    kill_at(inputs, "work_folder.store", 3)
    assert run(*arguments(inputs, "--regions", 5)) == 0
    assert ".conversion is restarted: it has other inputs or options" in capsys.readouterr().out
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
    assert kill_at(inputs, "work_folder.store", 4)
    decoded, read = [], tsv_image.read_image
    monkeypatch.setattr(tsv_image, "read_image", lambda *found: decoded.append(1) or read(*found))
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
        "import time; from lib.data import convert, work_folder, __main__ as data_command\n"
        "from lib.system import errors\n"
        "store = work_folder.store\n"
        "work_folder.store = lambda *found: (time.sleep(0.2), "
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
        f"found no split, expected those of a finished conversion: {work} contains an"
        in capsys.readouterr().err
    )
    assert run(*arguments(inputs, "--regions", 4)) == 0
    check_converted(inputs)


def test_a_terminal_is_shown_how_far_it_is(inputs):
    ours, theirs = os.openpty()  # a terminal that does not report its size, as with docker exec -t
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
    held, store = [], work_folder.store
    monkeypatch.setattr(
        work_folder,
        "store",
        lambda work, found, *more: held.append(len(found)) or store(work, found, *more),
    )
    convert.convert(
        [inputs / "a.tsv", inputs / "b.tsv"], inputs / "split.json", inputs / "mine_precomp", 4
    )
    assert held == [3, 3, 3, 3]

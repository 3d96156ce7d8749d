"""Conversions that are killed, that meet damaged state or a full disk,
or that run beside another one."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damage import edit
from kills import Programs
from own_features import DIM, entry, features, tsv_line, write_json
from test_check import run

import train
from lib.data import __main__ as data_command
from lib.data import conversion, convert, demo, layout
from lib.data.dataset import RetrievalDataset
from lib.data.region_file import RegionFile
from lib.model import bert
from lib.system.errors import InputError

ROOT = Path(__file__).parents[2]
SPLITS = ["train", "test", "train", "train", "test"]
SETUP = "from lib.data import convert, __main__ as data_command\nconvert.IMAGES_PER_WRITE = 3"


def new_inputs(folder, first=1000, splits=SPLITS, sentences=5):
    """a.tsv and split.json of five images of 6 boxes each, named from `first` on."""
    folder.mkdir(exist_ok=True)
    (folder / "a.tsv").write_bytes(
        b"".join(tsv_line(first + n, 6, features(first + n, 6)) for n in (3, 1, 4, 0, 2))
    )
    images = [
        entry(n, split, sentences(n) if callable(sentences) else sentences)
        for n, split in enumerate(splits)
    ]
    write_json(
        folder, [image | dict(filename=f"{first + n}.jpg") for n, image in enumerate(images)]
    )
    return folder


def arguments(inputs, out, *more):
    command = [
        "convert",
        "--tsv",
        inputs / "a.tsv",
        "--json",
        inputs / "split.json",
        "--out",
        out,
        "--regions",
        4,
    ]
    return [*command, *more]


def statement(inputs, out, *more):
    return f"data_command.main({list(map(str, arguments(inputs, out, *more)))!r})"


def content(out):
    """{name: bytes} of the visible files of a folder."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def programs():
    with Programs(SETUP) as programs:
        yield programs


@pytest.fixture
def inputs(tmp_path):
    return new_inputs(tmp_path / "inputs")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mine_precomp"


def converted(inputs, folder, *more):
    """The files of a conversion that nothing disturbed."""
    assert run(*arguments(inputs, folder, *more)) == 0
    return content(folder)


def is_refused(out):
    """Whether every reader refuses the folder: of each split that it has, and of all of them."""
    found = []
    for split in ("train", "test", "dev"):
        try:
            RegionFile(out / f"{split}_ims.npy")
        except InputError as error:
            found.append("convert is moving its files" in str(error))
        else:
            found.append(False)
    try:
        layout.find_splits(out)
    except InputError as error:
        return all(found) and "run the same convert command again" in str(error)
    return False


def test_a_conversion_killed_before_any_operation_is_repeated_by_the_same_command(
    programs, inputs, out, tmp_path
):
    expected = converted(inputs, tmp_path / "whole_precomp")
    operations = set()

    def prepare():
        shutil.rmtree(out, ignore_errors=True)

    command = statement(inputs, out)
    for killed in programs.killed_at_each(command, out, prepare):
        operations.add(killed.operation)
        found = content(out) if out.exists() else {}
        assert (
            is_refused(out) if os.path.lexists(out / layout.SWITCH) else found in ({}, expected)
        ), killed
        again = programs.run(command)
        assert again.status == 0 and content(out) == expected, (killed, again)
        assert {path.name for path in out.iterdir()} - set(expected) == {convert.LOCK}
    assert {
        "os.remove .converted",
        "os.rmdir .conversion",
        "open .conversion/train_ims.npy",
    } <= operations
    assert "os.rename .conversion/train_ims.npy train_ims.npy" in operations


def test_an_overwriting_conversion_killed_before_any_operation_leaves_the_old_files_or_the_new(
    programs, inputs, out, tmp_path
):
    before = new_inputs(
        tmp_path / "before", 2000, ["train", "val", "train", "test", "train"], lambda n: 1 + n
    )
    old, kept = (
        tmp_path / "old_precomp",
        ("dev_ims.npy", "dev_num_regions.npy", "dev_caps.txt", "dev_ids.txt"),
    )
    previous = converted(before, old)
    (old / "notes.txt").write_text("mine")
    expected = converted(inputs, tmp_path / "whole_precomp")
    expected |= {name: content for name, content in previous.items() if name in kept} | {
        "notes.txt": b"mine"
    }
    assert "train_caps_images.txt" in previous and "train_caps_images.txt" not in expected

    def prepare():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(old, out)

    seen = set()
    command = statement(inputs, out, "--overwrite")
    for killed in programs.killed_at_each(command, out, prepare):
        if os.path.lexists(out / layout.SWITCH):
            assert is_refused(out), killed
            seen.add("refused")
        else:
            found = content(out)
            assert found == previous | {"notes.txt": b"mine"} or found == expected, killed
            seen.add("old" if found != expected else "new")
        again = programs.run(command)
        assert again.status == 0 and content(out) == expected, (killed, again)
    # when the last operation has been carried out the conversion has ended
    assert seen == {"old", "refused"}


def test_training_and_check_refuse_a_folder_between_two_conversions(tmp_path, refusal):
    demo.build(tmp_path / "demo_precomp", sizes={"train": 10, "dev": 5, "test": 5})
    (tmp_path / "demo_precomp" / layout.SWITCH).write_text("{}")
    tokeniser = bert.tokeniser(tmp_path / "demo_precomp" / "bert")
    for split in ("train", "dev", "test"):
        with pytest.raises(
            InputError,
            match="or was stopped meanwhile .found .converted.*same convert command again",
        ):
            RetrievalDataset(tmp_path / "demo_precomp", split, tokeniser)
    options = [
        "--dataset",
        "demo",
        "--data_path",
        tmp_path,
        "--logger_name",
        tmp_path / "run",
        "--num_epochs",
        1,
    ]
    refusal(train.main, *options, expected=["demo_precomp: convert is moving its files"])
    refusal(
        data_command.main,
        "check",
        tmp_path / "demo_precomp",
        expected=["convert is moving its files"],
    )
    assert not (tmp_path / "run").exists()


@pytest.fixture
def kill_in_the_switch(programs, inputs, out, tmp_path):
    """A function that converts and is killed `number` operations after the first file begins to
    move."""

    def kill(number):
        trial = tmp_path / "trial_precomp"
        operations = programs.run(statement(inputs, trial), trial).operations
        first = operations.index("os.rename .conversion/test_caps.txt test_caps.txt")
        ended = programs.run(statement(inputs, out), out, first + number)
        assert (
            ended.status == -signal.SIGKILL
            and (out / layout.SWITCH).exists()
            and 0 < len(content(out)) < 8
        )

    return kill


def test_another_conversion_ends_the_switch_before_it_begins(
    inputs, out, tmp_path, kill_in_the_switch, capsys
):
    expected = converted(inputs, tmp_path / "whole_precomp")
    kill_in_the_switch(3)
    other = new_inputs(tmp_path / "other", 3000)
    capsys.readouterr()
    assert run(*arguments(other, out)) == 2
    assert (
        "mine_precomp: holds test_caps.txt, " in capsys.readouterr().err
        and content(out) == expected
    )
    assert run(*arguments(other, out, "--overwrite")) == 0
    assert (out / "test_ids.txt").read_text() == "3001\n3004\n"


def test_the_switch_ends_without_the_inputs(inputs, out, tmp_path, kill_in_the_switch, capsys):
    expected = converted(inputs, tmp_path / "whole_precomp")
    kill_in_the_switch(2)
    (inputs / "a.tsv").unlink()
    assert run(*arguments(inputs, out)) == 2
    assert "a.tsv: no such file" in capsys.readouterr().err and content(out) == expected


def switch_to(change):
    def damage(out):
        content = json.loads((out / layout.SWITCH).read_text())["content"]
        change(content)
        conversion._write_record(out / layout.SWITCH, **content)

    return damage


def switch_with(left, right):
    def damage(out):
        text = (out / layout.SWITCH).read_text()
        assert left in text
        (out / layout.SWITCH).write_text(text.replace(left, right, 1))

    return damage


DAMAGED_SWITCHES = {
    "not JSON": (
        lambda out: (out / layout.SWITCH).write_text("{"),
        "cannot be used (found Expecting",
    ),
    "a list": (
        lambda out: (out / layout.SWITCH).write_text("[]"),
        "found other contents than convert wrote",
    ),
    "a name that is lost": (
        switch_with('"train_caps_images.txt": null', '"x": null'),
        "found other contents",
    ),
    "another format": (
        switch_to(lambda content: content.update(format="x")),
        "found the record of another version",
    ),
    "a number for files": (
        switch_to(lambda content: content.update(files=7)),
        "found names that convert never",
    ),
    "a strange name": (
        switch_to(lambda content: content["files"].update({"../precious": None})),
        "found names that convert never",
    ),
    "a link": (
        lambda out: [
            (out / layout.SWITCH).rename(out / "away"),
            (out / layout.SWITCH).symlink_to("away"),
        ],
        "found a link",
    ),
    "a folder": (
        lambda out: [(out / layout.SWITCH).unlink(), (out / layout.SWITCH).mkdir()],
        "a folder, not a file",
    ),
    "a pipe": (
        lambda out: [(out / layout.SWITCH).unlink(), os.mkfifo(out / layout.SWITCH)],
        "found a pipe",
    ),
    "a lost file": (
        lambda out: (out / layout.WORK / "train_num_regions.npy").unlink(),
        "train_num_regions.npy: is not the file that convert was moving",
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_SWITCHES.values(), ids=DAMAGED_SWITCHES)
def test_a_damaged_switch_is_refused_and_nothing_is_removed(
    inputs, out, tmp_path, kill_in_the_switch, damage, expected, capsys
):
    (tmp_path / "precious").write_text("mine")
    kill_in_the_switch(2)
    damage(out)
    before = {path for path in tmp_path.rglob("*")}
    for more in ([], ["--overwrite"]):
        assert run(*arguments(inputs, out, *more)) == 2
        error = capsys.readouterr().err
        assert (
            expected in error
            and f"remove {out} and convert again" in error
            and error.count("\n") == 1
        )
        assert is_refused(out)
    assert {path.name for path in before} - {path.name for path in tmp_path.rglob("*")} == set()
    shutil.rmtree(out)
    assert run(*arguments(inputs, out)) == 0


def state(value):
    return lambda work: (work / "inputs.json").write_text(
        value if isinstance(value, str) else json.dumps(value)
    )


DAMAGED_WORK = {
    "not JSON": (state("{"), "inputs.json in it is not whole (Expecting"),
    "a list": (state([1]), "inputs.json in it is not whole (other contents than convert wrote)"),
    "deep": (state("[" * 100_000), "inputs.json in it is not whole (nested too deeply)"),
    "not text": (
        lambda work: (work / "inputs.json").write_bytes(b"\xff\xfe"),
        "inputs.json in it is not whole (",
    ),
    "other contents": (
        state({"content": {"asked": 3}}),
        "is not whole (other contents than convert wrote)",
    ),
    "other inputs": (
        lambda work: conversion._write_record(work / "inputs.json", asked=3),
        "it is of other inputs or options",
    ),
    "a pipe": (
        lambda work: [(work / "inputs.json").unlink(), os.mkfifo(work / "inputs.json")],
        "a pipe, socket",
    ),
    "nothing": (lambda work: (work / "inputs.json").unlink(), "it had just been begun"),
    "a half array": (
        lambda work: os.truncate(work / "train_ims.npy", 300),
        "train_ims.npy in it is damaged (",
    ),
    "another array": (
        lambda work: np.save(work / "train_ims.npy", np.zeros((3, 5, DIM), np.float32)),
        "damaged (another array)",
    ),
    "an open bracket": (
        edit("train_ims.npy", lambda found: found.replace(b"  \n", b" [\n")),
        "train_ims.npy in it is",
    ),
    "no array": (
        lambda work: (work / "train_ims.npy").write_bytes(b"x" * 600),
        "train_ims.npy in it is damaged",
    ),
    "absurd counts": (
        lambda work: np.save(work / "test_num_regions.npy", np.array([9, 1], np.int32)),
        "(counts out of range)",
    ),
    "other captions": (
        lambda work: (work / "train_caps.txt").write_text("x"),
        "train_caps.txt in it is not what was",
    ),
    "a link": (
        lambda work: [
            (work / "test_ims.npy").rename(work.parent / "x"),
            (work / "test_ims.npy").symlink_to("../x"),
        ],
        "test_ims.npy in it is damaged (a link)",
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_WORK.values(), ids=DAMAGED_WORK)
def test_damaged_work_is_begun_anew_and_said(
    inputs, out, tmp_path, monkeypatch, damage, expected, capsys
):
    whole = converted(inputs, tmp_path / "whole_precomp")
    monkeypatch.setattr(convert.tsv, "read_features", lambda *line: 1 / 0)
    assert run(*arguments(inputs, out)) == 1
    monkeypatch.undo()
    damage(out / layout.WORK)
    linked = {path: path.read_bytes() for path in out.glob("x")}
    capsys.readouterr()
    assert run(*arguments(inputs, out)) == 0
    text = capsys.readouterr().out
    assert f"{out / layout.WORK} is restarted: " in text and expected in text
    assert all(path.read_bytes() == before for path, before in linked.items())
    assert {name: found for name, found in content(out).items() if name != "x"} == whole


def test_a_work_folder_with_other_files_is_left_alone(inputs, out, capsys):
    (out / layout.WORK).mkdir(parents=True)
    (out / layout.WORK / "thesis.tex").write_text("mine")
    assert run(*arguments(inputs, out)) == 2
    assert (
        ".conversion: found thesis.tex, expected only what convert writes there"
        in capsys.readouterr().err
    )
    assert (out / layout.WORK / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_work_folder_that_is_none_is_refused(inputs, out, tmp_path, kind, capsys):
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train_ims.npy").write_text("mine")
    work = out / layout.WORK
    work.symlink_to(tmp_path / "elsewhere") if kind == "link" else work.write_text("mine")
    assert run(*arguments(inputs, out)) == 2
    assert (
        ".conversion: found a link or a file, expected a folder that convert made"
        in capsys.readouterr().err
    )
    assert (tmp_path / "elsewhere" / "train_ims.npy").read_text() == "mine" and os.path.lexists(
        work
    )


def test_links_and_folders_under_the_names_of_the_files(inputs, out, tmp_path, capsys):
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    (out / "train_caps.txt").symlink_to(tmp_path / "precious")
    (out / "test_caps_images.txt").symlink_to(tmp_path / "nowhere")
    assert run(*arguments(inputs, out)) == 2
    assert "holds test_caps_images.txt, train_caps.txt, expected none" in capsys.readouterr().err
    assert run(*arguments(inputs, out, "--overwrite")) == 0
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert not (out / "train_caps.txt").is_symlink() and not os.path.lexists(
        out / "test_caps_images.txt"
    )
    (out / "test_ids.txt").unlink()
    (out / "test_ids.txt").mkdir()
    before = content_of_files(out)
    assert run(*arguments(inputs, out, "--overwrite")) == 2
    assert "test_ids.txt: found a folder, expected a file or nothing" in capsys.readouterr().err
    assert content_of_files(out) == before


def content_of_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_other_splits_stay_and_are_named(inputs, out, capsys):
    out.mkdir()
    (out / "dev_caps.txt").write_text("mine")
    assert run(*arguments(inputs, out)) == 0
    assert (
        f"left as they are: files of dev in {out}, which the JSON has no image of"
        in capsys.readouterr().out
    )
    assert (out / "dev_caps.txt").read_text() == "mine"


def test_a_second_conversion_into_the_same_folder_is_refused(inputs, out, capsys):
    slow = (
        "import time; from lib.data import conversion, __main__ as data_command; from lib.system "
        "import errors\n"
        "store = conversion.store\n"
        "conversion.store = lambda *found: (time.sleep(60), "
        "store(*found))\nerrors.command_line(data_command.main)\n"
    )
    command = [sys.executable, "-c", slow, *map(str, arguments(inputs, out))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started = time.time()
    while not (out / layout.WORK / "inputs.json").exists():
        assert process.poll() is None and time.time() - started < 60
        time.sleep(0.02)
    before = content_of_files(out)
    assert run(*arguments(inputs, out, "--overwrite")) == 2
    assert f"mine_precomp: in use by process {process.pid} on " in capsys.readouterr().err
    assert content_of_files(out) == before
    process.kill()
    process.wait()
    assert run(*arguments(inputs, out)) == 0
    assert "resuming the conversion" in capsys.readouterr().out


def test_a_disk_that_fills_is_told_in_one_line_and_given_back(inputs, out, monkeypatch, capsys):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert run(*arguments(inputs, out)) == 2
    error = capsys.readouterr().err
    assert (
        "ims.npy: found no space left on device, expected to write there" in error
        and error.count("\n") == 1
    )
    assert [path.name for path in out.iterdir()] == [convert.LOCK]
    monkeypatch.undo()
    assert run(*arguments(inputs, out)) == 0


def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(
    inputs, out, tmp_path, monkeypatch
):
    whole = converted(inputs, tmp_path / "whole_precomp")

    def unable(descriptor, offset, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert converted(inputs, out) == whole


def test_a_limit_on_the_size_of_files_is_one_line(inputs, out):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    code = limit + "from lib.data import __main__ as data_command; from lib.system import errors\n"
    code += "errors.command_line(data_command.main)"
    command = [sys.executable, "-c", code, *map(str, arguments(inputs, out, "--regions", 200))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        ended.returncode == 2
        and ended.stderr.startswith(f"error: {out}")
        and ended.stderr.count("\n") == 1
    )
    assert "file too large" in ended.stderr


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs the right to mount")
def test_a_small_disk_is_never_a_signal(inputs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        code = (
            "import types; from lib.data import conversion, __main__ as data_command; from "
            "lib.system import errors\n"
            "conversion.shutil.disk_usage = lambda path: types.SimpleNamespace(free=1e12)\n"
            "del conversion.os.posix_fallocate\nerrors.command_line(data_command.main)"
        )
        command = [
            sys.executable,
            "-c",
            code,
            *map(str, arguments(inputs, disk / "mine_precomp", "--regions", 2000)),
        ]
        (inputs / "a.tsv").write_bytes(b"".join(tsv_line(1000 + n, 2000) for n in range(5)))
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (
            ended.returncode == 2
            and "no space left on device" in ended.stderr
            and ended.stderr.count("\n") == 1
        )
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_arrays_are_those_that_numpy_writes(tmp_path):
    for shape, dtype in (((3, 4, 5), np.float32), ((7,), np.int32)):
        conversion._new_array(tmp_path / f"{len(shape)}.npy", dtype, shape)
        np.save(tmp_path / "expected.npy", np.zeros(shape, dtype))
        assert (tmp_path / f"{len(shape)}.npy").read_bytes() == (
            tmp_path / "expected.npy"
        ).read_bytes()


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("../precious", path)]
)
def test_something_else_in_place_of_the_lock_is_one_line(inputs, out, tmp_path, make, capsys):
    (tmp_path / "precious").write_text("mine")
    out.mkdir()
    make(out / convert.LOCK)
    assert run(*arguments(inputs, out)) == 2
    error = capsys.readouterr().err
    assert str(out / convert.LOCK) in error and error.count("\n") == 1
    assert (tmp_path / "precious").read_text() == "mine" and os.listdir(out) == [convert.LOCK]


@pytest.mark.parametrize("name", ["a.tsv", "split.json"])
def test_a_pipe_in_place_of_an_input_is_not_waited_for(inputs, out, name, capsys):
    (inputs / name).unlink()
    os.mkfifo(inputs / name)
    assert run(*arguments(inputs, out)) == 2
    assert (
        f"{name}: a pipe, socket or device, not a file" in capsys.readouterr().err
        and not out.exists()
    )

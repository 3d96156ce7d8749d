"""Work folders of conversions that are damaged or foreign, and disks without space."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from damage import edit
from own_features import DIM, tsv_line
from test_check import run
from test_conversion import ROOT, arguments, content, converted, new_inputs

from lib.data import conversion, conversion_record, convert, layout, work_folder


@pytest.fixture
def inputs(tmp_path):
    return new_inputs(tmp_path / "inputs")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "mine_precomp"


def state(value):
    return lambda work: (work / "inputs.json").write_text(
        value if isinstance(value, str) else json.dumps(value)
    )


DAMAGED_WORK = {
    "not JSON": (state("{"), "its inputs.json is damaged (Expecting"),
    "a list": (state([1]), "its inputs.json is damaged (contents that convert did not write)"),
    "deep": (state("[" * 100_000), "its inputs.json is damaged (nested too deeply)"),
    "not text": (
        lambda work: (work / "inputs.json").write_bytes(b"\xff\xfe"),
        "its inputs.json is damaged (",
    ),
    "other contents": (
        state({"content": {"asked": 3}}),
        "is damaged (contents that convert did not write)",
    ),
    "other inputs": (
        lambda work: conversion_record.write_record(work / "inputs.json", asked=3),
        "it has other inputs or options",
    ),
    "a pipe": (
        lambda work: [(work / "inputs.json").unlink(), os.mkfifo(work / "inputs.json")],
        "a pipe, socket",
    ),
    "nothing": (lambda work: (work / "inputs.json").unlink(), "it had only just begun"),
    "a half array": (
        lambda work: os.truncate(work / "train_ims.npy", 300),
        "its train_ims.npy is damaged (",
    ),
    "another array": (
        lambda work: np.save(work / "train_ims.npy", np.zeros((3, 5, DIM), np.float32)),
        "damaged (an array of another type or shape)",
    ),
    "an open bracket": (
        edit("train_ims.npy", lambda found: found.replace(b"  \n", b" [\n")),
        "its train_ims.npy is damaged",
    ),
    "no array": (
        lambda work: (work / "train_ims.npy").write_bytes(b"x" * 600),
        "its train_ims.npy is damaged",
    ),
    "absurd counts": (
        lambda work: np.save(work / "test_num_regions.npy", np.array([9, 1], np.int32)),
        "(counts out of range)",
    ),
    "other captions": (
        lambda work: (work / "train_caps.txt").write_text("x"),
        "its train_caps.txt was changed",
    ),
    "a link": (
        lambda work: [
            (work / "test_ims.npy").rename(work.parent / "x"),
            (work / "test_ims.npy").symlink_to("../x"),
        ],
        "its test_ims.npy is damaged (a link)",
    ),
}


@pytest.mark.parametrize("damage, expected", DAMAGED_WORK.values(), ids=DAMAGED_WORK)
def test_damaged_work_is_begun_anew_and_said(
    inputs, out, tmp_path, monkeypatch, damage, expected, capsys
):
    whole = converted(inputs, tmp_path / "whole_precomp")
    monkeypatch.setattr(convert.tsv_image, "read_image", lambda *line: 1 / 0)
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
        ".conversion: found thesis.tex, expected only files of convert" in capsys.readouterr().err
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
        ".conversion: found a link or a file, expected a folder of convert"
        in capsys.readouterr().err
    )
    assert (tmp_path / "elsewhere" / "train_ims.npy").read_text() == "mine" and os.path.lexists(
        work
    )


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
    assert [path.name for path in out.iterdir()] == [conversion.LOCK]
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
            "import os; del os.posix_fallocate\nerrors.command_line(data_command.main)"
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
        work_folder._new_array(tmp_path / f"{len(shape)}.npy", np.dtype(dtype), shape)
        np.save(tmp_path / "expected.npy", np.zeros(shape, dtype))
        assert (tmp_path / f"{len(shape)}.npy").read_bytes() == (
            tmp_path / "expected.npy"
        ).read_bytes()

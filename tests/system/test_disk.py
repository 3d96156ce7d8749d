"""Full disks, and files that change under a program: one line, and the run can go on."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import OPTIONS, contents
from processes import run_program

import eval as evaluation
import train
from lib.data import check, feature_checks
from lib.data.batches import TrainingPairs, batches, training_loader
from lib.data.dataset import RetrievalDataset
from lib.evaluation import encoding
from lib.model import bert
from lib.results import export
from lib.system import files
from lib.system.errors import InputError
from lib.training import engine

ROOT = Path(__file__).parents[2]
SAVING = ["--log_step", "1", "--save_step", "2"]


@pytest.fixture
def disk(tmp_path):
    """Give a new small file system of so many bytes, such as "8m";
    only where this process may mount one."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Take all that is left of a disk."""
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def at_step(monkeypatch, number, act):
    """Call act() before that step of training, counted from 0, is computed."""
    compute, steps = engine.training_step, []

    def step(*arguments, **settings):
        if len(steps) == number:
            act()
        steps.append(None)
        return compute(*arguments, **settings)

    monkeypatch.setattr(engine, "training_step", step)


@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_run_on_a_disk_that_fills_up_goes_on_once_there_is_room(
    whole, tmp_path, disk, refusal, monkeypatch, number
):
    folder = disk("60m")
    argv = [*OPTIONS, *SAVING, "--save_results", "0", "--data_path", str(whole)]
    run = [*argv, "--logger_name", str(folder / "run")]
    with monkeypatch.context() as patch:
        at_step(patch, number, lambda: fill(folder))
        refusal(
            train.main,
            *run,
            expected=["no space left on device", "expected to write there", "--resume auto"],
        )
    assert not list((folder / "run").glob(".*.part"))
    (folder / "filler").unlink()
    train.main([*run, "--resume", "auto"])
    train.main([*argv, "--logger_name", str(tmp_path / "other")])
    ours, theirs = (
        torch.load(place / "last.pth", weights_only=True)
        for place in (folder / "run", tmp_path / "other")
    )
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    logs = [(place / "train.txt").read_text() for place in (folder / "run", tmp_path / "other")]
    assert logs[0].replace(str(folder / "run"), "RUN") == logs[1].replace(
        str(tmp_path / "other"), "RUN"
    )


@pytest.mark.parametrize("size", ["4k", "8k"])
def test_a_disk_too_small_for_a_run_is_told_in_a_line(whole, disk, size):
    command = [*OPTIONS, "--data_path", whole, "--logger_name", disk(size) / "run"]
    status, _, errors = run_program("train.py", *command)
    assert status == 2 and errors.count("\n") == 1, errors
    assert "no space left on device" in errors


def test_a_process_on_such_a_disk_ends_with_that_line(whole, disk):
    folder = disk("1m")
    command = [sys.executable, "-W", "ignore", ROOT / "train.py", *OPTIONS, "--data_path", whole]
    done = subprocess.run(
        [*command, "--logger_name", folder / "run"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "no space left on device" in done.stderr


def test_an_export_that_does_not_fit_can_be_repeated_once_there_is_room(
    finished, tmp_path, disk, refusal
):
    run, folder = shutil.copytree(finished, tmp_path / "run"), disk("16k")
    (folder / "filler").write_bytes(bytes(8192))
    argv = [run, "--export", folder / "exported"]
    refusal(evaluation.main, *argv, expected=["no space left on device", "repeat the command"])
    assert list((folder / "exported").iterdir()) == []
    assert subprocess.run(["mount", "-o", "remount,size=1m", str(folder)]).returncode == 0
    evaluation.main([str(argument) for argument in argv])
    assert {path.name for path in (folder / "exported").iterdir()} == set(export.FILES)


def test_a_lock_on_a_full_disk_is_held(disk):
    folder = disk("4k")
    (folder / ".lock").touch()
    fill(folder)
    with files.lock(folder / ".lock"):
        assert files._held
    assert (folder / ".lock").read_bytes() == b""


def test_demo_data_that_do_not_fit_leave_nothing_behind(tmp_path, disk, refusal):
    folder = disk("1m")
    argv = [*OPTIONS, "--data_path", folder, "--logger_name", tmp_path / "run"]
    error = refusal(
        train.main, *argv, expected=["demo_precomp", "expected to write there", "make room"]
    )
    assert "no space left on device" in error or "not enough free space" in error
    assert not [path for path in folder.rglob("*") if not path.name.endswith(".lock")]
    assert not (tmp_path / "run").exists()


def test_curves_that_cannot_be_written_fail_once(whole, tmp_path, refusal, monkeypatch):
    pytest.importorskip("tensorboard_logger")
    from lib.training import logs

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_step(monkeypatch, 2, lambda: monkeypatch.setattr(logs.TensorBoard, "_write_event", full))
    argv = [*OPTIONS, *SAVING, "--data_path", whole, "--logger_name", tmp_path / "run"]
    refusal(train.main, *argv, expected=["no space left on device", "--resume auto"])


# Features that change while they are mapped


def cut(path):
    os.truncate(path, path.stat().st_size // 100)


def replace(path):
    shutil.copy(path, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def rewrite(path):
    content = path.read_bytes()
    path.write_bytes(content)


CHANGES = {
    "cut": (cut, r"changed while it was in use \(found \d+ bytes, 737408 when"),
    "replaced": (replace, "changed while it was in use"),
    "written anew": (rewrite, "changed while it was in use"),
    "removed": (Path.unlink, "no such file or directory"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change, found", CHANGES.values(), ids=CHANGES)
def test_features_that_change_during_training_end_it_in_a_line(
    data, tmp_path, refusal, monkeypatch, change, found, workers
):
    path = data / "demo_precomp" / "train_ims.npy"
    at_step(monkeypatch, 2, lambda: change(path))
    argv = [*OPTIONS, "--data_path", data, "--logger_name", tmp_path / "run", "--workers", workers]
    error = refusal(
        train.main, *argv, expected=[path, "expected features that do not change", "--resume auto"]
    )
    assert re.search(found, error)


def test_features_that_are_cut_before_an_evaluation_reads_them_end_it(
    data, finished, refusal, monkeypatch
):
    encode = encoding.encode_images

    def cut_first(model, split, device):
        cut(split.regions_path)
        return encode(model, split, device)

    monkeypatch.setattr(encoding, "encode_images", cut_first)
    before = contents(finished)
    expected = ["test_ims.npy: changed while it was in use", "expected features that do not change"]
    refusal(evaluation.main, "--model_path", finished, "--data_path", data, expected=expected)
    assert contents(finished) == before


def test_features_that_are_cut_during_a_check_are_told(data, monkeypatch):
    path = data / "demo_precomp" / "train_ims.npy"
    digest, seen = feature_checks.hashlib.sha256, []

    def cut_once(row):
        if not seen:
            cut(path)
        seen.append(None)
        return digest(row)

    monkeypatch.setattr(feature_checks, "BLOCK_BYTES", 4 * 36 * 128 * 10)
    monkeypatch.setattr(feature_checks.hashlib, "sha256", cut_once)
    with pytest.raises(InputError, match="train_ims.npy: changed while it was in use"):
        check.check(data / "demo_precomp")


def test_a_loader_process_that_the_system_ends_is_told_in_a_line(whole, monkeypatch):
    folder = whole / "demo_precomp"
    pairs = TrainingPairs(
        RetrievalDataset(folder, "train", bert.tokeniser(folder / "bert")), seed=0
    )
    monkeypatch.setattr(TrainingPairs, "draw", lambda *arguments: os.kill(os.getpid(), 9))
    loader = training_loader(pairs, 20, workers=1)
    with pytest.raises(InputError, match="a loader process was killed .*fewer --workers"):
        list(batches(loader))


def test_a_batch_asks_for_the_file_twice_and_an_image_never(whole, monkeypatch):
    """Once where it is drawn and once where it is filled: it costs microseconds,
    and no more with larger batches."""
    folder, asked = whole / "demo_precomp", []
    split = RetrievalDataset(folder, "train", bert.tokeniser(folder / "bert"))
    monkeypatch.setattr(
        split.regions, "check_unchanged", lambda *arguments: asked.append(arguments)
    )
    TrainingPairs(split, seed=0)[0, np.arange(100)]
    assert len(asked) == 2

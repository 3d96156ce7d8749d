"""Stopping and going on: a run that was interrupted in any way ends as one that never was."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PROCESS_TIMEOUT, make_data, read, same, scalars, shared

import train
from lib.system import files, interrupt, run_folder
from lib.system.errors import InputError
from lib.training import engine, logs

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--dataset demo --num_epochs 3 --batch_size 30 --embed_size 32 --nhead 2 --warmup 6 "
    "--log_step 4 --val_step 7 --save_results 0 --learning_rate 0.002 --workers 0 --save_step 3"
).split()
STEPS = 30  # of a whole run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=60, dev=10, test=10)


def command(data, folder, *more):
    return [*OPTIONS, "--data_path", str(data), "--logger_name", str(folder), *more]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbed; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(data, folder))
    return shared(folder)


def check_same_run(folder, whole):
    """Weights, moments, counts, logs and curves are those of the undisturbed run, bit for bit."""
    for name in (run_folder.LAST, run_folder.BEST):
        ours, theirs = read(folder, name), read(whole, name)
        for part in ("model", "objective", "optimizer", "epoch", "step", "best_rsum"):
            assert same(ours[part], theirs[part]), f"{name}: {part}"
    for name in ("train.txt", "eval.txt", "test.md"):
        assert (folder / name).read_text() == (whole / name).read_text().replace(
            str(whole), str(folder)
        ), name
    ours, theirs = scalars(folder), scalars(whole)
    for name in ("batch_time", "data_time"):
        assert [step for step, _ in ours.pop(name)] == [step for step, _ in theirs.pop(name)]
    assert ours == theirs
    assert not files.find_temporaries(folder)


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_at_step(monkeypatch, step):
    """Training raises `Stopped` before that step, counted from 0."""
    compute = engine.training_step
    met = []

    def step_or_stop(*arguments, **settings):
        met.append(None)
        if len(met) > step:
            raise Stopped
        return compute(*arguments, **settings)

    monkeypatch.setattr(engine, "training_step", step_or_stop)


@pytest.mark.parametrize(
    "step, workers", [*((step, "0") for step in (0, 2, 3, 8, 10, 11, 20, 29)), (8, "2"), (20, "2")]
)
def test_a_stopped_run_goes_on_as_if_it_never_had(
    data, whole, tmp_path, monkeypatch, step, workers
):
    with monkeypatch.context() as patched:
        stop_at_step(patched, step)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "run", "--workers", workers))
    train.main(command(data, tmp_path / "run", "--workers", workers, "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_run_stopped_while_a_file_is_written_goes_on(data, whole, tmp_path, monkeypatch, number):
    """The number-th checkpoint is written half; what is there before is what the run goes on
    from."""
    met, save = [], torch.save

    def save_half(content, file):
        met.append(None)
        save(content, file)
        if len(met) == number:
            file.truncate(1000)
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_half)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "run"))
    assert (tmp_path / "run" / run_folder.LAST).exists() == (number > 1)
    train.main(command(data, tmp_path / "run", "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


def test_a_finished_run_that_is_resumed_stays_the_same(data, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    train.main(command(data, folder, "--resume", "auto"))
    assert (folder / "test.md").read_bytes() == (whole / "test.md").read_bytes()
    assert (folder / "eval.txt").read_bytes() == (whole / "eval.txt").read_bytes()


def test_more_epochs_go_on_from_a_finished_run(data, whole, tmp_path):
    folder = tmp_path / "run"
    train.main(command(data, folder, "--num_epochs", "2"))
    train.main(command(data, folder, "--resume", "auto"))
    ours, theirs = read(folder, run_folder.LAST), read(whole, run_folder.LAST)
    assert same(ours["model"], theirs["model"]) and same(ours["optimizer"], theirs["optimizer"])


def test_a_run_goes_on_from_a_file_elsewhere(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at_step(patched, 17)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "first"))
    before = {path: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    train.main(command(data, tmp_path / "second", "--resume", str(tmp_path / "first")))
    assert {path: path.read_bytes() for path in (tmp_path / "first").iterdir()} == before
    for name in (run_folder.LAST, run_folder.BEST):
        assert same(read(tmp_path / "second", name)["model"], read(whole, name)["model"])
    steps = [step for step, _ in scalars(tmp_path / "second")["Iter"]]
    assert steps == [step for step, _ in scalars(whole)["Iter"] if step > 15]


def test_auto_starts_a_run_where_there_is_none(data, whole, tmp_path):
    train.main(command(data, tmp_path / "run", "--resume", "auto"))
    check_same_run(tmp_path / "run", whole)


def test_what_a_folder_holds_is_not_replaced_unasked(data, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        InputError, match=r"last\.pth: the folder holds a run.*--resume auto.*--overwrite 1"
    ):
        train.main(command(data, folder))
    (folder / run_folder.LAST).unlink()
    with pytest.raises(InputError, match=r"model_best\.pth: the folder holds a run"):
        train.main(command(data, folder, "--resume", "auto"))
    with pytest.raises(InputError, match="the folder holds a run"):
        train.main(command(data, folder, "--resume", str(whole)))
    del before[run_folder.LAST]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwriting_leaves_nothing_of_the_run_before(data, whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    stop_at_step(monkeypatch, 1)
    with pytest.raises(Stopped):
        train.main(command(data, folder, "--overwrite", "1"))
    names = {
        re.sub(r"tfevents\..*", "tfevents", path.name)
        for path in folder.iterdir()
        if path.name[0] != "."
    }
    assert names == {
        "last.pth",
        "train.txt",
        "Parameters.txt",
        "events.out.tfevents",
        "run_manifest.json",
    }
    assert read(folder, run_folder.LAST)["step"] == 0


@pytest.mark.parametrize(
    "option, value", [("--batch_size", "20"), ("--seed", "1"), ("--mask_weight", "1.5")]
)
def test_a_run_goes_on_with_the_options_it_began_with(data, whole, tmp_path, option, value):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=rf"started with {option} .*, found {option} {value}"):
        train.main(command(data, folder, "--resume", "auto", option, value))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda path: os.truncate(path, 5000), "cannot be read as a checkpoint"),
        (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
        (
            lambda path: shutil.copy(path.with_name(run_folder.BEST), path),
            "expected a last.pth written by train.py",
        ),
        (lambda path: torch.save({"opt": 1}, path), "expected a last.pth written by train.py"),
        (
            lambda path: torch.save(torch.load(path, weights_only=True) | {"optimizer": {}}, path),
            "does not fit this run",
        ),
        (
            lambda path: torch.save(torch.load(path, weights_only=True) | {"model": {}}, path),
            "does not fit this run",
        ),
    ],
    ids=[
        "truncated",
        "empty",
        "the best model",
        "another program's",
        "without moments",
        "without weights",
    ],
)
def test_a_damaged_file_is_not_gone_on_from(data, whole, tmp_path, damage, expected):
    folder = shutil.copytree(whole, tmp_path / "run")
    damage(folder / run_folder.LAST)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=expected):
        train.main(command(data, folder, "--resume", "auto"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def start(data, folder, *more, own_environment=(), **settings):
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    environment |= dict(own_environment)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *command(data, folder, *more)], cwd=folder.parent,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings,
    )  # fmt: skip


def wait_for(process, text):
    """Read what a process prints until `text` is in a line."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without printing {text!r}")


@pytest.fixture(scope="module")
def whole_with_one_thread(data, tmp_path_factory):
    """As `whole`, in a process like those that tests end: the number of threads may change the last
    bits."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start(data, folder)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return shared(folder)


@pytest.mark.parametrize(
    "number, status, workers", [(signal.SIGINT, 130, "0"), (signal.SIGTERM, 143, "1")]
)
def test_a_signal_stops_after_the_step_and_says_how_to_go_on(
    data, whole_with_one_thread, tmp_path, number, status, workers
):
    process = start(data, tmp_path / "run", "--workers", workers, start_new_session=True)
    wait_for(process, "epoch 0 step 8")
    os.killpg(process.pid, number)  # to the workers too, as a terminal and a scheduler do
    printed = process.communicate(timeout=PROCESS_TIMEOUT)[0]
    assert process.returncode == status, printed
    assert (
        "stopped at step" in printed
        and "--resume auto goes on" in printed
        and "Traceback" not in printed
    )
    step = read(tmp_path / "run", run_folder.LAST)["step"]
    assert (
        8 <= step < STEPS
        and f"stopped at step {step}, saved in {tmp_path / 'run' / 'last.pth'}" in printed
    )
    resumed = start(data, tmp_path / "run", "--workers", workers, "--resume", "auto")
    assert f"step {step}" in resumed.communicate()[0] and resumed.returncode == 0
    check_same_run(tmp_path / "run", whole_with_one_thread)


def test_a_second_interrupt_stops_at_once(monkeypatch):
    with interrupt.Interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def kill_and_go_on(data, whole, folder, kills, seed):
    """Kill a run at random moments, saving among them, going on each time;
    it ends as the undisturbed one."""
    generator, killed = random.Random(seed), 0
    while killed < kills:
        process = start(data, folder, "--resume", "auto", "--save_step", "1")
        wait_for(process, "parameters:")
        time.sleep(generator.uniform(0, 1.2))
        if process.poll() is not None:
            break
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    process = start(data, folder, "--resume", "auto", "--save_step", "1")
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    check_same_run(folder, whole)
    return killed


def test_a_killed_run_goes_on(data, whole_with_one_thread, tmp_path):
    assert kill_and_go_on(data, whole_with_one_thread, tmp_path / "run", kills=2, seed=0) >= 1


@pytest.mark.long
def test_twenty_kills_change_nothing(data, whole_with_one_thread, tmp_path):
    killed, number = 0, 0
    while killed < 20:
        number += 1
        killed += kill_and_go_on(
            data, whole_with_one_thread, tmp_path / f"run{number}", kills=20 - killed, seed=number
        )


@pytest.mark.parametrize("limit", [30_000, 250_000])
def test_a_full_disk_stops_with_the_earlier_checkpoint_whole(
    data, whole, tmp_path, monkeypatch, limit
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at_step(patched, 13)
        with pytest.raises(Stopped):
            train.main(command(data, folder))
    before = (folder / run_folder.LAST).read_bytes()
    assert len(before) > limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            InputError,
            match=r"\.pth.*: found file too large, expected to write there.*--resume auto",
        ):
            train.main(command(data, folder, "--resume", "auto"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / run_folder.LAST).read_bytes() == before and not files.find_temporaries(folder)
    train.main(command(data, folder, "--resume", "auto"))
    check_same_run(folder, whole)


def test_a_log_that_cannot_be_written_is_told_in_a_line(tmp_path):
    log = logs.RunLog(tmp_path)
    writers = {"train": log.train, "eval": log.evaluation}
    for name, write in writers.items():
        write("a line")
        os.truncate(tmp_path / f"{name}.txt", 10**6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in writers.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
        try:
            with pytest.raises(InputError, match=rf"{name}\.txt: found file too large"):
                write("a line")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_log_is_not_written_through_a_link(tmp_path):
    log = logs.RunLog(tmp_path / "run")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "train.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"train\.txt: found "):
        log.train("a line")
    assert (tmp_path / "precious").read_text() == "mine"


def test_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: told.append("flushed"))
    rename = os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda *paths: (told.append("renamed"), rename(*paths))
    )
    with files.atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert (
        told == ["flushed", "renamed", "flushed"] and (tmp_path / "file").read_bytes() == b"content"
    )


def poison_steps(monkeypatch, steps):
    """The loss of these steps, counted from 0, is not a number."""
    from graph_lib import Objective

    compute, met = Objective.forward, []

    def forward(self, *arguments, **settings):
        loss = compute(self, *arguments, **settings)
        met.append(None)
        if len(met) - 1 in steps:
            terms = loss.terms | {"base": loss.terms["base"] * float("nan")}
            return loss._replace(total=sum(terms.values()), terms=terms)
        return loss

    monkeypatch.setattr(Objective, "forward", forward)


def test_twenty_steps_in_a_row_without_a_number_stop_the_run(data, tmp_path, monkeypatch):
    folder, options = tmp_path / "run", ["--val_step", "0", "--save_step", "0"]
    with monkeypatch.context() as patched:
        stop_at_step(patched, 8)
        with pytest.raises(Stopped):
            train.main(command(data, tmp_path / "good", *options, "--save_step", "1"))
    poison_steps(monkeypatch, range(8, 28))
    with pytest.raises(
        InputError, match=r"last\.pth: stopped at step 30: .*20 steps in a row.*--learning_rate"
    ):
        train.main(command(data, folder, *options))
    stopped, good = read(folder, run_folder.LAST), read(tmp_path / "good", run_folder.LAST)
    for part in ("model", "objective", "optimizer"):
        assert same(stopped[part], good[part])
    assert (
        "skipped 2 steps that were not finite (2 so far) in base"
        in (folder / "train.txt").read_text()
    )


def test_nineteen_do_not(data, tmp_path, monkeypatch):
    poison_steps(monkeypatch, range(5, 24))
    train.main(command(data, tmp_path / "run"))
    log = (tmp_path / "run" / "train.txt").read_text()
    assert "(19 so far) in base" in log and not log.splitlines()[-1].count("skipped")


def test_out_of_memory_is_told_in_a_line(data, tmp_path, monkeypatch):
    def step(*arguments, **settings):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
        )

    monkeypatch.setattr(engine, "training_step", step)
    with pytest.raises(
        InputError, match=r"--batch_size 30 \(CUDA out of memory\).*try --batch_size 15"
    ):
        train.main(command(data, tmp_path / "run"))


@pytest.mark.long
def test_a_thousand_epochs_hold_no_more_than_a_hundred(data, tmp_path):
    """Memory, open files and threads do not grow over a long run with a worker,
    validation and saving.

    glibc raises the size from which it gives memory back to the system with what a program has
    freed so far, and its heap then spreads for a thousand epochs; held at its first value, resident
    memory is what the run holds.
    """
    process = start(
        data, tmp_path / "run", "--num_epochs", "1000", "--batch_size", "100", "--val_step", "0",
        "--save_step", "0", "--workers", "1", "--log_step", "100",
        own_environment={"MALLOC_MMAP_THRESHOLD_": "131072"},
    )  # fmt: skip
    held = []  # after every epoch: kB, threads, open files
    for line in process.stdout:
        if re.match(r"epoch \d+ step \d+ dev", line):
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory, threads = (
                int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")
            )
            held.append((memory, threads, len(os.listdir(f"/proc/{process.pid}/fd"))))
    assert process.wait() == 0 and len(held) == 1000
    for epoch in range(0, 1000, 100):
        print(
            f"epochs {epoch} to {epoch + 99}: {np.min(held[epoch : epoch + 100], 0)} (kB, "
            "threads, open files)"
        )
    # the least of many moments: a worker that is just starting or leaving has files open too
    (memory, *open_before), (memory_after, *open_after) = (
        np.min(held[100:200], 0),
        np.min(held[900:], 0),
    )
    assert memory_after < memory + 10_000 and open_after == open_before

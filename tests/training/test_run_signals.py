"""Runs that are interrupted, stopped or killed from outside, and one of a thousand epochs."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import PROCESS_TIMEOUT, make_data, read, shared
from processes import Program, run_program
from test_resume import check_same_run, command

from lib.system import interrupt, run_folder

ROOT = Path(__file__).parents[2]
STEPS = 30  # of a whole run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory, train=60, dev=10, test=10)


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


def finish(data, folder, *more):
    """Run to the end with one thread, as `start` does: their number may change the last bits.
    Returns what is printed."""
    status, printed, errors = run_program("train.py", *command(data, folder, *more))
    assert status == 0, errors
    return printed


@pytest.fixture(scope="module")
def whole_with_one_thread(data, tmp_path_factory):
    """As `whole`, in a process like those that tests end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(data, folder)
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
        and "repeat the command with --resume auto" in printed
        and "Traceback" not in printed
    )
    step = read(tmp_path / "run", run_folder.LAST)["step"]
    assert (
        8 <= step < STEPS
        and f"stopped at step {step}, saved in {tmp_path / 'run' / 'last.pth'}" in printed
    )
    resumed = finish(data, tmp_path / "run", "--workers", workers, "--resume", "auto")
    assert f"step {step}" in resumed
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
        options = command(data, folder, "--resume", "auto", "--save_step", "1")
        process = Program("train.py", *options)
        process.wait_for("parameters:")
        time.sleep(generator.uniform(0, 1.2))
        if process.poll() is not None:
            break
        killed += process.kill() == -signal.SIGKILL
    finish(data, folder, "--resume", "auto", "--save_step", "1")
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

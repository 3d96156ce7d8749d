"""Two processes at once in one folder: a run, and a build of the demo data."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from damage import contents
from processes import Program
from test_run_start import command, fit

import eval as evaluation
import train
from lib.data import demo
from lib.training import engine

ROOT = Path(__file__).parents[2]


def hold(*argv):
    """A run that stays in its third step."""
    compute, met = engine.training_step, []

    def step(*arguments, **settings):
        met.append(None)
        if len(met) == 3:
            print("at work", flush=True)
            time.sleep(300)
        return compute(*arguments, **settings)

    engine.training_step = step  # in a process of its own
    train.main(argv)


@pytest.fixture
def at_work(whole, tmp_path):
    """A process in the third step of the run in `run`, as a killed torchrun leaves it behind."""
    options = "--val_step", "2", "--save_step", "2"
    process = Program(hold, *command(whole, tmp_path / "run", *options))
    process.wait_for("at work")
    yield process
    process.kill()


def test_a_second_process_in_a_run_folder_is_refused_until_the_first_is_dead(
    whole, tmp_path, at_work, refusal
):
    run = tmp_path / "run"
    before = contents(run)
    for more in (
        ["--resume", "auto"],
        ["--overwrite", "1"],
        ["--overwrite", "1", "--model_name", tmp_path / "models"],
    ):
        expected = [run, f"in use by process {at_work.pid} on", "end it"]
        refusal(train.main, *command(whole, run, *more), expected=expected)
        assert contents(run) == before and not (tmp_path / "models").exists()
    evaluation.main([str(run), "--split", "dev"])  # that may run beside it
    assert (run / "dev.md").exists() and at_work.poll() is None
    assert torch.load(run / "last.pth", weights_only=True)["step"] == 2
    at_work.kill()
    fit(whole, run, "--resume", "auto", "--val_step", "2")
    assert (run / "test.md").exists()


BUILD = """
import sys
import time
from lib.data import demo
demo.build.__defaults__ = (0, {"train": 20, "dev": 10, "test": 10})
demo.build_once(sys.argv[1])
"""


def test_two_builds_of_the_demo_at_once_make_one(tmp_path):
    argv = [sys.executable, "-c", BUILD, str(tmp_path / "new" / "demo_precomp")]
    builds = [subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], printed
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        ".demo_precomp.lock",
        "demo_precomp",
    ]


def test_what_killed_builds_leave_is_not_in_the_way_of_the_next(tmp_path):
    for left in (f".demo_precomp.{os.getpid()}", ".demo_precomp.0123456789abcdef.part"):
        (tmp_path / left / "bert").mkdir(parents=True)
        (tmp_path / left / "train_caps.txt").write_text("half")
    demo.build(tmp_path / "demo_precomp", sizes={"train": 2, "dev": 1, "test": 1})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"demo_precomp", ".demo_precomp.lock", f".demo_precomp.{os.getpid()}"}
